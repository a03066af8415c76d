"""What the model reached on the test images: metrics, confusion, and each class."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pipeline.report import confusion, shares
from pipeline.report.collect import Answers, Record
from pipeline.report.confusion import Confusion, Counts
from pipeline.report.shares import Share


@dataclass(frozen=True)
class ClassResult:
    """One class: how many of its images were found, and how many of those named so are of it."""

    name: str
    support: int
    recall: Share | None
    precision: Share | None
    f1: float | None


@dataclass(frozen=True)
class Results:
    """What the section shows."""

    metrics: dict[str, float]
    accuracy: Share | None
    majority_share: float | None
    test_examples: int
    classes: list[ClassResult]
    confusion: Confusion

    @cached_property
    def axis(self) -> float:
        """Where the drawing of recalls begins; each row of the table asks for it."""
        return shares.axis(row.recall for row in self.classes)


def build(record: Record) -> Results | None:
    """Returns the results, or None if nothing was predicted."""
    verdict = record.verdict or {}
    names, counts = counted(verdict, record.predictions)
    if counts is None:
        return None
    total, right = int(counts.sum()), int(np.trace(counts))
    return Results(
        metrics=verdict.get("metrics", {}),
        accuracy=shares.of(right, total),
        majority_share=verdict.get("majority_share"),
        test_examples=verdict.get("test_examples", total),
        classes=_classes(names, counts, verdict.get("per_class", {})),
        confusion=confusion.build(names, counts),
    )


def counted(
    verdict: dict[str, Any], predictions: Answers | None
) -> tuple[tuple[str, ...], Counts | None]:
    """Returns the classes and the counts [truth, answer], from the verdict or the predictions.

    The verdict's come first: they are what the gate judged. A run that failed before the gate has
    predictions alone.
    """
    if verdict.get("confusion") and verdict.get("per_class"):
        return tuple(verdict["per_class"]), np.asarray(verdict["confusion"], dtype=np.int64)
    if predictions is None:
        return (), None
    labels, predicted = predictions.labels.tolist(), predictions.predicted.tolist()
    return confusion.count(predictions.classes, labels, predicted)


def _classes(
    names: tuple[str, ...], counts: Counts, told: dict[str, dict[str, float]]
) -> list[ClassResult]:
    """Returns the classes, the one with the lowest recall first."""
    found = []
    for number, name in enumerate(names):
        hits = int(counts[number, number])
        recall = shares.of(hits, int(counts[number].sum()))
        precision = shares.of(hits, int(counts[:, number].sum()))
        f1 = told.get(name, {}).get("f1")
        if f1 is None and recall and precision:
            f1 = 2 * hits / (recall.n + precision.n)
        found.append(ClassResult(name, int(counts[number].sum()), recall, precision, f1))
    return sorted(found, key=lambda row: (row.recall.value if row.recall else 2.0, row.name))
