"""The search in its own process: real trials on real images, failures, and being killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import psutil
import pytest

from pipeline import events, search
from pipeline.config import Train, Transform, Tune
from pipeline.errors import SafelightError
from pipeline.trainer import training, tune, tune_child
from pipeline.trainer.checkpoints import Checkpoints, Epoch, PhaseRecord, State
from pipeline.trainer.trials import Trial, Trials, checkpoint
from tests import graphs

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def splits(tmp_path_factory) -> SimpleNamespace:
    root = tmp_path_factory.mktemp("splits")
    counts = dict.fromkeys(graphs.CLASSES, 12)
    return SimpleNamespace(
        train=graphs.write_split(root, "train", counts, size=16),
        held_out=graphs.write_split(root, "eval", counts, size=16, first=100),
        schema=graphs.write_schema(root / "schema.pbtxt"),
        graph=graphs.transform_graph(16),
    )


def fn_args(splits: SimpleNamespace, root: Path, **tuning: Any) -> Any:
    """Returns what TFX hands to tuner_fn."""
    train = Train(preset="mnist-cnn-small", epochs=2, batch_size=16)
    return SimpleNamespace(
        train_files=[splits.train],
        eval_files=[splits.held_out],
        transform_graph_path=str(splits.graph),
        schema_path=str(splits.schema),
        custom_config={
            "train": train.model_dump(mode="json"),
            "transform": Transform(image_size=16, channels=3).model_dump(mode="json"),
            "tune": Tune(**tuning).model_dump(mode="json"),
            "checkpoints": str(root / "checkpoints"),
            "code": "abc",
        },
    )


def run(args: Any, root: Path) -> list[dict[str, Any]]:
    tune.tuner_fn(args, best=root / "best" / search.BEST_FILE, results=root / "results")
    rows: list[dict[str, Any]] = json.loads((root / "results" / search.RESULTS_FILE).read_text())
    return rows


def notes(path: Path) -> str:
    return "\n".join(event["text"] for _, event in events.read(path) if "text" in event)


def test_trials_are_trained_and_the_best_is_told(splits, tmp_path, event_log):
    space = {"learning_rate": [1e-3, 1e30], "preset": ["mnist-cnn-small", "mnist-cnn"]}
    args = fn_args(splits, tmp_path, algorithm="random", space=space, trials=10, epochs=2)
    del args.custom_config["train"]["preset"]
    rows = run(args, tmp_path)
    assert len(rows) == 4
    assert {tuple(row["values"].values()) for row in rows} == {
        (rate, preset) for rate in space["learning_rate"] for preset in space["preset"]
    }
    for row in rows:
        failed = row["values"]["learning_rate"] == 1e30
        assert row["state"] == ("failed" if failed else "completed")
        assert ("at learning rate 1e+30" in row["reason"]) == failed
        assert (row["score"] is None) == failed
    [best] = [row for row in rows if row["best"]]
    assert best["score"] == max(row["score"] or 0 for row in rows)
    written = json.loads((tmp_path / "best" / search.BEST_FILE).read_text())
    assert search.found(written) == best["values"]
    assert any((tmp_path / "results" / "trials").rglob("events.out.tfevents.*"))
    told = [event for _, event in events.read(event_log) if event["kind"] == "progress"]
    assert {event["stage"] for event in told} == {"Tuner"}
    assert {(event["total"], event["unit"]) for event in told} == {(10, "trials")}
    said = notes(event_log)
    assert "failed (learning_rate 1e+30" in said and "The best of 4 trials is trial" in said


def test_where_every_trial_fails_the_search_says_with_what(splits, tmp_path):
    space = {"learning_rate": [1e30, 1e31]}
    args = fn_args(splits, tmp_path, algorithm="random", space=space, trials=2, epochs=1)
    with pytest.raises(SafelightError, match="None of 2 trials came to a score") as caught:
        run(args, tmp_path)
    assert len(caught.value.reasons) == 2
    assert "trial 1 (learning_rate 1e+3" in caught.value.reasons[0]
    # Run again, they are tried again: what they failed of may have been mended.
    assert not list((tmp_path / "checkpoints").glob("search-*"))


@pytest.mark.slow
def test_hyperband_goes_on_from_the_shorter_trials(splits, tmp_path):
    space = {"learning_rate": {"min": 1e-4, "max": 1e-2, "log": True}}
    args = fn_args(
        splits, tmp_path, algorithm="hyperband", space=space, trials=50, epochs=3, images=24
    )
    rows = run(args, tmp_path)
    assert {row["epochs"] for row in rows} == {1, 3}
    longer = [row for row in rows if row["epochs"] == 3 and row["trial"] > 3]
    shorter = {json.dumps(row["values"]) for row in rows if row["epochs"] == 1}
    assert any(json.dumps(row["values"]) in shorter for row in longer)
    # Only the state is left of it: weights are of no use once the search has ended.
    [folder] = (tmp_path / "checkpoints").glob("search-*")
    assert [path.name for path in folder.iterdir()] == ["state.json"]


def epochs_of(losses: Sequence[float]) -> tuple[Epoch, ...]:
    return tuple(Epoch(n, 1, 1, loss, 0.5, loss, 0.5, 0.001) for n, loss in enumerate(losses, 1))


def phase(name: str, first: int, epochs: int) -> PhaseRecord:
    return PhaseRecord(name, first, epochs, "all", 0.001, 1)


def resumed(
    splits: SimpleNamespace, root: Path, state: State | None, epochs: int, **train: Any
) -> State:
    """Returns what a trial comes to that goes on from the trial 0, which left `state`."""
    args = fn_args(splits, root, algorithm="hyperband", space={"momentum": [0.5]}, epochs=epochs)
    args.custom_config["train"].update(epochs=None, **train)
    job = tune._job(args, root / "best", root / "results")
    setup = training.prepare(job)
    trial = Trial(id="1", number=2, values={"momentum": 0.5}, epochs=epochs, continues="0")
    if state is not None:
        planned = search.of_trial(job.train, trial.values, epochs, job.transform)
        model = training.make_model(setup, planned)
        arrays = {
            "weights": model.get_weights(),
            "best_weights": model.get_weights(),
            "optimizer": [np.array(variable) for variable in model.optimizer.variables],
        }
        Checkpoints(root, checkpoint("0")).save(replace(state, **arrays))
    return tune_child._train(job, setup, cast(Trials, SimpleNamespace(folder=root)), trial)


def test_a_trial_that_its_devices_refuse_fails(splits, tmp_path):
    args = fn_args(splits, tmp_path, algorithm="random", space={"xla": [True]}, trials=1, epochs=1)
    job = tune._job(args, tmp_path / "best", tmp_path / "results")
    # As with train.strategy=auto, on a machine with several GPUs.
    setup = cast(training.Setup, SimpleNamespace(devices=SimpleNamespace(kind="mirrored")))
    folder = cast(Trials, SimpleNamespace(folder=tmp_path))
    with pytest.raises(SafelightError, match="train.xla and train.strategy=mirrored"):
        tune_child._train(job, setup, folder, Trial("0", 1, {"xla": True}, 1))


def test_a_trial_of_a_search_that_had_ended_is_trained_from_the_start(splits, tmp_path):
    after = resumed(splits, tmp_path, None, epochs=2)
    assert len(after.epochs) == 2
    assert after.finished


def test_a_trial_whose_patience_ran_out_with_its_epochs_is_not_trained_on(splits, tmp_path):
    losses = [0.9, 0.5, 0.4, 0.3, 0.35, 0.36, 0.37, 0.38, 0.39]
    rung = State(epochs_of(losses), 4, finished=True, phases=(phase("training", 1, 9),))
    after = resumed(splits, tmp_path, rung, epochs=27, patience=5)
    assert after.epochs == rung.epochs
    # The next one that goes on does so from here.
    assert Checkpoints(tmp_path, checkpoint("1")).load() is not None


def test_a_trial_whose_first_phase_had_stopped_early_ends_its_second(splits, tmp_path):
    done = (phase("fine-tuning", 1, 4), phase("fine-tuning 2", 5, 1))
    killed = State(epochs_of([0.5, 0.4, 0.45, 0.46, 0.39]), 5, stopped_early=True, phases=done)
    plan = [{"epochs": 6, "patience": 2}, {"epochs": 3, "patience": 0}]
    after = resumed(splits, tmp_path, killed, epochs=9, phases=plan)
    assert [one.epochs for one in after.phases] == [4, 3]
    assert after.finished


@pytest.mark.parametrize("searched", [False, True])
def test_a_network_of_ones_own_is_found_where_the_command_was_started(
    splits, tmp_path, monkeypatch, searched
):
    (tmp_path / "own_nets_t.py").write_text(
        "import keras\nimport own_blocks_t\n\n\ndef build(pixels):\n"
        "    return own_blocks_t.pool(keras.layers.Conv2D(8, 3)(pixels))\n"
    )
    (tmp_path / "own_blocks_t.py").write_text(
        "import keras\n\n\ndef pool(features):\n"
        "    return keras.layers.GlobalAveragePooling2D()(features)\n"
    )
    monkeypatch.chdir(tmp_path)
    space = {"model": ["own_nets_t:build"]} if searched else {"batch_size": [8]}
    args = fn_args(splits, tmp_path, algorithm="random", space=space, trials=1, epochs=1)
    args.custom_config["train"].update(preset=None, model="" if searched else "own_nets_t:build")
    [row] = run(args, tmp_path)
    assert (row["state"], row["epochs"]) == ("completed", 1), row


def child_of(parent: int, deadline: float) -> psutil.Process:
    while time.monotonic() < deadline:
        for process in psutil.Process(parent).children(recursive=True):
            if "pipeline.trainer.tune_child" in process.cmdline():
                return process
        time.sleep(0.1)
    raise AssertionError("the tuning process did not start")


@pytest.mark.slow
@pytest.mark.parametrize("everything", [False, True])
def test_killed_within_a_trial(splits, tmp_path, event_log, everything):
    """The child alone: its trial has failed. The whole run: the next one goes on with the trial."""
    space = {"batch_size": [8, 16, 32]}
    args = fn_args(splits, tmp_path, algorithm="random", space=space, trials=3, epochs=15)
    (tmp_path / "args.json").write_text(json.dumps(vars(args)))
    code = (
        "import json, sys; from types import SimpleNamespace; from pathlib import Path; "
        "from pipeline import events; from pipeline.trainer import tune; "
        "root = Path(sys.argv[1]); "
        "events.configure(Path(sys.argv[2])); "
        "args = SimpleNamespace(**json.loads((root / 'args.json').read_text())); "
        "tune.tuner_fn(args, best=root / 'best' / 'b.txt', results=root / 'results')"
    )
    event_log.touch()
    line = [sys.executable, "-c", code, str(tmp_path), str(event_log)]
    running = subprocess.Popen(line, cwd=ROOT, env={**os.environ})
    deadline = time.monotonic() + 120
    child = child_of(running.pid, deadline)
    while "epoch 3/15" not in event_log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    if everything:
        running.send_signal(signal.SIGKILL)
    else:
        child.send_signal(signal.SIGKILL)
    code = running.wait(240)
    if everything:
        psutil.wait_procs([child], timeout=20)
        assert code == -signal.SIGKILL
        rows = run(args, tmp_path)
        assert [row["state"] for row in rows] == ["completed"] * 3
        # Its state was kept epoch by epoch: the first trial was not begun again.
        assert rows[0]["epochs"] > 2
    else:
        assert code == 0
        rows = json.loads((tmp_path / "results" / search.RESULTS_FILE).read_text())
        assert [row["state"] for row in rows] == ["failed", "completed", "completed"]
        assert "was killed (SIGKILL)" in rows[0]["reason"]
        assert "Trial 1 was killed" in notes(event_log)
