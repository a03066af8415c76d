"""What gc frees and what it never touches, with a real ML Metadata store."""

from __future__ import annotations

import calendar
import contextlib
import json
import os
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ml_metadata import metadata_store
from ml_metadata.proto import metadata_store_pb2

from pipeline import registry, runs
from pipeline.commands import gc
from pipeline.errors import Busy, SafelightError
from pipeline.retrain.book import Book
from pipeline.runners.metadata import connection_config
from pipeline.runs import Request, Result, RunDir, write_json
from pipeline.trainer.checkpoints import Checkpoints, State
from pipeline.workdir import open_workdir
from tests.test_registry import FIRST, export


def store(workdir) -> metadata_store.MetadataStore:
    return metadata_store.MetadataStore(connection_config("", workdir.metadata))


def artifact(workdir, node: str, execution: int) -> Path:
    """Makes an artifact's directory, and its record in ML Metadata."""
    path = workdir.artifacts / node / "out" / str(execution)
    path.mkdir(parents=True)
    (path / "data").write_bytes(bytes(1000))
    kind = metadata_store_pb2.ArtifactType(name="Thing")
    number = store(workdir).put_artifact_type(kind)
    made = metadata_store_pb2.Artifact(
        type_id=number, uri=str(path), state=metadata_store_pb2.Artifact.LIVE
    )
    store(workdir).put_artifacts([made])
    return path


def created(number: int) -> str:
    return f"2026-01-0{number}T00:00:00Z"


def run(workdir, number: int, ended: bool = True, outcome: runs.Outcome = "pushed") -> Path:
    """Makes a run with one artifact; returns that."""
    record = RunDir(workdir.runs / f"2026010{number}T000000-0000")
    config = {"metadata": {"url": ""}}
    record.write_request(
        Request(record.root.name, created(number), "d", config, {}, [], {}, {}, {}, {}, spans=[])
    )
    path = artifact(workdir, "Trainer", number)
    write_json(record.artifacts, {"Trainer": {"out": str(path)}})
    if ended:
        record.write_result(Result(record.root.name, outcome))
    return path


def state(workdir, path: Path) -> int:
    [found] = store(workdir).get_artifacts_by_uri(str(path))
    return found.state


@pytest.fixture
def workdir(tmp_path):
    return open_workdir(tmp_path / "work")


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_record_that_can_not_be_read_stops_it(workdir, text):
    old, damaged, _ = run(workdir, 1), run(workdir, 2), run(workdir, 3)
    (workdir.runs / "20260102T000000-0000" / "artifacts.json").write_text(text)
    with pytest.raises(SafelightError, match=r"nothing has gone.*artifacts\.json"):
        gc.command(workdir.root, keep=2)
    assert old.is_dir() and damaged.is_dir()


def test_frees_what_nothing_needs_and_marks_it(workdir, capsys):
    old, kept = run(workdir, 1), run(workdir, 2)
    assert gc.command(workdir.root, keep=1, dry_run=True, as_json=True) == 0
    said = json.loads(capsys.readouterr().out)
    freed = {"freed": [str(old)], "kept": 1, "checkpoints": {}, "bytes": 1000}
    assert said == {**freed, "dry_run": True}
    assert old.is_dir() and state(workdir, old) == metadata_store_pb2.Artifact.LIVE
    gc.command(workdir.root, keep=1)
    assert "1 artifacts are gone" in capsys.readouterr().out
    assert not old.exists() and (kept / "data").is_file()
    assert state(workdir, old) == metadata_store_pb2.Artifact.DELETED
    assert state(workdir, kept) == metadata_store_pb2.Artifact.LIVE
    assert gc.plan(workdir, 1).going == ()


def test_never_what_is_served_can_be_served_again_or_is_unfinished(workdir, tmp_path):
    paths = [run(workdir, number) for number in (1, 2, 3)]
    unfinished, newest = run(workdir, 4, ended=False), run(workdir, 5)
    opened = registry.open(workdir.serving("model"))
    for number in (1, 2, 3):
        origin = replace(FIRST, run_id=f"2026010{number}T000000-0000")
        opened.publish(export(tmp_path / f"e{number}", f"f{number}"), origin)
    assert gc.plan(workdir, 1).going == ()
    opened.rollback("ann", "bad")
    assert gc.plan(workdir, 1).going == (paths[2],)
    gc.free(workdir, gc.plan(workdir, 1))
    assert all(path.is_dir() for path in (paths[0], paths[1], unfinished, newest))


