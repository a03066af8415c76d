"""The confusion matrix of a class head: a table, or of many classes a map and the worst pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from pipeline.report import figures

# Up to here the matrix is a table with numbers; above, a map beside a list of the worst pairs.
MATRIX_CLASSES = 24
_PAIRS = 12

Counts = npt.NDArray[np.int64]


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
class Confusion:
    """What is shown of it; `matrix` is empty where `heat` stands for it."""

    names: tuple[str, ...]
    matrix: list[list[Cell]]
    heat: Markup
    pairs: list[Pair]

    @property
    def short_names(self) -> bool:
        """Whether the names can stand upright above the columns."""
        return max(map(len, self.names), default=0) <= 3


def build(names: tuple[str, ...], counts: Counts) -> Confusion:
    """Returns what is shown of counts [truth, answer]."""
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    small = len(names) <= MATRIX_CLASSES
    title = f"Confusion matrix of {len(names)} classes: rows are the truth, columns the answer"
    return Confusion(
        names=names,
        matrix=_cells(counts, share) if small else [],
        heat=Markup("") if small else figures.heat_map(title, share),
        pairs=_pairs(names, counts, share),
    )


def count(
    known: tuple[str, ...], truth: Sequence[str], predicted: Sequence[str]
) -> tuple[tuple[str, ...], Counts]:
    """Returns the classes, those that the data alone knows last, and counts [truth, answer]."""
    names = known + tuple(sorted(set(truth) - set(known)))
    index = {name: number for number, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(counts, ([index[name] for name in truth], [index[name] for name in predicted]), 1)
    return names, counts


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
