"""The challenger beside the champion, on the same images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.blessing import bounds
from pipeline.report.collect import Answers, Record

_CLASSES = 10
_LOSSES = frozenset({"cross_entropy"})


@dataclass(frozen=True)
class ClassChange:
    """A class's recall with either model."""

    name: str
    n: int
    before: float
    after: float


@dataclass(frozen=True)
class MetricChange:
    """A metric of either model on the same images, and the interval of the difference.

    `low` and `high` are the paired bootstrap's; None where it was not asked.
    """

    name: str
    after: float | None
    before: float | None
    difference: float | None
    low: float | None
    high: float | None
    verdict: str

    @property
    def share(self) -> bool:
        """Whether it is a share of images, and not a loss."""
        return self.name not in _LOSSES


@dataclass(frozen=True)
class Comparison:
    """Paired counts, and the difference of accuracies with its one-sided bounds.

    `said` is the gate's verdict by `metric`, `p_value` McNemar's, and `needed` about how many
    images would decide where the verdict is undecided.
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
    metrics: list[MetricChange]
    classes: list[ClassChange]
    same_model: bool


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
        metrics=_metrics(told.get("metrics") or {}),
        classes=_changes(new, shared, right_new, right_old),
        same_model=bool(new.model) and new.model == old.model,
    )


def _metrics(told: Mapping[str, Mapping[str, Any]]) -> list[MetricChange]:
    return [_metric(name, row) for name, row in told.items()]


def _metric(name: str, row: Mapping[str, Any]) -> MetricChange:
    """Returns a metric; what verdict.json tells of a loss is the gain, which is turned round."""
    gain = tuple(row.get(key) for key in ("difference", "lower", "upper"))
    if name in _LOSSES:
        gain = tuple(None if value is None else -value for value in (gain[0], gain[2], gain[1]))
    return MetricChange(
        name=name,
        after=row.get("value"),
        before=row.get("champion"),
        difference=gain[0],
        low=gain[1],
        high=gain[2],
        verdict=row.get("verdict") or "",
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
