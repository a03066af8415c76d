"""The optimizers: Keras's own, with decay, clipping, averaging and accumulation as configured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from pipeline.config import Train
from pipeline.phases import Phase
from pipeline.trainer import schedules

_KINDS = {
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
    "sgd": keras.optimizers.SGD,
    "rmsprop": keras.optimizers.RMSprop,
    "lion": keras.optimizers.Lion,
}


def make(
    train: Train, phase: Phase, steps_per_epoch: int, variables: Sequence[keras.Variable]
) -> keras.optimizers.Optimizer:
    """Returns a fresh optimizer for a phase, not yet built.

    Weight decay is decoupled (Loshchilov and Hutter 2019), whichever the optimizer, and spares
    vectors and numbers: biases, and the scales and offsets of normalizations.

    Args:
      train: the configuration.
      phase: with its rate and schedule.
      steps_per_epoch: batches of an epoch.
      variables: those that will be trained.
    """
    options: dict[str, Any] = {
        "learning_rate": schedules.make(train, phase, steps_per_epoch),
        # AdamW refuses None; the others take 0 as a decay of nothing, at the cost of computing it.
        "weight_decay": train.weight_decay or (0.0 if train.optimizer == "adamw" else None),
        "global_clipnorm": train.clip_norm or None,
        "gradient_accumulation_steps": train.accumulate if train.accumulate > 1 else None,
    }
    if train.ema:
        # Keras averages behind each batch, also while it only accumulates: the momentum of as many
        # batches as an update has comes to the one that was asked for, the last of them counting
        # with the next update.
        options |= {"use_ema": True, "ema_momentum": train.ema ** (1 / train.accumulate)}
    if train.optimizer == "sgd":
        options |= {"momentum": train.momentum, "nesterov": train.nesterov}
    if train.optimizer == "rmsprop":
        options["momentum"] = train.momentum
    optimizer = _KINDS[train.optimizer](**options)
    optimizer.exclude_from_weight_decay(
        var_list=[variable for variable in variables if len(variable.shape) < 2]
    )
    return optimizer


class Averages:
    """Lends a model the moving average of its weights, and takes it back.

    Without train.ema it does nothing.
    """

    def __init__(self, model: keras.Model, train: Train) -> None:
        self._model = model
        self._on = train.ema > 0
        self._kept: list[np.ndarray[Any, Any]] | None = None

    def lend(self) -> None:
        """The model has the averaged weights from here on."""
        if not self._on or self._kept is not None:
            return
        # Where float16 has left out every step so far, there is nothing to average: all zeros.
        if not int(keras.ops.convert_to_numpy(self._model.optimizer.iterations)):
            return
        trained = self._model.trainable_variables
        self._kept = [np.array(variable) for variable in trained]
        self._model.optimizer.finalize_variable_values(trained)

    def take_back(self) -> None:
        """The model has the weights that are being trained again."""
        if self._kept is None:
            return
        for variable, value in zip(self._model.trainable_variables, self._kept, strict=True):
            variable.assign(value)
        self._kept = None
