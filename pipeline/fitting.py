"""Fitting a Keras model: epochs, early stopping, progress, TensorBoard, and resuming.

All randomness derives from (seed, epoch, step): the data's order from (seed, epoch), and the random
layers' generators are set from it at each epoch's start and count their steps from there. So an
epoch is the same whether training came to it in one go or was resumed before it.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipeline import events
from pipeline.checkpoints import Checkpoints, Epoch, State
from pipeline.config import Train
from pipeline.errors import SafelightError

_PROGRESS_SECONDS = 0.2


@dataclass(frozen=True)
class Batches:
    """What `fit` feeds: see `pipeline.data`; `examples` are those of an epoch."""

    train: tf.data.Dataset
    held_out: tf.data.Dataset
    examples: int
    batch_size: int

    @property
    def steps(self) -> int:
        """Returns the batches of an epoch, a smaller last one included."""
        return -(-self.examples // self.batch_size)


def history(state: State, resumed_from: int | None, examples: int) -> dict[str, Any]:
    """Returns the content of history.json; `examples` are those of an epoch."""
    epochs = state.epochs
    rows = [{k: v for k, v in vars(epoch).items() if k != "fit_seconds"} for epoch in epochs]
    fitting = sum(epoch.fit_seconds for epoch in epochs)
    return {
        "epochs": rows,
        "best_epoch": state.best_epoch,
        "stopped_early": state.stopped_early,
        "resumed_from": resumed_from,
        "seconds": round(sum(epoch.seconds for epoch in epochs), 3),
        "images_per_second": round(examples * len(epochs) / max(fitting, 1e-9), 1),
    }


def compile_model(model: keras.Model, train: Train, loss: str) -> None:
    """Gives the model its optimizer, loss and accuracy; labels come as class numbers."""
    if loss == "categorical_crossentropy":
        chosen: keras.losses.Loss = OneHotCrossentropy(model.output_shape[-1])
    else:
        chosen = keras.losses.SparseCategoricalCrossentropy()
    model.compile(
        optimizer=keras.optimizers.Adam(train.learning_rate),
        loss=chosen,
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
    )
    model.optimizer.build(model.trainable_variables)


class OneHotCrossentropy(keras.losses.Loss):
    """Categorical cross-entropy on one-hot labels, made from class numbers."""

    def __init__(self, classes: int) -> None:
        super().__init__(name="categorical_crossentropy")
        self.classes = classes

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Returns float32 [batch] of int64 [batch] and probabilities, float32 [batch, classes]."""
        numbers = keras.ops.reshape(y_true, (-1,))
        return keras.losses.categorical_crossentropy(
            keras.ops.one_hot(numbers, self.classes, dtype=y_pred.dtype), y_pred
        )


def restore(model: keras.Model, state: State) -> None:
    """Puts a checkpoint's weights and optimizer into a compiled model of the same shape."""
    model.set_weights(state.weights)
    for variable, value in zip(model.optimizer.variables, state.optimizer, strict=True):
        variable.assign(value)


def fit(
    model: keras.Model,
    batches: Batches,
    train: Train,
    run_dir: Path,
    checkpoints: Checkpoints,
    state: State,
) -> State:
    """Trains from the state's epoch on, until the last one or until eval loss stops improving.

    Args:
      model: compiled, with the state's weights and optimizer.
      batches: `train` has to begin with the epoch that comes next.
      train: the configuration, its epochs set.
      run_dir: gets TensorBoard's logs, those of the epochs before included.
      checkpoints: written at each epoch's end.
      state: the last finished epoch's, or an empty one; not a finished one.

    Returns:
      The last epoch's state; the model has the best epoch's weights.

    Raises:
      NotFinite: the loss became infinite or not a number.
    """
    assert train.epochs is not None
    keeper = _Keeper(train, run_dir, checkpoints, state)
    model.fit(
        batches.train,
        epochs=train.epochs,
        initial_epoch=len(state.epochs),
        steps_per_epoch=batches.steps,
        validation_data=batches.held_out,
        callbacks=[_Randomness(train.seed), _Progress(train, batches), keeper],
        verbose=0,
    )
    keeper.close()
    model.set_weights(keeper.state.best_weights)
    return keeper.state


class NotFinite(SafelightError):
    """The loss became infinite or not a number: the weights are of no use from there on."""


def _check_finite(loss: float, where: str, rate: float) -> None:
    if not math.isfinite(loss):
        raise NotFinite(
            f"The loss became {loss} {where}, at learning rate {rate:g}; expected a finite number. "
            f"Lower train.learning_rate, to {rate / 10:g} say, and run again."
        )


