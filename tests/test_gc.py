"""What gc frees and what it never touches, with a real ML Metadata store."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from ml_metadata import metadata_store
from ml_metadata.proto import metadata_store_pb2

from pipeline import registry
from pipeline.commands import gc
from pipeline.errors import Busy
from pipeline.retrain.book import Book
from pipeline.runners.metadata import connection_config
from pipeline.runs import Request, Result, RunDir, write_json
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


def run(workdir, number: int, ended: bool = True) -> Path:
    """Makes a run with one artifact; returns that."""
    record = RunDir(workdir.runs / f"2026010{number}T000000-0000")
    config = {"metadata": {"url": ""}}
    record.write_request(
        Request(record.root.name, "", "d", config, {}, [], {}, {}, {}, {}, spans=[])
    )
    path = artifact(workdir, "Trainer", number)
    write_json(record.artifacts, {"Trainer": {"out": str(path)}})
    if ended:
        record.write_result(Result(record.root.name, "pushed"))
    return path


def state(workdir, path: Path) -> int:
    [found] = store(workdir).get_artifacts_by_uri(str(path))
    return found.state


@pytest.fixture
def workdir(tmp_path):
    return open_workdir(tmp_path / "work")


def test_frees_what_nothing_needs_and_marks_it(workdir, capsys):
    old, kept = run(workdir, 1), run(workdir, 2)
    assert gc.command(workdir.root, keep=1, dry_run=True, as_json=True) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"freed": [str(old)], "kept": 1, "bytes": 1000, "dry_run": True}
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


def test_not_while_a_run_holds_the_workdir(workdir):
    with workdir.lock(), pytest.raises(Busy):
        gc.command(workdir.root, keep=1)
