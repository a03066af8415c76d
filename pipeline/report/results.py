"""What the model reached on the test images: metrics, confusion, and each class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from pipeline.report import figures, shares
from pipeline.report.collect import Answers, Record
from pipeline.report.shares import Share

# Up to here the matrix is a table with numbers; above, a map beside a list of the worst pairs.
MATRIX_CLASSES = 24
_PAIRS = 12

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ClassResult:
    """One class: how many of its images were found, and how many of those named so are of it."""

    name: str
    support: int
    recall: Share | None
    precision: Share | None
    f1: float | None


@dataclass(frozen=True)
class Cell:
    """A count of the matrix, its share of the row and its shade (0-5)."""

    count: int
    share: float
    shade: int
    diagonal: bool


@dataclass(frozen=True)
class Pair:
    """A confusion: `count` of the images of `truth` were called `predicted`."""

    truth: str
    predicted: str
    count: int
    share: float


@dataclass(frozen=True)
class Results:
    """What the section shows; `matrix` is empty where `heat` stands for it."""

    metrics: dict[str, float]
    accuracy: Share | None
    majority_share: float | None
    test_examples: int
    classes: list[ClassResult]
    names: tuple[str, ...]
    matrix: list[list[Cell]]
    heat: Markup
    pairs: list[Pair]

    @property
    def axis(self) -> float:
        """Where the drawing of recalls begins."""
        return shares.axis(row.recall for row in self.classes)

    @property
    def short_names(self) -> bool:
        """Whether the names can stand upright above the columns."""
        return max(map(len, self.names), default=0) <= 3


def build(record: Record) -> Results | None:
    """Returns the results, or None if nothing was predicted."""
    verdict = record.verdict or {}
    names, counts = confusion(verdict, record.predictions)
    if counts is None:
        return None
    rows = counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(rows, 1)
    small = len(names) <= MATRIX_CLASSES
    total, right = int(counts.sum()), int(np.trace(counts))
    title = f"Confusion matrix of {len(names)} classes: rows are the truth, columns the answer"
    return Results(
        metrics=verdict.get("metrics", {}),
        accuracy=shares.of(right, total),
        majority_share=verdict.get("majority_share"),
        test_examples=verdict.get("test_examples", total),
        classes=_classes(names, counts, verdict.get("per_class", {})),
        names=names,
        matrix=_cells(counts, share) if small else [],
        heat=Markup("") if small else figures.heat_map(title, share),
        pairs=_pairs(names, counts, share),
    )


def confusion(
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
    known = predictions.classes
    names = known + tuple(sorted(set(predictions.labels) - set(known)))
    index = {name: number for number, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    truth = [index[name] for name in predictions.labels]
    answer = [index[name] for name in predictions.predicted]
    np.add.at(counts, (truth, answer), 1)
    return names, counts


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


def _cells(counts: Counts, share: npt.NDArray[np.float64]) -> list[list[Cell]]:
    shades = figures.shade(share)
    size = len(counts)
    return [
        [
            Cell(int(counts[i, j]), float(share[i, j]), int(shades[i, j]), i == j)
            for j in range(size)
        ]
        for i in range(size)
    ]


def _pairs(names: tuple[str, ...], counts: Counts, share: npt.NDArray[np.float64]) -> list[Pair]:
    """Returns the confusions with the most images, each at least one."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS]
    found = []
    for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True):
        if wrong[i, j] > 0:
            found.append(Pair(names[i], names[j], int(wrong[i, j]), float(share[i, j])))
    return found