class _Randomness(keras.callbacks.Callback):
    """Sets the random layers' generators from (seed, epoch)."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        generators = [v for v in self.model.variables if v.name == "seed_generator_state"]
        for index, state in enumerate(generators):
            mixed = np.random.SeedSequence([self._seed, epoch, index]).generate_state(1)
            # Keras counts the second number up at each use.
            state.assign(np.array([mixed[0], 0], state.dtype))


class _Progress(keras.callbacks.Callback):
    """Says epoch, step, loss and accuracy a few times a second; stops at a loss not finite."""

    def __init__(self, train: Train, batches: Batches) -> None:
        super().__init__()
        self._train = train
        self._batches = batches
        self._epoch = 0
        self._told = 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        assert logs is not None
        step = batch + 1
        _check_finite(
            logs["loss"],
            f"in epoch {self._epoch + 1} at step {step} of {self._batches.steps}",
            float(self.model.optimizer.learning_rate),
        )
        if time.monotonic() - self._told >= _PROGRESS_SECONDS:
            self._told = time.monotonic()
            done = self._batches.examples * step // self._batches.steps
            self._tell(done, f"step {step}/{self._batches.steps} {_figures(logs)}")

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        assert logs is not None
        self._tell(self._batches.examples, f"{_figures(logs)} eval {logs['val_accuracy']:.3f}")

    def _tell(self, done: int, note: str) -> None:
        epochs = self._train.epochs or 1
        events.progress(
            "Trainer",
            self._epoch * self._batches.examples + done,
            epochs * self._batches.examples,
            "images",
            f"epoch {self._epoch + 1}/{epochs} {note}",
        )


class _Keeper(keras.callbacks.Callback):
    """Keeps the best epoch's weights, writes checkpoints and TensorBoard's logs, stops early."""

    def __init__(self, train: Train, run_dir: Path, checkpoints: Checkpoints, state: State) -> None:
        super().__init__()
        self.state = state
        self._train = train
        self._checkpoints = checkpoints
        self._writers = {
            name: tf.summary.create_file_writer(str(run_dir / name))
            for name in ("train", "validation")
        }
        self._started = self._fitted = 0.0
        for epoch in state.epochs:
            self._log(epoch)

    def close(self) -> None:
        """Ends TensorBoard's logs."""
        for writer in self._writers.values():
            writer.close()

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._started = self._fitted = time.monotonic()

    def on_test_begin(self, logs: dict[str, float] | None = None) -> None:
        self._fitted = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        assert logs is not None
        done = Epoch(
            epoch=epoch + 1,
            seconds=round(time.monotonic() - self._started, 3),
            fit_seconds=round(self._fitted - self._started, 3),
            loss=logs["loss"],
            accuracy=logs["accuracy"],
            eval_loss=logs["val_loss"],
            eval_accuracy=logs["val_accuracy"],
            learning_rate=float(self.model.optimizer.learning_rate),
        )
        _check_finite(done.eval_loss, f"on eval behind epoch {done.epoch}", done.learning_rate)
        self._log(done)
        self.state = self._after(done)
        self._checkpoints.save(self.state)
        self.model.stop_training = self.state.finished

    def _after(self, done: Epoch) -> State:
        epochs = (*self.state.epochs, done)
        best = min(epochs, key=lambda epoch: epoch.eval_loss).epoch
        patience = self._train.patience
        stop = 0 < patience <= done.epoch - best and done.epoch != self._train.epochs
        weights = self.model.get_weights()
        return State(
            epochs=epochs,
            best_epoch=best,
            finished=stop or done.epoch == self._train.epochs,
            stopped_early=stop,
            weights=weights,
            optimizer=[np.array(variable) for variable in self.model.optimizer.variables],
            best_weights=weights if best == done.epoch else self.state.best_weights,
        )

    def _log(self, epoch: Epoch) -> None:
        with self._writers["train"].as_default(step=epoch.epoch):
            tf.summary.scalar("loss", epoch.loss)
            tf.summary.scalar("accuracy", epoch.accuracy)
            tf.summary.scalar("learning_rate", epoch.learning_rate)
        with self._writers["validation"].as_default(step=epoch.epoch):
            tf.summary.scalar("loss", epoch.eval_loss)
            tf.summary.scalar("accuracy", epoch.eval_accuracy)


def _figures(logs: dict[str, float]) -> str:
    return f"loss {logs['loss']:.3f} accuracy {logs['accuracy']:.3f}"
