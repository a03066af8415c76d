"""What retraining survives, with real causes: a full disk, a span that vanishes, a clock set back.

The full disk is a small tmpfs where this process may mount one, as root may in most containers;
elsewhere a limit of the size of files (RLIMIT_FSIZE), which stops the same writes with EFBIG.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import registry
from pipeline.errors import SafelightError
from pipeline.retrain.book import Book, Record
from pipeline.retrain.evidence import Evidence
from pipeline.retrain.intake import EVIDENCE
from pipeline.retrain.ledger import Ledger
from pipeline.runs import Request, RunDir, write_json
from pipeline.workdir import open_workdir
from tests.spanned import decided, kinds, rounds, span, take
from tests.test_registry import FIRST, export

_SIZE = 2_000_000
DAY = 86_400.0
Full = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Full]]:
    """A folder, and a context in which nothing more can be written there."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        yield folder, _small_files_only
        return
    try:
        yield folder, lambda: _filled(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def _filled(folder: Path) -> Iterator[None]:
    ballast = folder / "ballast"
    with pytest.raises(OSError, match="No space left"), open(ballast, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    try:
        yield
    finally:
        ballast.unlink()


@contextmanager
def _small_files_only() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_and_leaves_what_is_served(tmp_path, disk):
    folder, full = disk
    workdir = open_workdir(folder / "work")
    root = workdir.serving("model")
    registry.open(root).publish(export(tmp_path / "e1"), FIRST)
    challenger = export(tmp_path / "e2", "f2")
    data = tmp_path / "data"
    span(data, 1)
    one = rounds(workdir, data)
    with workdir.lock(), full():
        with pytest.raises(OSError, match=r"No space left|File too large"):
            one._arrivals(Book(one.folder)).take()
        with pytest.raises(SafelightError, match="could not be published"):
            registry.open(root).publish(challenger, replace(FIRST, run_id="r2"))
        assert registry.read(root).current == 1
    # With space again, everything goes on from where it was.
    opened = registry.open(root)
    assert opened.current == 1 and [path.name for path in root.iterdir()].count("1") == 1
    assert not list(root.glob(".*.incoming"))
    assert [record.number for record in take(one).new()] == [1]
    assert opened.publish(challenger, replace(FIRST, run_id="r2")).version == 2


def test_a_registry_that_can_not_be_written_behind_the_rename_is_finished_later(tmp_path, disk):
    folder, full = disk
    root = folder / "model"
    registry.open(root).publish(export(tmp_path / "e1"), FIRST)
    opened = registry.open(root)
    commit = opened.commit

    def on_a_full_disk(entry):
        with full():
            commit(entry)

    opened.commit = on_a_full_disk
    with pytest.raises(SafelightError, match="the next command puts it right"):
        opened.publish(export(tmp_path / "e2", "f2"), replace(FIRST, run_id="r2"))
    again = registry.open(root)
    champion = again.champion()
    assert champion is not None and (champion.version, champion.run_id) == (2, "r2")


@pytest.fixture
def looking(tmp_path, disk) -> tuple[Evidence, Record, Path]:
    """Evidence on the disk, a span, and the file that what is found of it is kept in."""
    folder, _ = disk
    workdir = open_workdir(folder / "work")
    span(tmp_path / "data", 1)
    one = rounds(workdir, tmp_path / "data")
    [record] = take(one).new()
    evidence = Evidence(one.folder, workdir, RunDir(workdir.runs / "r1"), one.config)
    return evidence, record, one.folder / "evidence" / evidence._name(record)


def _asked(missing) -> Request:
    name = f"intake-{time.monotonic_ns()}"
    return Request(name, "", "", {}, {}, [], {}, {}, {}, {})


@pytest.mark.parametrize("content", [b"", b'{"images": 8', b"\xff", b"[]"])
def test_evidence_that_is_damaged_is_found_again(looking, monkeypatch, content):
    evidence, record, file = looking
    file.parent.mkdir()
    file.write_bytes(content)
    monkeypatch.setattr(subprocess, "run", _finds(record, {"images": 8}))
    assert evidence.of([record], _asked) == {record.name: {"images": 8}}
    monkeypatch.undo()
    assert evidence.of([record], _asked) == {record.name: {"images": 8}}  # known: nobody looks


def test_a_full_disk_leaves_no_half_of_evidence(looking, disk, monkeypatch):
    evidence, record, file = looking
    _, full = disk
    with ExitStack() as until:
        finds = _finds(record, {"images": 8, "reasons": ["x" * 5000]})

        def and_fills_the_disk(arguments, **more):
            finds(arguments)
            until.enter_context(full())

        monkeypatch.setattr(subprocess, "run", and_fills_the_disk)
        with pytest.raises(OSError, match=r"No space left|File too large"):
            evidence.of([record], _asked)
        monkeypatch.undo()
    assert not file.exists()


def _finds(record: Record, facts: dict) -> Callable[..., None]:
    """Returns a stand-in for the process that looks: starting it takes a minute."""

    def run(arguments, **more):
        write_json(Path(arguments[-1]) / EVIDENCE, {record.name: facts})

    return run


def test_a_span_of_somebody_elses_is_put_aside_and_the_others_go_on(public):
    data, now = public / "data", time.time()
    closed = span(data, 1)
    span(data, 2)
    closed.chmod(0)
    with _nobody():
        workdir = open_workdir(public / "work")
        one = rounds(workdir, data, "retrain.settle_minutes=5", clock=lambda: now)
        waits = decided(one)
        assert (
            "span-1" in waits.waiting[0]
            and "can't be read (Permission denied)" in (waits.waiting[0])
        )
        assert [record.number for record in Book(one.folder).usable()] == [2]
        now += 301
        done = decided(one)
        assert len(done.quarantined) == 1 and "can't be read" in done.quarantined[0]
        assert not done.waiting and done.window == ("span-2-r1",)
        again = decided(one)
        assert not again.waiting and not again.quarantined
    closed.chmod(0o755)
    with _nobody():
        take(one)
        assert [record.name for record in Book(one.folder).usable()] == ["span-1-r2", "span-2-r1"]


@pytest.mark.parametrize("mode", [0o644, 0o311])
def test_half_closed_spans_are_put_aside_too(public, mode):
    data, now = public / "data", time.time()
    closed = span(data, 1)
    span(data, 2)
    closed.chmod(mode)
    with _nobody():
        workdir = open_workdir(public / "work")
        one = rounds(workdir, data, "retrain.settle_minutes=5", clock=lambda: now)
        take(one)
        now += 301
        take(one)
        assert [(one.number, one.state) for one in Book(one.folder).latest()] == [
            (1, "quarantined"),
            (2, "taken"),
        ]


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody may reach and write to; pytest's own is closed to others."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        try:
            yield folder
        finally:
            for path in folder.glob("data/span-*"):
                path.chmod(0o755)


@contextmanager
def _nobody() -> Iterator[None]:
    """Root may read everything: it is nobody meanwhile."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_clock_that_jumps_back_repeats_nothing_and_waits_for_nothing(tmp_path):
    workdir, data = open_workdir(tmp_path / "work"), tmp_path / "data"
    registry.open(workdir.serving("model")).publish(export(tmp_path / "e"), FIRST)
    span(data, 1)
    now = time.time() + 100 * DAY
    keys = ("retrain.max_age_days=1", "retrain.runs_per_day=1", "retrain.cron=0 3 * * *")
    one = rounds(workdir, data, *keys, clock=lambda: now)
    take(one).mark_trained({Book(one.folder).find(1).fingerprint})
    assert decided(one).held == ""
    one.ledger.add(now, "attempt", run_id="a")
    one.ledger.add(now, "outcome", run_id="a", outcome="not_blessed")
    assert "runs_per_day" in decided(one).held
    now -= 300 * DAY  # before the champion, the span, and every line of the ledger
    back = decided(one)
    assert not back.decision.due and back.waiting == ()
    (data / "span-2" / "red").mkdir(parents=True)
    assert len(decided(one).waiting) == 1
    assert Book(one.folder).find(1).revision == 1
    now += 302 * DAY
    assert decided(one).decision.due
    times = [line["t"] for line in Ledger(one.folder).read()]
    assert times != sorted(times)


@pytest.mark.slow
@pytest.mark.parametrize("all_of_it", [True, False])
def test_a_span_deleted_while_it_is_read_is_put_off_not_put_aside(tmp_path, all_of_it):
    workdir, data = open_workdir(tmp_path / "work"), tmp_path / "data"
    registry.open(workdir.serving("model")).publish(export(tmp_path / "e"), FIRST)
    write_json(_run_of(workdir).artifacts, {})
    span(data, 1)
    doomed = span(data, 2)
    one = rounds(workdir, data, "retrain.new_spans=1", "retrain.label_noise=0")
    request = one._request

    def then_delete(*given, **more):
        found = request(*given, **more)
        for path in [doomed] if all_of_it else sorted(doomed.glob("red/*")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        # The champion here is no model that could be asked.
        return replace(found, inputs={**found.inputs, "champion_uri": ""})

    one._request = then_delete
    done = decided(one)
    assert "span-2-r1" not in done.window
    assert "unread" in kinds(workdir)
    assert Book(one.folder).find(2).state == "taken"
    assert registry.read(workdir.serving("model")).current == 1


def _run_of(workdir) -> RunDir:
    run = RunDir(workdir.runs / FIRST.run_id)
    run.root.mkdir(parents=True)
    return run
