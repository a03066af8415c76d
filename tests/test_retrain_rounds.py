"""Rounds without a training: what is taken, held back, recorded; and what an operator decides."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline import cli, config, registry
from pipeline.commands import rollback
from pipeline.errors import Busy, NotBlessed, SafelightError, UsageError
from pipeline.retrain import command, spans
from pipeline.retrain.book import Book
from pipeline.retrain.evidence import Evidence
from pipeline.retrain.ledger import Ledger
from pipeline.retrain.rounds import Rounds
from pipeline.runs import Result, RunDir, new_run_id
from pipeline.workdir import open_workdir
from tests import made
from tests.test_registry import FIRST, export

COUNTS = {"blue": 4, "red": 4}
HELD = ("retrain.new_spans=0", "retrain.max_age_days=0")


@pytest.fixture
def place(tmp_path):
    """A workdir whose served version is of now; no training is due in it."""
    workdir = open_workdir(tmp_path / "work")
    registry.open(workdir.serving("model")).publish(export(tmp_path / "export"), FIRST)
    return workdir


def rounds(workdir, root: Path, *overrides: str, clock=time.time, **more) -> Rounds:
    effective = config.load(overrides=[*HELD, *overrides])
    return Rounds(workdir, root, effective, lambda event: None, clock, **more)


def look(one: Rounds, **options):
    with one.workdir.lock() as lock:
        return one.round(lock, **options)


def decided(one: Rounds):
    """Takes, decides and records as a round does, and leaves the training out."""
    with one.workdir.lock():
        return one._decide("").done


def files(root: Path) -> dict[str, tuple[int, int]]:
    """Returns size and time of change of all that lies below, folders too."""
    return {
        str(path.relative_to(root)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in (root, *root.rglob("*"))
    }


def span(root: Path, number: int, complete: bool = True) -> Path:
    folder = made.class_folders(root / f"span-{number}", COUNTS)
    if complete:
        (folder / "_SUCCESS").touch()
    return folder


def take(one: Rounds) -> Book:
    """Takes the spans into the book, without the processes that look into them."""
    with one.workdir.lock():
        one._take(Book(one.folder))
    return Book(one.folder)


def kinds(workdir) -> list[str]:
    return [line["kind"] for line in Ledger(workdir.root / "retrain").read()]


def test_nothing_there_is_nothing_due_and_recorded(tmp_path):
    workdir = open_workdir(tmp_path / "work")
    (tmp_path / "data").mkdir()
    done = look(rounds(workdir, tmp_path / "data"))
    assert not done.decision.due and done.result is None
    assert kinds(workdir) == ["decision"]


def test_dry_run_writes_nothing_at_all(tmp_path, capsys):
    workdir = open_workdir(tmp_path / "work")
    span(tmp_path / "data", 1)
    (tmp_path / "data" / "span-2" / "red").mkdir(parents=True)
    (tmp_path / "data" / "span-2" / "_SUCCESS").touch()  # and nothing in it: refused
    before = files(tmp_path)
    assert command.command(workdir.root, tmp_path / "data", dry_run=True, as_json=True) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["due"] and done["window"] == ["span-1-r1"] and done["result"] is None
    assert "Span 2 is put aside" in done["quarantined"][0]
    assert files(tmp_path) == before
    # A workdir that is not there yet is not made.
    command.command(tmp_path / "none", tmp_path / "data", dry_run=True)
    assert files(tmp_path) == before


def test_dry_run_tells_a_damaged_registry_and_leaves_it(tmp_path, place, capsys):
    (tmp_path / "data").mkdir()
    (place.serving("model") / "registry.json").write_text("{")
    before = files(tmp_path)
    command.command(place.root, tmp_path / "data", overrides=HELD, dry_run=True)
    assert files(tmp_path) == before


def test_a_span_waits_until_it_is_complete(tmp_path):
    workdir, data = open_workdir(tmp_path / "work"), tmp_path / "data"
    folder = span(data, 1, complete=False)
    now = time.time()
    one = rounds(workdir, data, "retrain.settle_minutes=5", clock=lambda: now)
    assert decided(one).waiting == ("span-1 is not complete yet",)
    now += 400
    assert decided(one).waiting == ()
    assert [record.number for record in Book(workdir.root / "retrain").latest()] == [1]
    # Changed later: another revision, once that has settled.
    made.picture("red", 50).save(folder / "red" / "late.png")
    assert decided(one).decision.due
    assert Book(workdir.root / "retrain").find(1).revision == 2


def test_half_a_span_waits_and_a_whole_one_that_is_broken_is_put_aside(tmp_path):
    workdir, data = open_workdir(tmp_path / "work"), tmp_path / "data"
    (data / "span-1" / "red").mkdir(parents=True)
    now = time.time() + 1
    one = rounds(workdir, data, clock=lambda: now)
    assert len(look(one).waiting) == 1
    (data / "span-1" / "_SUCCESS").touch()
    assert look(one).waiting == ()
    record = Book(workdir.root / "retrain").find(1)
    assert record.state == "quarantined" and "image" in record.reason
    look(one)
    assert kinds(workdir).count("quarantine") == 1
    # Mended, it is taken.
    span(data, 1)
    assert decided(one).window == ("span-1-r2",)


def test_a_span_deleted_while_its_end_is_awaited_is_no_error(tmp_path, monkeypatch):
    workdir, data = open_workdir(tmp_path / "work"), tmp_path / "data"
    doomed = data / "span-1" / "red"
    doomed.mkdir(parents=True)
    span(data, 2)
    last_change = spans.last_change

    def deleted(one):
        shutil.rmtree(one.path)
        return last_change(one)

    monkeypatch.setattr(spans, "last_change", deleted)
    assert [one.number for one in take(rounds(workdir, data)).usable()] == [2]


def test_a_deleted_span_is_no_error(tmp_path):
    workdir, data = open_workdir(tmp_path / "work"), tmp_path / "data"
    span(data, 1)
    span(data, 2)
    one = rounds(workdir, data)
    decided(one)
    shutil.rmtree(data / "span-2")
    assert decided(one).waiting == ()


def test_a_pin_and_the_budget_hold_a_training_back(tmp_path, place):
    data = tmp_path / "data"
    span(data, 1)
    one = rounds(place, data, "retrain.max_age_days=0.000001", "retrain.runs_per_day=1")
    book = take(one)
    book.mark_trained({book.find(1).fingerprint})
    time.sleep(1.1)
    registry.open(place.serving("model")).pin("ann", "audit")
    assert "pinned: audit" in look(one).held
    registry.open(place.serving("model")).unpin()
    Ledger(place.root / "retrain").add(time.time(), "attempt", run_id="x")
    Ledger(place.root / "retrain").add(time.time(), "outcome", run_id="x", outcome="pushed")
    assert "runs_per_day is 1" in look(one).held
    last = Ledger(place.root / "retrain").last("decision")
    assert last is not None and last["due"] and last["held"]


def test_an_attempt_whose_end_was_not_recorded_is_closed(tmp_path, place):
    data = tmp_path / "data"
    span(data, 1)
    one = rounds(place, data)
    book = take(one)
    run = RunDir(place.runs / new_run_id())
    with place.lock():
        request = one._request(book.usable(), run.root.name, None)
    run.write_request(request)
    run.write_result(Result(run.root.name, "not_blessed", reasons=["too weak"]))
    one.ledger.add(1.0, "attempt", run_id=run.root.name)
    done = look(one)
    assert not done.decision.due
    assert Book(place.root / "retrain").find(1).trained
    outcome = one.ledger.last("outcome")
    assert outcome is not None and outcome["outcome"] == "not_blessed"


def test_refused_data_puts_the_new_spans_aside_and_the_champion_stays(tmp_path, place):
    data = tmp_path / "data"
    span(data, 1)
    span(data, 2)
    one = rounds(place, data)
    book = take(one)
    book.mark_trained({book.find(1).fingerprint})
    result = Result("r", "invalid_data", reasons=["brightness is out of range"])
    one._close(book, result, book.usable(), "r")
    states = {record.number: record.state for record in Book(place.root / "retrain").latest()}
    assert states == {1: "taken", 2: "quarantined"}
    assert "brightness" in book.find(2).reason and "run r" in book.find(2).reason
    assert registry.read(place.serving("model")).current == 1


def test_two_at_once_are_busy(tmp_path, place):
    (tmp_path / "data").mkdir()
    with place.lock(), pytest.raises(Busy):
        command.command(place.root, tmp_path / "data", once=True)


def test_exactly_one_way_to_run(tmp_path):
    for flags in ({}, {"once": True, "watch": True}):
        with pytest.raises(UsageError, match="one of --once, --watch and --dry-run"):
            command.command(tmp_path / "work", tmp_path, **flags)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--watch --now why", "--now means nothing beside --watch"),
        ("--watch --wait", "--wait means nothing beside --watch"),
        ("--watch --json", "--json means nothing beside --watch"),
        ("--dry-run --wait", "--wait means nothing beside --dry-run"),
        ("--once --package run.yaml", "--package means nothing beside --runner local"),
        ("--once --reason why", "--reason means nothing without --release-span"),
        ("--release-span 4 --reason why --dry-run", "--dry-run means nothing beside --release-"),
        ("--release-span 4 --reason why --once", "--once means nothing beside --release-span"),
        ("--release-span 4 --reason why --now why", "--now means nothing beside --release-span"),
        ("--release-span 4 --reason why --json", "--json means nothing beside --release-span"),
    ],
)
def test_an_option_that_would_be_dropped_is_refused(tmp_path, place, words, named):
    data = tmp_path / "data"
    span(data, 4)
    book = take(rounds(place, data))
    book.quarantine(book.find(4), "blurred")
    before = files(tmp_path)
    given = ["retrain", "--workdir", str(place.root), "--spans", str(data), *words.split()]
    ended = CliRunner().invoke(cli.app, given)
    assert isinstance(ended.exception, UsageError) and str(ended.exception).startswith(named)
    assert files(tmp_path) == before


def watch(workdir: Path, data: Path) -> subprocess.Popen[str]:
    code = (
        "import sys; from pathlib import Path; from pipeline.retrain import command; "
        "from pipeline.errors import SafelightError\n"
        "try: sys.exit(command.command(Path(sys.argv[1]), Path(sys.argv[2]), watch=True, "
        "overrides=['retrain.port=0', 'retrain.new_spans=0', 'retrain.poll_seconds=600']))\n"
        "except SafelightError as error: sys.stderr.write(str(error)); sys.exit(error.exit_code)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(workdir), str(data)], stderr=subprocess.PIPE, text=True
    )


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_daemon_answers_wakes_and_stops_cleanly(tmp_path, place):
    data = tmp_path / "data"
    data.mkdir()
    running = watch(place.root, data)
    try:
        assert running.stderr is not None
        address = running.stderr.readline().split()[-1]
        wait_for(lambda: kinds(place))
        health = json.loads(urllib.request.urlopen(address + "healthz").read())
        assert health["healthy"] is True
        # A second one is refused, and the first goes on.
        second = watch(place.root, data)
        _, said = second.communicate(timeout=60)
        assert second.returncode == 5 and "Another" in said
        # A new folder wakes it long before its next poll.
        before = len(kinds(place))
        (data / "other").mkdir()
        wait_for(lambda: len(kinds(place)) > before)
        wait_for(
            lambda: b"safelight_version 1.0" in urllib.request.urlopen(address + "metrics").read()
        )
        running.send_signal(signal.SIGTERM)
        _, said = running.communicate(timeout=30)
        assert running.returncode == 0 and "goes on from here" in said
    finally:
        if running.poll() is None:
            running.kill()
            running.wait()


def test_daemon_goes_on_behind_an_error_whatever_its_words(tmp_path, place):
    running = watch(place.root, tmp_path / "[" / "x]")  # a closing tag, for the terminal
    try:
        assert running.stderr is not None
        address = running.stderr.readline().split()[-1]

        def health():
            try:
                return urllib.request.urlopen(address + "healthz").read()
            except urllib.error.HTTPError as error:  # 503: it is not healthy
                return error.read()

        wait_for(lambda: b"[/x]" in health())
        time.sleep(0.2)
        assert running.poll() is None
        running.send_signal(signal.SIGTERM)
        running.communicate(timeout=30)
        assert running.returncode == 0
    finally:
        if running.poll() is None:
            running.kill()
            running.wait()


def test_rollback_pin_and_unpin_commands(tmp_path, place, capsys):
    root = place.serving("model")
    registry.open(root).publish(export(tmp_path / "e2", "f2"), replace(FIRST, run_id="r2"))
    data = tmp_path / "data"
    span(data, 7)
    take(rounds(place, data))
    with pytest.raises(UsageError, match="reason"):
        rollback.rollback(place.root, " ")
    with pytest.raises(UsageError, match="Span 9 is not known"):
        rollback.rollback(place.root, "why", quarantine=9)
    assert registry.read(root).current == 2
    assert rollback.pin(place.root, "audit") == 0
    with pytest.raises(NotBlessed, match="pinned"):
        rollback.rollback(place.root, "why")
    rollback.unpin(place.root)
    capsys.readouterr()
    assert rollback.rollback(place.root, "blurred", quarantine=7, as_json=True) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["version"], printed["restores"], printed["rolls_back"]) == (3, 1, 2)
    assert printed["by"] == rollback.operator() and printed["why"] == "blurred"
    assert Book(place.root / "retrain").find(7).state == "quarantined"
    assert kinds(place) == ["pin", "unpin", "quarantine", "rollback"]


@pytest.fixture
def blamed(tmp_path, place):
    """The workdir with two more versions, the last of which span 7 has spoilt."""
    for number in (2, 3):
        source = export(tmp_path / f"e{number}", f"f{number}")
        origin = replace(FIRST, run_id=f"r{number}")
        registry.open(place.serving("model")).publish(source, origin)
    span(tmp_path / "data", 7)
    take(rounds(place, tmp_path / "data"))
    return place


def blame(place, **more) -> tuple[int | None, str, list[str]]:
    """Rolls back because of span 7; returns what is served, the span's state, and the ledger."""
    assert rollback.rollback(place.root, "blurred", quarantine=7, **more) == 0
    return stands(place)


