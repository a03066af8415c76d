"""Several devices and several processes: they train as one would, in every precision."""

from __future__ import annotations

import functools
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import psutil
import pytest
import tensorflow as tf

from pipeline import events, export, models
from pipeline.config import Train
from pipeline.errors import ConfigError
from pipeline.evaluator import predictions
from pipeline.trainer import data, devices, fitting, loop, train, train_child
from pipeline.trainer.checkpoints import Checkpoints
from tests import graphs, jobs
from tests.jobs import history_of, start, state_files, wait_for, weights_of

MakeJob = Callable[..., train.Job]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """64 images to train on and 20 to evaluate, for all jobs."""
    return jobs.data(tmp_path_factory.mktemp("shared"), train_each=16, eval_each=5)


@pytest.fixture
def make_job(shared: dict[str, Any], tmp_path: Path) -> MakeJob:
    """Makes a job of two epochs; keyword arguments are keys of the section train."""
    return functools.partial(jobs.make, shared, tmp_path, epochs=2, batch_size=32)


def assert_alike(one: train.Job, other: train.Job, tolerance: float) -> None:
    """Compares weights and histories."""
    for a, b in zip(weights_of(one), weights_of(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    for left, right in zip(history_of(one)["epochs"], history_of(other)["epochs"], strict=True):
        for name in ("loss", "accuracy", "eval_loss", "eval_accuracy", "learning_rate"):
            assert left[name] == pytest.approx(right[name], rel=10 * tolerance), name


def served(job: train.Job) -> np.ndarray:
    """Returns what the export answers to the first picture of each class, float32 [4, 4]."""
    pictures = [graphs.encoded(label, 0, jobs.SIZE) for label in graphs.CLASSES]
    return predictions.Export(job.model_dir).serve(pictures).probabilities


def notes(job: train.Job) -> list[str]:
    assert job.events is not None
    return [event.get("text", "") for _, event in events.read(job.events)]


def test_two_logical_devices_train_as_one(make_job: MakeJob) -> None:
    settings = {"cache": "memory", "learning_rate": 1e-3}
    one = make_job("one", **settings)
    train_child.run(one)
    two = make_job("two", strategy="mirrored", devices=2, **settings)
    train.run_fn(jobs.fn_args(two))
    assert_alike(one, two, 1e-6)
    np.testing.assert_allclose(served(one), served(two), atol=1e-6)
    assert any("Trains on 2 devices of this machine" in note for note in notes(two))


@pytest.mark.slow
def test_batch_normalization_takes_the_whole_batch(make_job: MakeJob) -> None:
    # By its own share of a batch a device would be off in the third digit.
    settings = {"preset": "cifar10-fast", "optimizer": "sgd", "learning_rate": 0.01}
    one = make_job("one", **settings)
    train_child.run(one)
    two = make_job("two", strategy="mirrored", devices=2, **settings)
    train.run_fn(jobs.fn_args(two))
    assert_alike(one, two, 1e-4)
    np.testing.assert_allclose(served(one), served(two), atol=1e-4)


@pytest.mark.slow
def test_two_workers_on_loopback_train_as_one_process(make_job: MakeJob) -> None:
    # Without dropout, which each worker draws for itself.
    one = make_job("one", preset="image64-cnn")
    train_child.run(one)
    two = make_job("two", preset="image64-cnn", strategy="multi_worker", workers=2)
    train.run_fn(jobs.fn_args(two))
    assert_alike(one, two, 1e-5)
    np.testing.assert_allclose(served(one), served(two), atol=1e-5)
    assert any("Trains on 2 workers with 2 devices" in note for note in notes(two))
    # One set of TensorBoard's logs, one of progress: the chief's.
    assert [len(list((two.run_dir / name).iterdir())) for name in ("train", "validation")] == [1, 1]
    assert two.events is not None
    told = [event for _, event in events.read(two.events) if event["kind"] == "progress"]
    ends = [event for event in told if event["note"].startswith("epoch 2/2 loss")]
    assert len(ends) == 2  # that of `one`, and one of `two`
    assert state_files(two) == []


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_others(make_job: MakeJob) -> None:
    job = make_job("job", strategy="multi_worker", workers=2, epochs=10_000, patience=0)
    killed: list[psutil.Process] = []

    def kill_the_second() -> None:
        while not state_files(job):
            time.sleep(0.1)
        killed.extend(children_of(psutil.Process()))
        killed[1].send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill_the_second)
    killer.start()
    with pytest.raises(train.TrainingFailed, match="One of the 2 training.*SIGKILL.*run again"):
        train.run_fn(jobs.fn_args(job))
    killer.join(30)
    assert len(killed) == 2
    assert not any(process.is_running() for process in killed)


def children_of(process: psutil.Process) -> list[psutil.Process]:
    return [c for c in process.children() if "pipeline.trainer.train_child" in c.cmdline()]


@pytest.mark.slow
def test_workers_stop_early_together(make_job: MakeJob) -> None:
    # At this rate no weight moves: no epoch is better than the first.
    job = make_job(
        "job",
        strategy="multi_worker",
        workers=2,
        epochs=40,
        patience=2,
        optimizer="sgd",
        learning_rate=1e-12,
    )
    train.run_fn(jobs.fn_args(job))
    history = history_of(job)
    assert history["stopped_early"]
    assert history["best_epoch"] == len(history["epochs"]) - 2


@pytest.mark.slow
def test_killed_in_the_second_phase_mirrored_training_resumes(make_job: MakeJob) -> None:
    settings = {
        "strategy": "mirrored",
        "devices": 2,
        "epochs": None,
        "phases": [
            {"epochs": 2, "learning_rate": 1e-3, "patience": 0},
            {"epochs": 40, "learning_rate": 1e-4, "patience": 0},
        ],
    }
    whole = make_job("whole", **settings)
    assert start(whole).wait(300) == 0
    killed = make_job("killed", checkpoints="kept", **settings)
    child = start(killed)
    wait_for(lambda: epochs_kept(killed) > 2)
    child.kill()
    child.wait()
    resumed = make_job("resumed", checkpoints="kept", **settings)
    assert start(resumed).wait(300) == 0
    assert 2 < history_of(resumed)["resumed_from"] < 42
    assert [phase["epochs"] for phase in history_of(resumed)["phases"]] == [2, 40]
    assert_alike(whole, resumed, 1e-5)


@pytest.mark.slow
def test_a_tpu_that_isn_t_there_is_refused(make_job: MakeJob) -> None:
    with pytest.raises(ConfigError, match="expects the TPU 'local' .train.tpu.; found: .*auto"):
        train.run_fn(jobs.fn_args(make_job("job", strategy="tpu")))


def epochs_kept(job: train.Job) -> int:
    """Returns how many epochs the job's checkpoint has."""
    kept = [Checkpoints(path.parents[1], path.parent.name).load() for path in state_files(job)]
    return len(kept[0].epochs) if kept and kept[0] else 0


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_trains_exports_and_serves(precision: str, make_job: MakeJob) -> None:
    job = make_job("job", epochs=6, batch_size=16, precision=precision)
    train_child.run(job)
    assert keras.config.dtype_policy().name == "float32"  # what comes after isn't touched
    assert history_of(job)["epochs"][-1]["eval_accuracy"] > 0.9
    answers = served(job)
    assert answers.dtype == np.float32
    np.testing.assert_allclose(answers.sum(axis=1), 1, atol=1e-5)
    assert list(answers.argmax(axis=1)) == [0, 1, 2, 3]
    # The export computes in float32 what was trained in less.
    model = export.load_weights(job.model_dir)
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
    assert {weight.dtype for weight in model.get_weights()} == {np.dtype(np.float32)}


def test_float16_scales_its_loss_and_survives_an_overflow() -> None:
    with devices.precision(Train(precision="float16")):
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        model.compile("sgd", "mse")
    model.optimizer.build(model.trainable_variables)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    before = [weight.copy() for weight in model.get_weights()]
    rows = np.full((8, 4), 6e4, np.float32)
    model.train_on_batch(rows, np.zeros((8, 2), np.float32))
    for was, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)  # the step was left out
    assert float(model.optimizer.dynamic_scale) == 2.0**14


