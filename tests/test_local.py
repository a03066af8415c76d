"""What is settled before a run's worker starts: choices from the data, room on the disk."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from pipeline import config as configuration
from pipeline import registry
from pipeline.commands import why
from pipeline.errors import ConfigError, SafelightError
from pipeline.ingest.scan import scan
from pipeline.runners import local, worker
from pipeline.workdir import open_workdir
from tests import made, signals
from tests.test_registry import FIRST, export

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def colours(tmp_path):
    return made.class_folders(tmp_path / "colours", {"red": 4, "blue": 4})


def resolved(data, *overrides):
    effective = configuration.load(None, overrides)
    return local.resolve(effective.config, scan(str(data), effective.config.ingest))


def test_what_is_left_open_is_chosen_from_the_data_and_said(colours):
    config, said = resolved(colours)
    assert (config.transform.image_size, config.transform.channels) == (32, 3)
    assert config.train.preset == "cifar10-cnn" and config.train.epochs == 10
    assert config.train.batch_size == 32
    assert "train.preset = cifar10-cnn" in said and len(said) == 5


def test_grey_digits_get_the_digits_network(tmp_path):
    data = made.class_folders(tmp_path / "d", {"red": 3, "white": 3}, size=(28, 28), grey=True)
    config, _ = resolved(data)
    assert (config.transform.image_size, config.transform.channels) == (28, 1)
    assert config.train.preset == "mnist-cnn"


def test_what_is_given_is_not_chosen(colours):
    config, said = resolved(
        colours, "transform.image_size=48", "train.preset=image64-cnn", "train.epochs=2"
    )
    assert config.transform.image_size == 48 and config.train.preset == "image64-cnn"
    assert said == ["transform.channels = 3", "train.batch_size = 32"]


def test_without_a_readable_header_the_size_has_to_be_given(colours):
    for path in colours.rglob("*.png"):
        path.write_bytes(b"not an image")
    with pytest.raises(ConfigError, match=r"--set transform\.image_size"):
        resolved(colours)
    config, _ = resolved(colours, "transform.image_size=32", "transform.channels=3")
    assert config.transform.image_size == 32


def test_too_little_disk_is_said_before_anything_starts(colours, tmp_path, monkeypatch):
    workdir = open_workdir(tmp_path / "work")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12 - 1000, 1000))
    effective = configuration.load()
    found = scan(str(colours), effective.config.ingest)
    with pytest.raises(SafelightError, match="Too little disk.*Free some space"):
        local.prepare(workdir, effective, found)
    assert not workdir.runs.exists()


def test_a_request_holds_all_that_the_worker_needs(colours, tmp_path):
    workdir = open_workdir(tmp_path / "work")
    effective = configuration.load("smoke", ["train.epochs=3"])
    found = scan(str(colours), effective.config.ingest)
    request = local.prepare(workdir, effective, found).read_request()
    assert request.data == str(colours) and request.scan["files"] == 8
    assert request.config["train"]["epochs"] == 3
    assert request.origins["train.epochs"] == "--set train.epochs"
    assert request.inputs == {
        "known_classes": [],
        "known_columns": {},
        "champion": None,
        "champion_uri": "",
        "published": False,
    }
    assert set(request.lineage) == {"data", "config", "code"}


@pytest.mark.parametrize(("by", "version", "place"), [("", 2, "/s/2"), ("earlier", None, None)])
def test_a_failure_behind_the_push_does_not_deny_it(
    colours, tmp_path, monkeypatch, by, version, place
):
    """A run that failed tells the version that it pushed, and no earlier run's."""
    workdir = open_workdir(tmp_path / "work")
    effective = configuration.load()
    run = local.prepare(workdir, effective, scan(str(colours), effective.config.ingest))
    properties = {
        "pushed_version": "2",
        "pushed_destination": "/s/2",
        "published_by": by or run.root.name,
    }

    def node(name):
        if name == "Explainer":
            raise SafelightError("no disk")
        return SimpleNamespace(uris={}, properties=properties, cached=False)

    def nodes(execution):
        for name in ("Pusher", "Explainer"):
            execution._run_node(SimpleNamespace(run=node, config=effective.config), name)

    monkeypatch.setattr(worker.Execution, "_run_nodes", nodes)
    result = worker.Execution(workdir, run).run_all()
    assert (result.outcome, result.reasons) == ("failed", ["no disk"])
    assert [stage.state for stage in result.stages] == ["complete", "failed"]
    assert (result.version, result.pushed_to) == (version, place)


def test_a_pusher_stopped_behind_its_push_does_not_deny_it(colours, tmp_path, monkeypatch):
    workdir = open_workdir(tmp_path / "work")
    effective = configuration.load()
    run = local.prepare(workdir, effective, scan(str(colours), effective.config.ingest))
    source, serving = export(tmp_path / "export"), workdir.serving("model")

    def nodes(execution):
        registry.open(serving).publish(source, replace(FIRST, run_id=run.root.name))
        raise worker.Interrupted("stopped")

    monkeypatch.setattr(worker.Execution, "_run_nodes", nodes)
    result = worker.Execution(workdir, run).run_all()
    assert (result.outcome, result.version) == ("failed", 1)
    assert result.pushed_to == str(serving / "1")


