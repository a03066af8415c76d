"""`safelight why`: runs of every ending, judged by the real gate, in the terminal and as JSON."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import events, runs
from pipeline.blessing import verdict
from pipeline.commands import why
from pipeline.config import Evaluate
from pipeline.errors import UsageError
from pipeline.report import outcome
from pipeline.report.collect import Record
from pipeline.runs import Result, RunDir
from pipeline.workdir import Workdir, open_workdir
from tests import reports
from tests.test_blessing_gate import LABELS, answers, evidence

BLOCKED, PUSHED = "20250304T050607-aa11", "20250305T050607-bb22"
REFUSED, FAILED, OPEN = "20250306T050607-cc33", "20250307T050607-dd44", "20250308T050607-ee55"


def ended(workdir: Workdir, run_id: str, kind: runs.Outcome, reasons=(), **artifacts) -> RunDir:
    run = reports.new_run(workdir, workdir.root / "data", run_id)
    result = Result(run_id=run_id, outcome=kind, reasons=list(reasons), version=4)
    reports.end(run, artifacts, result)
    return run


def judged(workdir: Workdir, key: str, ours: int, theirs: int) -> tuple[dict, dict]:
    """What the gate says of as many mistakes each, in other classes; and the node's output."""
    model = answers(LABELS, "b" * ours + "a" * (1000 - ours) + "b" * 1000)
    champion = answers(LABELS, "a" * (1000 + theirs) + "b" * (1000 - theirs), version=3)
    found = verdict.judge(evidence(model, champion), Evaluate())
    uri = reports.folder_with(workdir, "BlessingGate", key, "verdict.json", found)
    return found, {"blessing": uri}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Workdir:
    place = open_workdir(tmp_path_factory.mktemp("why") / "work")
    found, blessing = judged(place, "blocked", 200, 20)
    ended(place, BLOCKED, "not_blessed", found["reasons"], BlessingGate=blessing)
    _, blessing = judged(place, "pushed", 20, 25)
    ended(place, PUSHED, "pushed", BlessingGate=blessing)
    few = {
        "name": "few_images",
        "mode": "fail",
        "state": "fail",
        "feature": "label",
        "split": "test",
        "found": "'tank' has 0",
        "expected": "at least 2 a class",
        "message": "Too few images in split 'test': 'tank' has 0.",
    }
    run = ended(place, REFUSED, "invalid_data", ["Validation refused the data."])
    kept = run.refused("ValidationGate", "validation_report")
    kept.mkdir(parents=True)
    (kept / "validation.json").write_text(json.dumps({"checks": [few]}))
    run = ended(place, FAILED, "failed", ["The champion can't be compared with: it is damaged."])
    run.log.write_text("one\n[red]two[/red] postgres://me:secret@host\n")
    run = reports.new_run(place, place.root / "data", OPEN)
    events.configure(run.events)
    events.emit("stage", name="Trainer", state="start")
    events.configure(None)
    return place


def told(workdir: Workdir, run_id: str | None, monkeypatch) -> str:
    """The text on the terminal."""
    screen = Console(file=io.StringIO(), width=140, force_terminal=False, highlight=False)
    monkeypatch.setattr(why, "stdout", screen)
    why.command(workdir.root, run_id)
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def test_a_blocked_run(workdir, monkeypatch):
    text = told(workdir, BLOCKED, monkeypatch)
    lines = text.splitlines()
    assert lines[0] == f"Not blessed  run {BLOCKED}"
    # One sentence first, the report's own.
    sentence = why.answer(workdir.root, BLOCKED)
    assert text.replace("\n", " ").find(sentence) == len(lines[0]) + 1
    assert sentence == outcome.sentence(Record(workdir, RunDir(workdir.runs / BLOCKED)))
    order = ["Failed checks", "Against version 3: worse", "Answers that flipped", "Confused most"]
    places = [text.index(title) for title in order]
    assert places == sorted(places)
    assert "200 lost, 20 gained" in text
    for column in ("value", "bound", "interval", "asked"):
        assert column in text
    assert "worst_class_recall" in text and "accuracy (decides)" in text


def test_a_pushed_run(workdir, monkeypatch):
    text = told(workdir, PUSHED, monkeypatch)
    assert "is version 4 of" in text and "Failed checks" not in text
    assert "Against version 3: " in text


def test_refused_data(workdir, monkeypatch):
    text = told(workdir, REFUSED, monkeypatch)
    assert "Data refused" in text and "few_images" in text and "'tank' has 0" in text
    assert "at least 2 a class" in text and "allow it instead" in text


def test_a_failed_run(workdir, monkeypatch):
    text = told(workdir, FAILED, monkeypatch)
    assert "stopped" in text and "The champion can't be compared with" in text
    # The log's end, as it is; a password is nobody's business.
    assert "[red]two[/red]" in text and "secret" not in text


def test_a_run_that_was_killed_and_is_the_newest(workdir, monkeypatch):
    text = told(workdir, None, monkeypatch)
    assert OPEN in text and "at Trainer" in text


def test_json_has_it_all(workdir, capsys):
    returned = why.command(workdir.root, BLOCKED, as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(json.dumps(returned))
    assert printed["outcome"] == "not_blessed" and printed["answer"].endswith(".")
    assert [check["name"] for check in printed["failed"]] == ["champion"]
    assert printed["flipped"]["lost"] == 200 and printed["champion"]["verdict"] == "worse"
    refused = why.command(workdir.root, REFUSED, as_json=True)
    assert [check["name"] for check in refused["failed"]] == ["few_images"]


def test_an_unknown_run_is_answered_with_the_nearest(workdir):
    with pytest.raises(UsageError, match=f"Did you mean '{BLOCKED}'"):
        why.command(workdir.root, BLOCKED[:-1] + "2")
    with pytest.raises(UsageError, match="the beginning of"):
        why.command(workdir.root, "2025")
    with pytest.raises(UsageError, match="There is no workdir|is no workdir|does not exist"):
        why.command(Path("nowhere"))


def test_it_is_a_command(workdir):
    from typer.testing import CliRunner

    from pipeline.cli import app

    result = CliRunner().invoke(app, ["why", "--workdir", str(workdir.root), PUSHED])
    assert result.exit_code == 0