def test_two_accumulated_batches_equal_one_of_twice_the_size(make_job: MakeJob) -> None:
    settings = {"optimizer": "sgd", "learning_rate": 0.05}
    whole = make_job("whole", batch_size=32, **settings)
    train_child.run(whole)
    parts = make_job("parts", batch_size=16, accumulate=2, **settings)
    train_child.run(parts)
    for one, other in zip(weights_of(whole), weights_of(parts), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_xla_trains_the_same(make_job: MakeJob) -> None:
    plain, compiled = make_job("plain", epochs=1), make_job("compiled", epochs=1, xla=True)
    train_child.run(plain)
    train_child.run(compiled)
    assert_alike(plain, compiled, 1e-5)


class NoXla(keras.layers.Layer):
    """A layer that XLA can't compile, by its own word."""

    def __init__(self) -> None:
        super().__init__(name="by_hand")
        self.supports_jit = False

    def call(self, inputs: Any) -> Any:
        return inputs


def test_a_network_that_xla_can_t_compile_is_refused(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = models.build

    def with_it(*args: Any, **more: Any) -> keras.Model:
        model = build(*args, **more)
        return keras.Model(model.input, NoXla()(model.output))

    monkeypatch.setattr(models, "build", with_it)
    with pytest.raises(ConfigError, match="train.xla=true, and XLA can't compile.*by_hand"):
        train_child.run(make_job("job", xla=True))


class Told(keras.callbacks.Callback):
    """Keeps what it is told, and may stop training behind an epoch."""

    def __init__(self, last: int = 99) -> None:
        super().__init__()
        self.last = last
        self.calls: list[tuple[Any, ...]] = []

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        self.calls.append(("batch", batch, sorted(logs or {})))

    def on_test_begin(self, logs: dict[str, float] | None = None) -> None:
        self.calls.append(("test",))

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        assert logs is not None
        self.calls.append(("epoch", epoch, {k: round(float(v), 5) for k, v in logs.items()}))
        self.model.stop_training = epoch + 1 == self.last


def fitted_by(run: fitting.Loop, last: int = 99) -> tuple[list[Any], Sequence[np.ndarray]]:
    """Returns what callbacks were told, and the weights, behind up to three epochs."""
    rows = np.random.default_rng(1)
    pixels = rows.random((20, 6, 6, 1), np.float32)
    labels = rows.integers(0, 3, 20)
    pairs = tf.data.Dataset.from_tensor_slices((pixels, labels))
    batches = data.Batches(pairs.repeat().batch(5), pairs.batch(8), 20, 5)
    keras.utils.set_random_seed(7)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Flatten(),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    told = Told(last)
    run(model, batches, 1, 3, [told])
    return told.calls, model.get_weights()


@pytest.mark.parametrize("last", [99, 2])
def test_our_loop_does_what_keras_does(last: int) -> None:
    theirs, weights = fitted_by(fitting.keras_loop, last)
    ours, same_weights = fitted_by(loop.run, last)
    assert ours == theirs
    assert len(ours) == (12 if last == 99 else 6)
    for one, other in zip(weights, same_weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
