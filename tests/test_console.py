"""What is shown while a run works and when it has ended."""

import io
import shlex
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import console
from pipeline.runs import Result, RunDir, Stage


@pytest.fixture
def screen(monkeypatch):
    """A console whose text can be read; takes the place of standard error."""
    taken = Console(file=io.StringIO(), width=120, force_terminal=False, highlight=False)
    monkeypatch.setattr(console, "stderr", taken)
    return taken


def text_of(screen: Console) -> str:
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def shown(screen: Console, *events: dict) -> str:
    with console.Display(screen) as display:
        for event in events:
            display.show({"t": 0.0, **event})
    return text_of(screen)


def test_away_from_a_terminal_each_stage_is_a_line(screen):
    text = shown(
        screen,
        {"kind": "startup", "seconds": 8.0},
        {"kind": "stage", "name": "Trainer", "state": "start"},
        {"kind": "note", "text": "cache in memory [12 MB]"},
        {"kind": "stage", "name": "Trainer", "state": "complete", "seconds": 3.25},
    )
    assert "start-up           done 8.0 s" in text
    assert "cache in memory [12 MB]" in text
    assert "Trainer            done 3.2 s" in text


def test_on_a_terminal_the_count_the_note_and_the_time_left_are_shown():
    screen = Console(file=io.StringIO(), width=140, force_terminal=True, highlight=False)
    display = console.Display(screen)
    event = {"kind": "progress", "stage": "Trainer", "total": 400, "unit": "images"}
    with display:
        display.show({"t": 0.0, "kind": "stage", "name": "Trainer", "state": "start"})
        display.show({"t": 10.0, "done": 100, "note": "loss 0.5", **event})
        display.show({"t": 20.0, "done": 200, "note": "loss 0.4", **event})
    text = text_of(screen)
    assert "200/400 images" in text and "loss 0.4" in text and "0:20 left" in text


def test_warnings_stand_out(screen):
    text = shown(screen, {"kind": "warning", "text": "class [red] is rare"})
    assert "warning: class [red] is rare" in text


def test_a_result_says_what_happened_and_what_to_try(screen, tmp_path):
    result = Result(
        "one",
        "pushed",
        stages=[Stage("Trainer", 12.0, "complete"), Stage("Pusher", 0.1, "cached")],
        examples={"train": 1400, "test": 200},
        quarantined=3,
        pushed_to="/w/serving/model/1",
        version=1,
        report="/w/report.html",
    )
    console.show_result(result, RunDir(tmp_path), tmp_path)
    text = text_of(screen)
    for words in ("Trainer", "12.0", "cached", "Pushed", "1,400 train", "3 quarantined"):
        assert words in text
    for words in ("/w/serving/model/1", "/w/report.html", "safelight predict IMAGE --workdir"):
        assert words in text


def test_what_to_try_can_be_pasted_into_a_shell(screen, tmp_path):
    place = Path("/my models [1]") / ("long" * 30)
    console.show_result(Result("one", "pushed", pushed_to="/w/1"), RunDir(tmp_path), place)
    [line] = [line for line in text_of(screen).splitlines() if "safelight predict" in line]
    assert shlex.split(line.partition("try ")[2]) == [
        *("safelight", "predict", "IMAGE", "--workdir"),
        str(place),
    ]


def test_a_block_gives_its_reasons(screen, tmp_path):
    result = Result("one", "not_blessed", reasons=["accuracy 0.5 [0.4] is below 0.9"])
    console.show_result(result, RunDir(tmp_path), tmp_path)
    text = text_of(screen)
    assert "Not blessed" in text and "accuracy 0.5 [0.4] is below 0.9" in text
    assert "safelight predict" not in text