def test_spans_that_can_still_train_stay(workdir):
    book = Book(workdir.root / "retrain")
    for number in (1, 2):
        facts = {"fingerprint": f"f{number}", "files": 3, "bytes": 30}
        book.take(number, workdir.root / f"span-{number}", facts, 1.0)
        artifact(workdir, f"ImageExampleGen.span-{number}-r1", number)
    book.quarantine(book.find(2), "blurred")
    going = gc.plan(workdir, 1).going
    assert [path.parts[-3] for path in going] == ["ImageExampleGen.span-2-r1"]


def test_what_an_interrupted_call_left_is_finished(workdir):
    old = run(workdir, 1)
    run(workdir, 2)
    old.rename(old.with_name(f".{old.name}.going"))
    gc.free(workdir, gc.plan(workdir, 1))
    assert state(workdir, old) == metadata_store_pb2.Artifact.DELETED
    assert not list(workdir.artifacts.glob("*/*/.*.going"))


def test_linked_files_give_nothing_back(workdir):
    old, kept = run(workdir, 1), run(workdir, 2)
    os.link(old / "data", kept / "link")
    assert gc.plan(workdir, 1).bytes == 0


def test_a_file_whose_every_link_goes_gives_its_bytes_back_once(workdir):
    # A window of spans links the newest span's examples.
    span, window, _ = run(workdir, 1), run(workdir, 2), run(workdir, 3)
    os.link(span / "data", window / "link")
    found = gc.plan(workdir, 1)
    assert (found.going, found.bytes) == ((span, window), 2000)


def test_not_while_a_run_holds_the_workdir(workdir):
    with workdir.lock(), pytest.raises(Busy):
        gc.command(workdir.root, keep=1)


def trained(workdir, name: str, number: int) -> Path:
    """Leaves the checkpoint of a training that ended an epoch an hour after run `number` began."""
    checkpoints = Checkpoints(workdir.checkpoints, name)
    checkpoints.save(State(weights=[np.zeros((100, 10), np.float32)]))
    return written(checkpoints.folder, number)


def searched(workdir, number: int) -> Path:
    """Leaves a search as it was killed: its state, and a trial's checkpoint below it."""
    folder = workdir.checkpoints / "search-5e"
    Checkpoints(folder, "trial-0001").save(State(weights=[np.zeros(10, np.float32)]))
    (folder / "state.json").write_text("{}")
    return written(folder, number)


def written(folder: Path, number: int) -> Path:
    then = calendar.timegm((2026, 1, number, 1, 0, 0))
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (then, then))
    return folder


def test_checkpoints_of_settings_that_were_given_up_go(workdir, capsys):
    run(workdir, 1, outcome="failed")
    run(workdir, 2, outcome="failed")
    run(workdir, 3)
    first, search = trained(workdir, "0a", 1), searched(workdir, 1)
    latest, newest = trained(workdir, "0b", 2), trained(workdir, "0c", 3)
    gc.command(workdir.root, keep=1, dry_run=True)
    size = (first / "state.npz").stat().st_size
    said = capsys.readouterr().out
    assert "2 checkpoints of training" in said and "would go" in said
    assert f"0a  {size / 1e6:.1f} MB" in said and "search-5e" in said and "0b" not in said
    assert first.is_dir()
    gc.command(workdir.root, keep=1, as_json=True)
    freed = json.loads(capsys.readouterr().out)
    assert set(freed["checkpoints"]) == {str(first), str(search)}
    assert freed["checkpoints"][str(first)] == size
    assert freed["bytes"] == 2000 + sum(freed["checkpoints"].values())
    assert {path.name for path in workdir.checkpoints.iterdir()} == {"0b", "0c"}
    # What stays is whole.
    for folder in (latest, newest):
        assert Checkpoints(workdir.checkpoints, folder.name).load() is not None


