"""How the learning rate moves over the steps of a phase.

A rate is a function of the step, which is one of the optimizer's variables: so a resumed run goes
on with the rate that it would have had. With gradient accumulation a step is a batch, not an
update.
"""

from __future__ import annotations

import math
from typing import Any, Final

import keras
from keras import ops

from pipeline.config import Train
from pipeline.phases import Phase

# One-cycle (Smith and Topin 2018, super-convergence): from a 25th of the peak up over 30 % of the
# steps, then down by a half cosine to a ten-thousandth.
_CYCLE_START: Final = 1 / 25
_CYCLE_RISE: Final = 0.3
_CYCLE_END: Final = 1e-4


def make(train: Train, phase: Phase, steps_per_epoch: int) -> float | Schedule:
    """Returns the rate of a phase: a number where it never moves, else its schedule."""
    if phase.schedule == "constant" and train.warmup_epochs == 0:
        return phase.learning_rate
    return Schedule(
        kind=phase.schedule,
        peak=phase.learning_rate,
        steps=phase.epochs * steps_per_epoch,
        warmup=train.warmup_epochs * steps_per_epoch,
        drop_steps=train.step_epochs * steps_per_epoch,
        drop=train.step_factor,
        floor=min(train.min_learning_rate, phase.learning_rate),
    )


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """The rate at a step, float32.

    Attributes:
      factor: what the plateau schedule has multiplied the peak by; a variable, for the compiled
        step to read it anew.
    """

    def __init__(
        self,
        *,
        kind: str,
        peak: float,
        steps: int,
        warmup: float = 0.0,
        drop_steps: int = 1,
        drop: float = 0.1,
        floor: float = 0.0,
    ) -> None:
        """Takes the highest rate, and the phase's, the warm-up's and a drop's steps."""
        super().__init__()
        self._kind = kind
        self._peak = peak
        self._steps = steps
        self._warmup = warmup or (_CYCLE_RISE * steps if kind == "one-cycle" else 0.0)
        self._start = _CYCLE_START if kind == "one-cycle" else 0.0
        self._drop_steps = drop_steps
        self._drop = drop
        self._floor = floor
        self.factor = (
            keras.Variable(1.0, trainable=False, name="plateau") if kind == "plateau" else None
        )

    def __call__(self, step: Any) -> Any:
        """Returns the rate of the step that comes next, `step` of which lie behind."""
        done = ops.cast(step, "float32")
        rate = ops.maximum(self._behind_warmup(done), self._floor)
        if not self._warmup:
            return rate
        risen = ops.minimum((done + 1.0) / max(self._warmup, 1.0), 1.0)
        return ops.where(
            done < self._warmup, self._peak * (self._start + (1 - self._start) * risen), rate
        )

    def _behind_warmup(self, done: Any) -> Any:
        if self._kind == "step":
            return self._peak * ops.power(self._drop, ops.floor(done / self._drop_steps))
        if self._kind in ("cosine", "one-cycle"):
            end = self._peak * _CYCLE_END if self._kind == "one-cycle" else self._floor
            span = max(self._steps - self._warmup, 1.0)
            part = ops.clip((done - self._warmup) / span, 0.0, 1.0)
            return end + (self._peak - end) * 0.5 * (1.0 + ops.cos(math.pi * part))
        if self.factor is not None:
            return self._peak * ops.convert_to_tensor(self.factor)
        return ops.full((), self._peak, "float32")

    def get_config(self) -> dict[str, Any]:
        """Returns what the schedule was made of."""
        return {
            "kind": self._kind,
            "peak": self._peak,
            "steps": self._steps,
            "warmup": self._warmup,
            "drop_steps": self._drop_steps,
            "drop": self._drop,
            "floor": self._floor,
        }


def set_plateau(optimizer: keras.optimizers.Optimizer, factor: float) -> None:
    """Tells a plateau schedule what its peak is multiplied by; nothing without one."""
    schedule = _of(optimizer)
    if schedule is not None and schedule.factor is not None:
        schedule.factor.assign(factor)


def last_rate(optimizer: keras.optimizers.Optimizer) -> float:
    """Returns the rate of the step that lies just behind, where Keras tells the next one's.

    Under a strategy each replica holds the same.
    """
    schedule = _of(optimizer)
    if schedule is None:
        return float(ops.convert_to_numpy(optimizer.learning_rate))
    steps = int(ops.convert_to_numpy(_inner(optimizer).iterations))
    return float(schedule(max(steps - 1, 0)))


def _of(optimizer: keras.optimizers.Optimizer) -> Schedule | None:
    schedule = getattr(_inner(optimizer), "_learning_rate", None)
    return schedule if isinstance(schedule, Schedule) else None


def _inner(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Returns the optimizer behind float16's loss scaling."""
    return getattr(optimizer, "inner_optimizer", optimizer)
