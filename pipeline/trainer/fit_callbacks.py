"""What happens around the epochs and steps of fitting, whatever runs them.

`pipeline.trainer.fitting` hands these to Keras's own loop, or to the one of several workers
(`pipeline.trainer.loop`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf

from pipeline import events, phases
from pipeline.config import Train
from pipeline.errors import SafelightError
from pipeline.heads import LABEL, Head
from pipeline.phases import Phase
from pipeline.trainer import schedules
from pipeline.trainer.checkpoints import Checkpoints, Epoch, PhaseRecord, State
from pipeline.trainer.optimizers import Averages

_PROGRESS_SECONDS: Final = 0.2


class NotFinite(SafelightError):
    """The loss became infinite or not a number: the weights are of no use from there on."""


def _check_finite(loss: float, where: str, rate: float) -> None:
    if not math.isfinite(loss):
        raise NotFinite(
            f"The loss became {loss} {where}, at learning rate {rate:g}; expected a finite number. "
            f"Lower train.learning_rate, to {rate / 10:g} say, and run again."
        )


class Randomness(keras.callbacks.Callback):
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


class Progress(keras.callbacks.Callback):
    """Says epoch, step, loss and accuracy a few times a second; stops at a loss not finite."""

    def __init__(self, stage: str, epochs: int, examples: int, steps: int, several: bool) -> None:
        """Takes the epochs of all phases together, and an epoch's examples and steps."""
        super().__init__()
        self._stage = stage
        self._epochs = epochs
        self._examples = examples
        self._steps = steps
        self._accuracy = accuracy_name(several)
        self._epoch = 0
        self._told = 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        assert logs is not None
        step = batch + 1
        if not math.isfinite(logs["loss"]):  # first: a scheduled rate takes a few operations
            where = f"in epoch {self._epoch + 1} at step {step} of {self._steps}"
            _check_finite(float(logs["loss"]), where, schedules.last_rate(self.model.optimizer))
        if time.monotonic() - self._told >= _PROGRESS_SECONDS:
            self._told = time.monotonic()
            done = self._examples * step // self._steps
            self._tell(done, f"step {step}/{self._steps} {self._figures(logs)}")

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        assert logs is not None
        held_out = logs[f"val_{self._accuracy}"]
        self._tell(self._examples, f"{self._figures(logs)} eval {held_out:.3f}")

    def _figures(self, logs: Mapping[str, float]) -> str:
        return f"loss {logs['loss']:.3f} accuracy {logs[self._accuracy]:.3f}"

    def _tell(self, done: int, note: str) -> None:
        events.progress(
            self._stage,
            self._epoch * self._examples + done,
            self._epochs * self._examples,
            "images",
            f"epoch {self._epoch + 1}/{self._epochs} {note}",
        )