def test_the_newest_runs_can_all_be_gone_on_with(workdir):
    for number in (1, 2, 3):
        run(workdir, number, outcome="failed")
    folders = [trained(workdir, f"0{number}", number) for number in (1, 2, 3)]
    assert gc.plan(workdir, 3).checkpoints == {}
    assert list(gc.plan(workdir, 2).checkpoints) == folders[:1]


def test_a_run_without_an_end_may_still_train(workdir):
    run(workdir, 1, ended=False)
    killed = trained(workdir, "0a", 1)
    run(workdir, 2)
    assert gc.plan(workdir, 1).checkpoints == {}
    # Another one was begun and killed since: that one is what is gone on with.
    run(workdir, 3, ended=False)
    run(workdir, 4)
    assert list(gc.plan(workdir, 1).checkpoints) == [killed]
    # On a cluster it may train on: it wrote an epoch just now.
    os.utime(killed / "state.npz")
    assert gc.plan(workdir, 1).checkpoints == {}


def test_a_checkpoint_older_than_every_run_is_nobodys_to_free(workdir):
    run(workdir, 2)
    run(workdir, 3)
    trained(workdir, "0a", 1)
    assert gc.plan(workdir, 1).checkpoints == {}


def test_an_interrupted_call_leaves_no_half_of_a_checkpoint(workdir):
    run(workdir, 1)
    half = trained(workdir, "0a", 1)
    half.rename(half.with_name(".0a.going"))
    gc.free(workdir, gc.plan(workdir, 1))
    assert not list(workdir.checkpoints.iterdir())


def test_metadata_that_can_not_be_opened_is_told_before_anything_goes(workdir):
    old = run(workdir, 1)
    run(workdir, 2)
    workdir.metadata.write_bytes(b"no database" * 100)
    with pytest.raises(SafelightError, match=r"ML Metadata can't be reached .*nothing has gone"):
        gc.command(workdir.root, keep=1)
    assert (old / "data").is_file()
    assert not list(workdir.artifacts.glob("*/*/.*.going"))


def change(workdir, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(workdir.metadata)) as opened, opened:
        opened.execute(statement)


def test_metadata_that_can_not_be_written_leaves_all_in_its_place(workdir):
    old = run(workdir, 1)
    run(workdir, 2)
    run(workdir, 3)
    checkpoint = trained(workdir, "0a", 1)
    refuse = "CREATE TRIGGER refuse BEFORE UPDATE ON Artifact BEGIN SELECT RAISE(ABORT, 'no'); END"
    change(workdir, refuse)
    with pytest.raises(SafelightError, match=r"ML Metadata can't be reached .*nothing has gone"):
        gc.command(workdir.root, keep=1)
    assert (old / "data").is_file() and checkpoint.is_dir()
    change(workdir, "DROP TRIGGER refuse")
    gc.command(workdir.root, keep=1)
    assert not old.exists() and not checkpoint.exists()


def test_on_a_full_disk_the_files_go_first(workdir, monkeypatch):
    old, kept = run(workdir, 1), run(workdir, 2)
    checkpoint = trained(workdir, "0a", 1)
    change(
        workdir, "CREATE TRIGGER full BEFORE UPDATE ON Artifact BEGIN SELECT RAISE(FAIL, ''); END"
    )
    full = shutil.disk_usage(workdir.root)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(SafelightError, match="the files are gone, and it does not know so yet"):
        gc.command(workdir.root, keep=1)
    assert not (old / "data").exists() and not old.exists() and not checkpoint.exists()
    assert (kept / "data").is_file() and state(workdir, old) == metadata_store_pb2.Artifact.LIVE
    change(workdir, "DROP TRIGGER full")
    assert gc.command(workdir.root, keep=1) == 0
    assert state(workdir, old) == metadata_store_pb2.Artifact.DELETED
    assert not list(workdir.root.glob("*/*/*/.*.going"))


def test_a_damaged_record_is_told_before_anything_goes(workdir):
    old = run(workdir, 1)
    run(workdir, 2)
    folder = workdir.runs / "20260101T000000-0000"
    (folder / "run.json").write_text("{")
    with pytest.raises(SafelightError, match="20260101T000000-0000/run.json can't be read"):
        gc.command(workdir.root, keep=1)
    assert old.is_dir()