# In the place of the worker: it publishes a model, and is killed before it could say so.
KILLED = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from pipeline import registry
from tests.test_registry import FIRST, export
work, run = Path(sys.argv[1]), Path(sys.argv[2])
origin = replace(FIRST, run_id=run.name, metrics={"accuracy": 0.9})
registry.open(work / "serving" / "model").publish(export(work.parent / "export"), origin)
os.kill(os.getpid(), signal.SIGKILL)
"""
# The same, before it has published.
KILLED_BEFORE = KILLED.replace("registry.open(", "0 and registry.open(")
# One that takes its time to end.
SLOW = """
import os, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, signal.SIG_IGN)
Path(sys.argv[2], "pid").write_text(str(os.getpid()))
time.sleep(60)
"""


def instead_of_the_worker(folder: Path, code: str) -> str:
    """Returns a Python that runs `code` where it is asked for the worker."""
    (folder / "code.py").write_text(code)
    python = folder / "python"
    python.write_text(
        f'#!/bin/sh\nif [ "$1" = -m ]; then shift 2; exec {sys.executable} -c '
        f'"$(cat {folder}/code.py)" "$@"; fi\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    return str(python)


@pytest.mark.parametrize(("code", "version"), [(KILLED, 1), (KILLED_BEFORE, None)])
def test_a_worker_killed_behind_its_push_does_not_deny_it(
    colours, tmp_path, monkeypatch, code, version
):
    workdir = open_workdir(tmp_path / "work")
    effective = configuration.load()
    monkeypatch.setattr(sys, "executable", instead_of_the_worker(tmp_path, code))
    with workdir.lock() as lock:
        run = local.prepare(workdir, effective, scan(str(colours), effective.config.ingest))
        result = local.execute(workdir, run, lock, lambda event: None)
    assert result == replace(run.read_result(), report=result.report)
    assert (result.outcome, result.version) == ("failed", version)
    assert "SIGKILL" in result.reasons[0] and result.report is not None
    expected = str(workdir.serving("model") / "1") if version else None
    assert (result.pushed_to, bool(result.metrics)) == (expected, bool(version))
    assert ("had become version 1" in why.answer(workdir.root)) == bool(version)


RUN = """
import sys
from pathlib import Path
from pipeline import config
from pipeline.ingest.scan import scan
from pipeline.runners import local
from pipeline.workdir import open_workdir
place, effective = open_workdir(Path(sys.argv[1])), config.load()
with place.lock() as lock:
    run = local.prepare(place, effective, scan(sys.argv[2], effective.config.ingest))
    sys.executable = sys.argv[3]
    local.execute(place, run, lock, lambda event: None)
"""


def test_a_second_ctrl_c_ends_the_worker_before_the_workdir_is_given_back(colours, tmp_path):
    python = instead_of_the_worker(tmp_path, SLOW)
    line = [sys.executable, "-c", RUN, str(tmp_path / "work"), str(colours), python]
    with subprocess.Popen(line, stderr=subprocess.DEVNULL, preexec_fn=signals.heeded) as running:
        until = time.monotonic() + 30
        while not (told := list(tmp_path.glob("work/runs/*/pid"))) and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.1)
        child = psutil.Process(int(told[0].read_text()))
        running.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert running.poll() is None and child.is_running()
        running.send_signal(signal.SIGINT)
        running.wait(30)
    assert not child.is_running()
    with open_workdir(tmp_path / "work").lock():
        pass


# The worker, stopped while it works; cleaning up takes it a moment.
STOPPED = """
import time
from pipeline.runners import worker
def nodes(execution):
    try:
        print("begun", flush=True)
        time.sleep(60)
    finally:
        time.sleep(1)
        (execution.run.root / "cleaned").touch()
worker.Execution._run_nodes, worker._report = nodes, lambda *_: None
worker.main()
"""


def test_a_worker_that_is_told_twice_to_stop_cleans_up_and_says_so(colours, tmp_path):
    workdir, effective = open_workdir(tmp_path / "work"), configuration.load()
    run = local.prepare(workdir, effective, scan(str(colours), effective.config.ingest))
    line = [sys.executable, "-c", STOPPED, str(workdir.root), str(run.root)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as stopped:
        assert stopped.stdout is not None and stopped.stdout.readline() == b"begun\n"
        for _ in range(3):
            stopped.terminate()
            time.sleep(0.1)
        assert stopped.wait(30) == 1
    assert (run.root / "cleaned").exists()
    result = run.read_result()
    assert result is not None and "The run was stopped" in result.reasons[0]
