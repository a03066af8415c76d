"""Training: run_fn and its child, determinism, resuming, early stopping, and failures."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import psutil
import pytest
from tensorflow.python.summary.summary_iterator import summary_iterator
from tfx.components.trainer import executor
from tfx.types import artifact_utils, standard_artifacts

from pipeline import events, export, model_json
from pipeline.errors import DataRefused
from pipeline.trainer import data, train, train_child
from pipeline.trainer.checkpoints import Arrays, Checkpoints, Epoch, State
from pipeline.trainer.fitting import NotFinite
from tests import graphs, jobs
from tests.jobs import SIZE, fn_args, history_of, start, state_files, wait_for, weights_of

MakeJob = Callable[..., train.Job]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The examples, the schema and the transform graph of all jobs."""
    return jobs.data(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def make_job(shared: dict[str, Any], tmp_path: Path) -> MakeJob:
    """Makes a job in a folder of its own; keyword arguments are keys of the section train."""
    return functools.partial(jobs.make, shared, tmp_path)


class Crash(Exception):
    """Stands for whatever ends a process between two epochs."""


def crash_behind(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets training end with Crash once this epoch's checkpoint is written."""
    save = Checkpoints.save

    def save_and_crash(self: Checkpoints, state: State) -> None:
        save(self, state)
        if len(state.epochs) == epoch:
            raise Crash

    monkeypatch.setattr(Checkpoints, "save", save_and_crash)


@pytest.mark.parametrize("cache", ["memory", pytest.param("off", marks=pytest.mark.slow)])
def test_resumed_training_ends_as_an_uninterrupted_one(
    cache: str, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, event_log: Path
) -> None:
    settings = {"preset": "cifar10-cnn", "epochs": 3, "cache": cache, "learning_rate": 3e-4}
    whole = make_job("whole", **settings)
    train_child.run(whole)
    broken = make_job("broken", checkpoints="kept", **settings)
    with monkeypatch.context() as patch:
        crash_behind(2, patch)
        with pytest.raises(Crash):
            train_child.run(broken)
    assert len(state_files(broken)) == 1
    resumed = make_job("resumed", checkpoints="kept", **settings)
    train_child.run(resumed)

    for a, b in zip(weights_of(whole), weights_of(resumed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert history_of(resumed)["resumed_from"] == 2
    one, other = ([e["loss"] for e in history_of(job)["epochs"]] for job in (whole, resumed))
    assert one == pytest.approx(other, rel=1e-5)
    notes = [event.get("text", "") for _, event in events.read(event_log)]
    assert any("goes on behind epoch 2" in note for note in notes)
    assert state_files(resumed) == []
    # The logs of the run that was killed are gone with its artifact: here they are again.
    both = [(tag, step) for tag in ("accuracy", "loss") for step in (1, 2, 3)]
    assert logged(resumed, "validation") == both
    assert logged(resumed, "train") == sorted(
        both + [("learning_rate", step) for step in (1, 2, 3)]
    )


def test_killed_before_the_export_it_only_exports(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = make_job("broken", checkpoints="kept", epochs=2)
    with monkeypatch.context() as patch:
        crash_behind(2, patch)
        with pytest.raises(Crash):
            train_child.run(broken)
    monkeypatch.setattr(keras.Model, "fit", None)  # nothing may train
    again = make_job("again", checkpoints="kept", epochs=2)
    train_child.run(again)
    assert len(history_of(again)["epochs"]) == 2
    assert logged(again, "validation") == [(t, s) for t in ("accuracy", "loss") for s in (1, 2)]
    assert (again.model_dir / "saved_model.pb").exists()


@pytest.mark.slow
def test_the_seed_decides(make_job: MakeJob) -> None:
    jobs = [make_job(name, epochs=1, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    for job in jobs:
        train_child.run(job)
    first, again, other = (weights_of(job)[0] for job in jobs)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_training_learns_and_says_how_far_it_is(make_job: MakeJob, event_log: Path) -> None:
    job = make_job("job", epochs=8)
    train_child.run(job)
    history = history_of(job)
    assert [row["epoch"] for row in history["epochs"]] == list(range(1, 9))
    assert set(history["epochs"][0]) == {
        "epoch",
        "seconds",
        "loss",
        "accuracy",
        "eval_loss",
        "eval_accuracy",
        "learning_rate",
    }
    assert history["epochs"][-1]["eval_accuracy"] > 0.9
    assert history["images_per_second"] > 0
    assert history["resumed_from"] is None

    told = [event for _, event in events.read(event_log) if event["kind"] == "progress"]
    assert {event["stage"] for event in told} == {"Trainer"}
    last = [event for event in told if event["note"].startswith("epoch 8/8 loss")]
    assert [(event["done"], event["total"]) for event in last] == [(8 * 48, 8 * 48)]
    assert " eval 1.000" in last[0]["note"]
    assert any(event["note"].startswith("epoch 1/8 step 1/5 loss") for event in told)


def logged(job: train.Job, name: str) -> list[tuple[str, int]]:
    """Returns (tag, step) of TensorBoard's scalars in `train` or `validation`, sorted."""
    [path] = (job.run_dir / name).iterdir()
    return sorted(
        (value.tag, event.step)
        for event in summary_iterator(str(path))
        for value in event.summary.value
    )


def test_it_stops_early_and_keeps_the_best_epoch(make_job: MakeJob) -> None:
    # At this rate eval loss gets worse behind some epoch, long before the last.
    job = make_job("job", preset="mnist-cnn", epochs=40, patience=2, learning_rate=0.05)
    train_child.run(job)
    history = history_of(job)
    losses = [row["eval_loss"] for row in history["epochs"]]
    assert history["stopped_early"]
    assert history["best_epoch"] == int(np.argmin(losses)) + 1 == len(losses) - 2
    model = export.load_weights(job.model_dir)
    model.compile(loss="sparse_categorical_crossentropy")
    held_out = data.Input(job.transform_graph, SIZE, 3).read(data.scan(job.eval_files))
    assert model.evaluate(held_out, verbose=0) == pytest.approx(min(losses), rel=1e-4, abs=1e-6)


def test_a_loss_that_is_not_finite_stops_at_once(make_job: MakeJob) -> None:
    job = make_job("job", learning_rate=1e30)
    with pytest.raises(NotFinite, match=r"epoch 1 at step \d of 5.*rate 1e\+30.*Lower"):
        train_child.run(job)
    assert not job.model_dir.exists()


def test_a_damaged_checkpoint_is_said_and_left_behind(tmp_path: Path, event_log: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "f")
    assert checkpoints.load() is None
    epoch = Epoch(1, 2.0, 1.5, 0.5, 0.9, 0.6, 0.8, 0.001)
    arrays: Arrays = [np.arange(6, dtype=np.float32).reshape(2, 3), np.array(4, np.int64)]
    state = State((epoch,), 1, False, False, arrays, arrays[:1], arrays)
    checkpoints.save(state)
    loaded = checkpoints.load()
    assert loaded is not None
    assert loaded.epochs == state.epochs
    for field in dataclasses.fields(State)[4:7]:
        pairs = zip(getattr(loaded, field.name), getattr(state, field.name), strict=True)
        assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)
    path = checkpoints.folder / "state.npz"
    os.truncate(path, path.stat().st_size // 2)
    assert checkpoints.load() is None
    assert "damaged" in list(events.read(event_log))[-1][1]["text"]


def test_run_fn_trains_in_a_child(make_job: MakeJob, event_log: Path) -> None:
    job = make_job("job", epochs=1)
    train.run_fn(fn_args(job))
    assert len(history_of(job)["epochs"]) == 1
    assert model_json.read(job.model_dir)["preset"] == "mnist-cnn-small"
    assert any("Trains on the CPU" in e.get("text", "") for _, e in events.read(event_log))


def test_the_child_s_error_arrives_as_it_was(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job("job")
    arguments = fn_args(job)
    arguments.train_files = [str(tmp_path / "nowhere" / "*")]
    with pytest.raises(DataRefused, match="nothing to train on.*nowhere"):
        train.run_fn(arguments)


def test_stopped_while_it_trains_it_leaves_no_child(make_job: MakeJob) -> None:
    class Stopped(Exception):
        pass

    def stop(signum: int, frame: object) -> None:
        raise Stopped

    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 2)
        with pytest.raises(Stopped):
            train.run_fn(fn_args(make_job("job", epochs=10_000, patience=0)))
    finally:
        signal.signal(signal.SIGALRM, before)
    commands = [child.cmdline() for child in psutil.Process().children()]
    assert not any("pipeline.trainer.train_child" in command for command in commands)


@pytest.mark.slow
def test_tfx_s_trainer_runs_it(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job("job", epochs=2)
    examples = standard_artifacts.Examples()
    examples.uri = str(Path(job.train_files[0]).parents[1])
    examples.split_names = artifact_utils.encode_split_names(["train", "eval"])
    schema, graph = standard_artifacts.Schema(), standard_artifacts.TransformGraph()
    schema.uri, graph.uri = str(tmp_path / "schema"), str(job.transform_graph)
    Path(schema.uri).mkdir()
    (Path(schema.uri) / "schema.pbtxt").write_text(job.schema_path.read_text())
    model, model_run = standard_artifacts.Model(), standard_artifacts.ModelRun()
    model.uri, model_run.uri = str(tmp_path / "trained"), str(tmp_path / "run")
    executor.GenericExecutor().Do(
        {"examples": [examples], "schema": [schema], "transform_graph": [graph]},
        {"model": [model], "model_run": [model_run]},
        {
            "run_fn": "pipeline.trainer.train.run_fn",
            "train_args": '{"splits": ["train"]}',
            "eval_args": '{"splits": ["eval"]}',
            "custom_config": json.dumps(fn_args(job).custom_config),
        },
    )
    facts = model_json.read(Path(model.uri) / "Format-Serving")
    assert facts["classes"] == list(graphs.CLASSES)
    history = json.loads((Path(model_run.uri) / "history.json").read_text())
    assert len(history["epochs"]) == 2


@pytest.mark.slow
def test_a_killed_child_resumes_at_the_last_finished_epoch(make_job: MakeJob) -> None:
    settings = {"preset": "cifar10-cnn", "epochs": 20, "patience": 0, "learning_rate": 1e-4}
    whole = make_job("whole", **settings)
    assert start(whole).wait(300) == 0
    killed = make_job("killed", checkpoints="kept", **settings)
    child = start(killed)
    wait_for(lambda: bool(state_files(killed)))
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    resumed = make_job("resumed", checkpoints="kept", **settings)
    assert start(resumed).wait(300) == 0
    assert 0 < history_of(resumed)["resumed_from"] < 20
    for one, other in zip(weights_of(whole), weights_of(resumed), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_killed_child_is_explained(make_job: MakeJob, event_log: Path) -> None:
    job = make_job("job", epochs=10_000, patience=0)
    killer = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, pathlib, signal, sys, time\n"
            "import psutil\n"
            "parent = psutil.Process(int(sys.argv[1]))\n"
            "while not list(pathlib.Path(sys.argv[2]).glob('*/state.npz')): time.sleep(0.05)\n"
            "[c.send_signal(signal.SIGKILL) for c in parent.children() if c.pid != os.getpid()]\n",
            str(os.getpid()),
            str(job.checkpoints),
        ]
    )
    with pytest.raises(train.TrainingFailed, match="killed .SIGKILL.*run again"):
        train.run_fn(fn_args(job))
    assert killer.wait(30) == 0


@pytest.mark.slow
def test_the_child_dies_with_its_parent(make_job: MakeJob) -> None:
    job = make_job("job", epochs=10_000, patience=0)
    job = job.model_copy(update={"parent": 0})
    path = job.run_dir / "job.json"
    code = (
        "import os, pathlib, subprocess, sys\n"
        "from pipeline.trainer import train\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "job = train.Job.model_validate_json(path.read_text())\n"
        "path.write_text(job.model_copy(update={'parent': os.getpid()}).model_dump_json())\n"
        "module = 'pipeline.trainer.train_child'\n"
        "child = subprocess.Popen([sys.executable, '-m', module, str(path)])\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    path.write_text(job.model_dump_json())
    parent = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    wait_for(lambda: bool(state_files(job)))
    parent.kill()
    parent.wait()
    wait_for(lambda: not alive(child), 10)


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
