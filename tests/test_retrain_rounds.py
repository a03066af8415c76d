"""Rounds without a training: what is taken, held back and recorded."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline import cli, registry
from pipeline.errors import Busy, DataRefused, UsageError
from pipeline.retrain import command, spans
from pipeline.retrain.book import Book
from pipeline.retrain.ledger import Ledger
from pipeline.retrain.rounds import Rounds
from pipeline.runs import Result, RunDir, new_run_id
from pipeline.workdir import open_workdir
from tests import made
from tests.spanned import HELD, decided, kinds, pushed, rounds, span, take


@pytest.fixture
def place(tmp_path):
    return pushed(tmp_path)


def look(one: Rounds, **options):
    with one.workdir.lock() as lock:
        return one.round(lock, **options)


def files(root: Path) -> dict[str, tuple[int, int]]:
    """Returns size and time of change of all that lies below, folders too."""
    return {
        str(path.relative_to(root)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in (root, *root.rglob("*"))
    }


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


def test_spans_of_another_folder_or_pattern_are_not_mixed_in(tmp_path, place):
    for number in (1, 2):
        span(tmp_path / "first", number)
        span(tmp_path / "second", number)
    span(tmp_path / "first", 3).rename(tmp_path / "first" / "day-3")
    take(rounds(place, tmp_path / "first"))
    before = files(place.root / "retrain")
    with pytest.raises(UsageError, match=r"lie elsewhere .*first/span-1.*or another --workdir"):
        take(rounds(place, tmp_path / "second"))
    with pytest.raises(UsageError, match="lie elsewhere"):
        take(rounds(place, tmp_path / "first", "retrain.pattern=day-{SPAN}"))
    assert files(place.root / "retrain") == before
    # The same folder by another name, and spans that now have versions, are the same spans.
    (tmp_path / "alias").symlink_to(tmp_path / "first")
    assert len(take(rounds(place, tmp_path / "alias" / ".." / "first")).latest()) == 2
    assert len(take(rounds(place, tmp_path / "alias")).latest()) == 2
    shutil.rmtree(tmp_path / "first" / "span-2")
    version = tmp_path / "first" / "span-1" / "v2"
    (tmp_path / "first" / "span-1").rename(tmp_path / "kept")
    version.parent.mkdir()
    (tmp_path / "kept").rename(version)
    versions = rounds(place, tmp_path / "first", "retrain.pattern=span-{SPAN}/v{VERSION}")
    record = take(versions).latest()[0]
    assert (record.revision, record.path) == (1, str(version))


def test_a_folder_of_spans_may_move(tmp_path, place):
    for number in (1, 2):
        span(tmp_path / "first", number)
    known = take(rounds(place, tmp_path / "first")).latest()
    (tmp_path / "first").rename(tmp_path / "second")
    shutil.rmtree(tmp_path / "second" / "span-2")
    moved = rounds(place, tmp_path / "second")
    with place.lock():
        arrivals = moved._arrivals(Book(moved.folder))
        assert arrivals.take() == []
    first, gone = Book(moved.folder).latest()
    assert (first.revision, first.fingerprint) == (1, known[0].fingerprint)
    assert first.path == first.scan["data"] == str(tmp_path / "second" / "span-1")
    # Its examples are still there, and train: that is said.
    assert gone == known[1]
    assert "first/span-2. What was read" in arrivals.gone()[0]


def test_dry_run_tells_a_golden_set_that_is_not_there(tmp_path, place):
    span(tmp_path / "data", 1)
    (tmp_path / "empty").mkdir()
    missing = ["retrain.golden=" + str(tmp_path / "golden")]
    # A training is due in a new workdir, and none in the other.
    for workdir, data in ((tmp_path / "new", "data"), (place.root, "empty")):
        with pytest.raises(DataRefused, match="golden"):
            command.command(workdir, tmp_path / data, overrides=missing, dry_run=True)


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