def stands(place) -> tuple[int | None, str, list[str]]:
    served = registry.read(place.serving("model")).current
    return served, Book(place.root / "retrain").find(7).state, kinds(place)


def test_a_refused_rollback_quarantines_nothing(blamed):
    with pytest.raises(UsageError, match="version 3"):
        blame(blamed, to=3)
    rollback.pin(blamed.root, "audit")
    with pytest.raises(NotBlessed, match="pinned"):
        blame(blamed)
    assert stands(blamed) == (3, "taken", ["pin"])


def test_a_span_that_can_not_be_quarantined_leaves_what_is_served(blamed):
    in_the_way = blamed.root / "retrain" / ".spans.json.new"
    in_the_way.mkdir()
    with pytest.raises(SafelightError, match="nothing has changed"):
        blame(blamed)
    assert stands(blamed) == (3, "taken", [])
    in_the_way.rmdir()
    assert blame(blamed) == (4, "quarantined", ["quarantine", "rollback"])


def test_a_rollback_that_died_before_it_published_is_made_by_the_same_command(blamed, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(registry.Registry, "rollback", dies)
        with pytest.raises(KeyboardInterrupt):
            blame(blamed)
    assert stands(blamed) == (3, "quarantined", ["quarantine"])
    assert blame(blamed) == (4, "quarantined", ["quarantine", "quarantine", "rollback"])


@pytest.mark.parametrize("to", [None, 2])
def test_a_rollback_that_died_behind_its_push_goes_back_no_further(blamed, monkeypatch, to, capsys):
    with monkeypatch.context() as patched:
        patched.setattr(registry.Registry, "commit", dies)
        with pytest.raises(KeyboardInterrupt):
            blame(blamed, to=to)
    served, state, told = blame(blamed, to=to)
    assert (served, state, told[-1]) == (4, "quarantined", "rollback")
    assert "not recorded" in capsys.readouterr().err
    statuses = [one.status for one in registry.read(blamed.serving("model")).entries]
    assert statuses == ["retired", "retired", "rolled_back", "live"]
    # Recorded now: who asks once more means it.
    assert rollback.rollback(blamed.root, "blurred") == 0
    assert registry.read(blamed.serving("model")).current == 5


def test_a_ledger_that_can_not_be_written_ends_no_command(blamed, capsys):
    ledger = blamed.root / "retrain" / "ledger.jsonl"
    ledger.mkdir()
    assert blame(blamed, as_json=True) == (4, "quarantined", [])
    said = capsys.readouterr()
    assert json.loads(said.out)["version"] == 4
    assert "the rollback is done, and the ledger does not have it" in said.err
    assert rollback.pin(blamed.root, "audit") == 0
    assert rollback.unpin(blamed.root) == 0
    assert rollback.release(blamed.root, 7, "looked") == 0
    ledger.rmdir()
    assert blame(blamed) == (4, "quarantined", ["quarantine", "rollback"])


def dies(*given, **more):
    raise KeyboardInterrupt


def test_commands_without_a_model(tmp_path):
    workdir = open_workdir(tmp_path / "work")
    with pytest.raises(UsageError, match="Nothing has been pushed"):
        rollback.rollback(workdir.root, "why")
    for name in ("a", "b"):
        registry.open(workdir.serving(name)).publish(export(tmp_path / name), FIRST)
    with pytest.raises(UsageError, match="--model-name. There is: a, b"):
        rollback.pin(workdir.root, "why")
    assert rollback.pin(workdir.root, "why", model="b") == 0


def test_a_span_is_released_by_an_operator_and_not_doubted_again(tmp_path, place):
    data = tmp_path / "data"
    span(data, 4)
    one = rounds(place, data)
    book = take(one)
    for wrong, said in ((4, "in no quarantine"), (9, "Span 9 is not known")):
        with pytest.raises(UsageError, match=said):
            rollback.release(place.root, wrong, "looked at them")
    doubtful = {"images": 8, "moved": 0.1, "chance": 0.2}
    labels = {"labelled": 200, "contradicted": 150, "usual": 0.05, "usual_images": 200}
    keep = Evidence(one.folder, place, RunDir(place.runs / "r1"), one.config)
    file = one.folder / "evidence" / keep._name(book.find(4))
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({**doubtful, "labels": labels}))
    put_aside = decided(one)
    assert "labels look wrong" in put_aside.quarantined[0]
    assert Book(one.folder).find(4).state == "quarantined"
    with pytest.raises(UsageError, match="reason"):
        rollback.release(place.root, 4, "")
    assert rollback.release(place.root, 4, "they are right") == 0
    again = decided(one)
    assert again.quarantined == ()
    assert [record.number for record in Book(one.folder).new()] == [4]
    assert kinds(place) == ["quarantine", "decision", "release", "decision"]


def test_a_span_that_could_not_be_read_is_not_released(tmp_path, place):
    data = tmp_path / "data"
    (data / "span-1" / "red").mkdir(parents=True)
    (data / "span-1" / "_SUCCESS").touch()
    decided(rounds(place, data))
    with pytest.raises(UsageError, match="Mend its files"):
        rollback.release(place.root, 1, "why")
