"""The challenger beside the champion, on the same images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.blessing import bounds
from pipeline.report import formats, measures
from pipeline.report.collect import Answers, Record

_CLASSES = 10


@dataclass(frozen=True)
class ClassChange:
    """A class's recall with either model."""

    name: str
    n: int
    before: float
    after: float


@dataclass(frozen=True)
class Comparison:
    """Paired counts, and the difference of accuracies with its one-sided bounds.

    `said` is the gate's verdict by `metric`, `p_value` McNemar's, and `needed` about how many
    images would decide where the verdict is undecided. `margin` is in the unit of `metric`.
    """

    version: int | None
    n: int
    both: int
    only_new: int
    only_old: int
    neither: int
    new_accuracy: float
    old_accuracy: float
    difference: float
    low: float
    high: float
    confidence: float
    margin: float
    said: str
    metric: str
    p_value: float | None
    needed: int | None
    metrics: list[measures.Change]
    classes: list[ClassChange]
    same_model: bool

    @property
    def deciding(self) -> measures.Change | None:
        """The metric that decides; None where the gate told none."""
        return next((it for it in self.metrics if it.name == self.metric), None)

    @property
    def allowed(self) -> str:
        """What the challenger may be worse by, in a few words."""
        if self.metric in measures.LOSSES:
            return f"up to {formats.short(self.margin)} nats may be added"
        points = formats.short(100 * self.margin)
        return f"up to {points} point{'' if points == '1' else 's'} may be lost"


def build(record: Record) -> Comparison | None:
    """Returns the comparison, or None if there was no champion or it shares no image."""
    new, old = record.predictions, record.champion
    if new is None or old is None:
        return None
    place = {name: row for row, name in enumerate(old.ids)}
    rows = np.array([place.get(name, -1) for name in new.ids], dtype=np.int64)
    shared = rows >= 0
    if not shared.any():
        return None
    right_new, right_old = new.correct[shared], old.correct[rows[shared]]
    n = int(shared.sum())
    only_new, only_old = int((right_new & ~right_old).sum()), int((right_old & ~right_new).sum())
    options = record.request.config["evaluate"]
    # The gate's own bounds: one-sided, with its confidence.
    low, high = bounds.difference_bounds(only_new, only_old, n, options["confidence"])
    told = (record.verdict or {}).get("champion") or {}
    return Comparison(
        version=told.get("version", record.request.inputs.get("champion")),
        n=n,
        both=int((right_new & right_old).sum()),
        only_new=only_new,
        only_old=only_old,
        neither=int((~right_new & ~right_old).sum()),
        new_accuracy=float(right_new.mean()),
        old_accuracy=float(right_old.mean()),
        difference=(only_new - only_old) / n,
        low=low,
        high=high,
        confidence=options["confidence"],
        margin=options["max_regression"],
        said=told.get("verdict") or "",
        metric=told.get("metric") or "accuracy",
        p_value=told.get("p_value"),
        needed=told.get("images_needed"),
        metrics=[measures.change(*row) for row in (told.get("metrics") or {}).items()],
        classes=_changes(new, shared, right_new, right_old),
        same_model=bool(new.model) and new.model == old.model,
    )


def _changes(
    new: Answers, shared: np.ndarray, right_new: np.ndarray, right_old: np.ndarray
) -> list[ClassChange]:
    """Returns the classes whose recall changed most, the greatest loss first."""
    labels = new.labels[shared]
    found = []
    for name in sorted(set(labels)):
        inside = labels == name
        before, after = float(right_old[inside].mean()), float(right_new[inside].mean())
        if before != after:
            found.append(ClassChange(name, int(inside.sum()), before, after))
    most = sorted(found, key=lambda change: -abs(change.after - change.before))[:_CLASSES]
    return sorted(most, key=lambda change: change.after - change.before)
