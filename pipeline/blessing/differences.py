"""What a model said once beside what it said another time: other classes, and how far apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.evaluator.head_columns import Classes, HeadColumns, Values
from pipeline.evaluator.predictions import Predictions
from pipeline.heads import LABEL


@dataclass(frozen=True)
class Difference:
    """Of one head: rows with another class, and the largest difference of a number."""

    wrong: frozenset[int] = frozenset()
    most: float = 0.0

    def joined(self, other: Difference) -> Difference:
        """Returns the two in one."""
        return Difference(self.wrong | other.wrong, max(self.most, other.most))


def by_head(expected: Predictions) -> dict[str, HeadColumns]:
    """Returns what was said before of each head, the label's first."""
    names: list[str | None] = list(expected.labels)
    label = Classes(expected.classes, names, expected.predicted, expected.probabilities)
    return {LABEL: label, **expected.heads}


def differ(
    expected: HeadColumns, rows: Sequence[int], given: Mapping[str, Any], tie: float | None = None
) -> Difference:
    """Compares what one head says now with what it said before.

    Numbers of a regression head may be large: their difference is taken relative to those beyond 1.

    Args:
      expected: what it said, of all images.
      rows: those that were asked about again.
      given: `values`, or `probabilities` and, unless `tie` is given, `labels`.
      tie: with it a class counts as another only where its probability is by more than this the
        greater one; nobody names the classes then.

    Raises:
      KeyError, ValueError: the answer has another form; the message ends a sentence.
    """
    if isinstance(expected, Values):
        key, wanted = "values", expected.predicted[rows].astype(np.float64)
        scale = np.maximum(1.0, np.abs(wanted))
    else:
        key, wanted = "probabilities", expected.probabilities[rows].astype(np.float64)
        scale = np.ones_like(wanted)
    if key not in given:
        raise ValueError(f"no {key}")
    numbers = np.asarray(given[key], np.float64)
    if numbers.shape != wanted.shape:
        raise ValueError(f"{key} of shape {numbers.shape}, where {wanted.shape} was expected,")
    apart = np.abs(numbers - wanted) / scale
    # NaN differs from everything.
    most = float(np.where(np.isnan(apart), 1.0, apart).max(initial=0))
    if isinstance(expected, Values):
        return Difference(most=most)
    if tie is not None:
        return Difference(_surely_other(expected, rows, numbers, tie), most)
    pairs = zip(rows, given["labels"], strict=True)
    return Difference(frozenset(r for r, name in pairs if name != expected.predicted[r]), most)


def _surely_other(
    expected: Classes, rows: Sequence[int], numbers: npt.NDArray[np.float64], tie: float
) -> frozenset[int]:
    place = {name: index for index, name in enumerate(expected.classes)}
    other = set()
    for row, probabilities in zip(rows, numbers, strict=True):
        named = place.get(expected.predicted[row])
        if named is None or not probabilities.max() - probabilities[named] <= tie:
            other.add(row)
    return frozenset(other)


def told(found: Mapping[str, Difference], tolerance: float) -> dict[str, Any]:
    """Returns what serving_check.json says of the heads' differences."""
    wrong = frozenset[int]().union(*(one.wrong for one in found.values()))
    most = max(one.most for one in found.values())
    return {
        "passed": not wrong and most <= tolerance,
        "label_mismatches": len(wrong),
        "max_difference": most,
    }


def what(expected: Predictions, name: str) -> str:
    """Returns what a head's numbers are called."""
    if name == LABEL:
        return "probabilities"
    values = isinstance(expected.heads[name], Values)
    return f"values of {name}" if values else f"probabilities of {name}"
