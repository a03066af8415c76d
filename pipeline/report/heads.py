"""What the model reached with the heads beside the label, on the test images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from pipeline.evaluator.head_columns import Classes, HeadColumns, Values
from pipeline.report import confusion, figures, formats, measures, shares
from pipeline.report.collect import Record
from pipeline.report.confusion import Confusion
from pipeline.report.shares import Share

_BINS = 25


@dataclass(frozen=True)
class HeadResult:
    """One head: of a class head `accuracy` and `confusion`, of a regression head `errors`.

    `metrics` are by name; `known` of the `images` have a truth and an answer to compare; `change`
    is the gate's comparison with the champion, if it made one.
    """

    name: str
    kind: str
    images: int
    known: int
    metrics: dict[str, float]
    accuracy: Share | None = None
    confusion: Confusion | None = None
    errors: Markup = field(default_factory=Markup)
    change: measures.Change | None = None


def build(record: Record) -> list[HeadResult]:
    """Returns the heads beside the label, in their order; none without predictions."""
    predictions = record.predictions
    if predictions is None:
        return []
    told = (record.verdict or {}).get("heads") or {}
    found = []
    for name, columns in predictions.heads.items():
        head = told.get(name, {})
        result = _result(name, columns, head.get("metrics") or {})
        found.append(replace(result, change=_change(head)))
    return found


def _result(name: str, columns: HeadColumns, told: dict[str, float]) -> HeadResult:
    if isinstance(columns, Classes):
        return _of_classes(name, columns, told)
    return _of_values(name, columns, told)


def _change(head: Mapping[str, Any]) -> measures.Change | None:
    """Returns the comparison by what a head is compared by: its accuracy, or its mean error."""
    told = head.get("champion")
    if not told:
        return None
    metric = "mae" if head.get("kind") == "regression" else "accuracy"
    after = (head.get("metrics") or {}).get(metric)
    return measures.change(metric, {**told, "champion": told.get(metric), "value": after})


def _of_classes(name: str, columns: Classes, told: dict[str, float]) -> HeadResult:
    pairs = [
        (label, answer)
        for label, answer in zip(columns.labels, columns.predicted, strict=True)
        if label is not None
    ]
    truth, answers = [label for label, _ in pairs], [answer for _, answer in pairs]
    names, counts = confusion.count(columns.classes, truth, answers)
    return HeadResult(
        name=name,
        kind="class",
        images=len(columns.labels),
        known=len(pairs),
        metrics=told,
        accuracy=shares.of(int(np.trace(counts)), len(pairs)),
        confusion=confusion.build(names, counts) if pairs else None,
    )


def _of_values(name: str, columns: Values, told: dict[str, float]) -> HeadResult:
    known = np.isfinite(columns.truth) & np.isfinite(columns.predicted)
    truth = columns.truth[known].astype(np.float64)
    errors = columns.predicted[known].astype(np.float64) - truth
    return HeadResult(
        name=name,
        kind="regression",
        images=len(known),
        known=int(known.sum()),
        metrics=told or _measured(truth, errors),
        errors=_histogram(name, errors),
    )


def _measured(truth: npt.NDArray[np.float64], errors: npt.NDArray[np.float64]) -> dict[str, float]:
    if not len(errors):
        return {}
    spread = float(((truth - truth.mean()) ** 2).sum())
    found = {"mae": float(np.abs(errors).mean()), "rmse": float(np.sqrt((errors**2).mean()))}
    return {**found, "r2": 1 - float((errors**2).sum()) / spread} if spread else found


def _histogram(name: str, errors: npt.NDArray[np.float64]) -> Markup:
    """Counts the errors in bins that lie evenly around zero."""
    widest = float(np.abs(errors).max()) if len(errors) else 0.0
    if not np.isfinite(widest) or widest == 0:
        return Markup("")
    counts, edges = np.histogram(errors, _BINS, (-widest, widest))
    low, middle, high = np.quantile(errors, (0.05, 0.5, 0.95))
    title = (
        f"Errors of {name}, answer less truth: half of them below {formats.short(middle)}, nine "
        f"in ten between {formats.short(low)} and {formats.short(high)}"
    )
    return figures.histogram(title, counts.tolist(), edges.tolist(), formats.short)