class Keeper(keras.callbacks.Callback):
    """Ends each epoch: evaluates the averaged weights, keeps the best, writes the checkpoint and
    TensorBoard's logs, moves the plateau schedule, and stops a phase early.

    The callbacks before it in the list see the weights that were evaluated.
    """

    def __init__(
        self,
        train: Train,
        heads: Sequence[Head],
        run_dir: Path | None,
        checkpoints: Checkpoints | None,
        state: State,
    ) -> None:
        """Takes the state of the last finished epoch; None: writes no logs, or no checkpoints."""
        super().__init__()
        self.state = state
        self._train = train
        self._heads = heads
        self._checkpoints = checkpoints
        self._accuracy = accuracy_name(len(heads) > 1)
        self._writers = {
            name: tf.summary.create_file_writer(str(run_dir / name))
            for name in ("train", "validation")
            if run_dir is not None
        }
        self._started = self._fitted = 0.0
        self._last = False
        self._phase: Phase
        for epoch in state.epochs:
            self._log(epoch)

    def begin(self, model: keras.Model, phase: Phase, last: bool) -> None:
        """Takes the phase that comes next, or goes on; the model is compiled for it."""
        self._phase, self._last = phase, last
        self._averages = Averages(model, self._train)
        self._trainable = sum(math.prod(v.shape) for v in model.trainable_variables)

    def close(self) -> None:
        """Ends TensorBoard's logs."""
        for writer in self._writers.values():
            writer.close()

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        losses = phase_losses(self.state) if self._goes_on() else []
        dropped = phases.drops(losses, self._train.plateau_epochs)
        schedules.set_plateau(self.model.optimizer, self._train.step_factor**dropped)
        self._started = self._fitted = time.monotonic()

    def on_test_begin(self, logs: dict[str, float] | None = None) -> None:
        self._fitted = time.monotonic()
        self._averages.lend()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        assert logs is not None
        done = Epoch(
            epoch=epoch + 1,
            seconds=round(time.monotonic() - self._started, 3),
            fit_seconds=round(self._fitted - self._started, 3),
            loss=logs["loss"],
            accuracy=logs[self._accuracy],
            eval_loss=logs["val_loss"],
            eval_accuracy=logs[f"val_{self._accuracy}"],
            learning_rate=schedules.last_rate(self.model.optimizer),
            heads=_by_head(self._heads, logs),
        )
        _check_finite(done.eval_loss, f"on eval behind epoch {done.epoch}", done.learning_rate)
        self._log(done)
        evaluated = self.model.get_weights()
        self._averages.take_back()
        self.state = self._after(done, evaluated)
        if self._checkpoints is not None:
            self._checkpoints.save(self.state)
        self.model.stop_training = phases.over(self._phase, phase_losses(self.state))

    def _goes_on(self) -> bool:
        """Says whether the state's last phase is the one that runs."""
        return bool(self.state.phases) and self.state.phases[-1].name == self._phase.name

    def _after(self, done: Epoch, evaluated: list[Any]) -> State:
        epochs = (*self.state.epochs, done)
        best = min(epochs, key=lambda epoch: epoch.eval_loss).epoch
        records = self._records(done)
        losses = [epoch.eval_loss for epoch in epochs[records[-1].first_epoch - 1 :]]
        stopped = phases.stopped_early(self._phase, losses)
        return State(
            epochs=epochs,
            best_epoch=best,
            finished=self._last and phases.over(self._phase, losses),
            stopped_early=self.state.stopped_early or stopped,
            weights=self.model.get_weights(),
            optimizer=[np.array(variable) for variable in self.model.optimizer.variables],
            best_weights=evaluated if best == done.epoch else self.state.best_weights,
            phases=records,
        )

    def _records(self, done: Epoch) -> tuple[PhaseRecord, ...]:
        if self._goes_on():
            *before, current = self.state.phases
            return (*before, replace(current, epochs=current.epochs + 1))
        begun = PhaseRecord(
            name=self._phase.name,
            first_epoch=done.epoch,
            epochs=1,
            unfreeze=self._phase.unfreeze,
            learning_rate=self._phase.learning_rate,
            trainable_parameters=self._trainable,
        )
        return (*self.state.phases, begun)

    def _log(self, epoch: Epoch) -> None:
        if not self._writers:
            return
        with self._writers["train"].as_default(step=epoch.epoch):
            tf.summary.scalar("loss", epoch.loss)
            tf.summary.scalar("accuracy", epoch.accuracy)
            tf.summary.scalar("learning_rate", epoch.learning_rate)
            _log_heads(epoch, held_out=False)
        with self._writers["validation"].as_default(step=epoch.epoch):
            tf.summary.scalar("loss", epoch.eval_loss)
            tf.summary.scalar("accuracy", epoch.eval_accuracy)
            _log_heads(epoch, held_out=True)


def phase_losses(state: State) -> list[float]:
    """Returns the eval losses of the epochs of the state's last phase."""
    if not state.phases:
        return []
    return [epoch.eval_loss for epoch in state.epochs[state.phases[-1].first_epoch - 1 :]]


def accuracy_name(several: bool) -> str:
    """Returns what Keras calls the label's accuracy, with one head or several."""
    return f"{LABEL}_accuracy" if several else "accuracy"


def _by_head(heads: Sequence[Head], logs: Mapping[str, float]) -> dict[str, dict[str, float]]:
    if len(heads) == 1:
        return {}
    found = {}
    for head in heads:
        named = ("loss", "mae" if head.kind == "regression" else "accuracy")
        found[head.name] = {
            f"{ours}{name}": float(logs[f"{theirs}{head.name}_{name}"])
            for ours, theirs in (("", ""), ("eval_", "val_"))
            for name in named
        }
    return found


def _log_heads(epoch: Epoch, held_out: bool) -> None:
    for head, figures in epoch.heads.items():
        for name, value in figures.items():
            if name.startswith("eval_") == held_out:
                tf.summary.scalar(f"{head}/{name.removeprefix('eval_')}", value)
