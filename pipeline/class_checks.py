"""What a class head is held to, the label's own included: one check each, one plain sentence.

Pure: numbers in, checks out. docs/blessing.md explains the statistics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import bounds
from pipeline.errors import bounded
from pipeline.heads import LABEL
from pipeline.measured import Measured

# Batches of another size may round a near tie the other way: one image in a thousand, at least 1.
_ROUNDING_SHARE = 0.001


@dataclass(frozen=True)
class Check:
    """One thing that was checked; `bound` is what `threshold` is compared with."""

    name: str
    value: float | None
    bound: float | None
    threshold: float | None
    passed: bool
    message: str


@dataclass(frozen=True)
class Floors:
    """What one class head must reach; None where the data decides."""

    head: str
    min_accuracy: float | None
    min_class_recall: float | None
    max_regression: float
    confidence: float

    def check(self, name: str) -> str:
        """Returns the name of a check: the label's are bare."""
        return name if self.head == LABEL else f"{name}:{self.head}"

    def key(self, name: str) -> str:
        """Returns the configuration's key."""
        return f"evaluate.{name}" if self.head == LABEL else f"evaluate.heads.{self.head}.{name}"

    @property
    def of(self) -> str:
        """The head in a sentence, with a space before it."""
        return "" if self.head == LABEL else f" of {self.head}"


def sound(
    classes: Sequence[str],
    predicted: Sequence[str],
    probabilities: npt.NDArray[np.float32],
    floors: Floors,
) -> Check:
    """Checks that probabilities are such, and that the label is the most probable class."""
    given = probabilities.astype(np.float64)
    finite = np.isfinite(given).all(axis=1)
    whole = finite & (given >= 0).all(axis=1) & (np.abs(given.sum(axis=1) - 1) < 1e-3)
    best = np.where(finite, given.argmax(axis=1), 0)
    named = [name == classes[index] for name, index in zip(predicted, best.tolist(), strict=True)]
    bad = int(np.sum(~(whole & np.asarray(named, np.bool_))))
    return Check(
        name=floors.check("answers"),
        value=bad,
        bound=None,
        threshold=0,
        passed=bad == 0,
        message=(
            f"Each answer{floors.of} names its most probable class, and its probabilities add up "
            "to 1."
            if bad == 0
            else f"{bad:,} of {len(named):,} answers{floors.of} are unsound: probabilities that "
            "do not add up to 1, or a label that is not the most probable class; expected none."
        ),
    )


def agreement(correct: int, measured: Measured, floors: Floors) -> Check:
    """Checks that as many images are right by the predictions (`correct`) as by TFMA."""
    evaluated = round(measured.accuracy * measured.examples)
    allowed = max(1, math.floor(_ROUNDING_SHARE * measured.examples))
    apart = abs(correct - evaluated)
    return Check(
        name=floors.check("evaluated_is_served"),
        value=apart,
        bound=None,
        threshold=allowed,
        passed=apart <= allowed,
        message=(
            f"TFMA counts {evaluated:,} images right{floors.of and ' by' + floors.of[3:]}, and the "
            f"predictions {correct:,}: "
            + (
                "what is served is what was evaluated."
                if apart <= allowed
                else f"they may differ by {allowed:,}. What is served is not what was evaluated."
            )
        ),
    )


def accuracy(measured: Measured, majority: float, floors: Floors) -> Check:
    """Holds the lower bound of accuracy to the floor; `majority` is the largest class's share."""
    floor = floors.min_accuracy
    source = floors.key("min_accuracy")
    if floor is None:
        floor = majority + 0.1 * (1 - majority)
        source = f"the largest class's share, {majority:.1%}, plus a tenth of the rest"
    correct = round(measured.accuracy * measured.examples)
    bound = bounds.lower_bound(correct, measured.examples, floors.confidence)
    passed = bound >= floor
    message = (
        f"Accuracy{floors.of} is {measured.accuracy:.2%} on {measured.examples:,} test images, and "
        f"with {floors.confidence:.0%} confidence at least {bound:.2%}; the floor is {floor:.2%} "
        f"({source})."
    )
    if not passed and measured.accuracy > floor:
        needed = bounds.images_needed(measured.accuracy, floor, floors.confidence)
        message += f" About {needed:,} test images would be needed to tell them apart."
    return Check(floors.check("accuracy"), measured.accuracy, bound, floor, passed, message)


def class_recall(matrix: npt.NDArray[np.int64], classes: Sequence[str], floors: Floors) -> Check:
    """Holds the upper bound of each class's recall to the floor; int64 [classes, classes]."""
    name_of_check = floors.check("class_recall")
    floor = floors.min_class_recall
    source = floors.key("min_class_recall")
    if floor is None:
        floor = 0.5 / max(1, len(classes))
        source = f"half of 1/{len(classes)}"
    rows = [
        (
            int(matrix[i, i]) / support,
            bounds.upper_bound(int(matrix[i, i]), support, floors.confidence),
            name,
        )
        for i, name in enumerate(classes)
        if (support := int(matrix[i].sum()))
    ]
    if not rows:
        return Check(
            name_of_check, None, None, floor, False, f"No class{floors.of} has a test image."
        )
    below = sorted(row for row in rows if row[1] < floor)
    recall, bound, name = below[0] if below else min(rows)
    message = (
        f"The worst class{floors.of}, {name}, has a recall of {recall:.2%}, and with "
        f"{floors.confidence:.0%} confidence at most {bound:.2%}; the floor is {floor:.2%} "
        f"({source})."
    )
    if len(below) > 1:
        message += f" Below it: {bounded([row[2] for row in below])}."
    return Check(name_of_check, recall, bound, floor, not below, message)


def against(
    ours: npt.NDArray[np.bool_], theirs: npt.NDArray[np.bool_], champion: str, floors: Floors
) -> tuple[Check, dict[str, Any]]:
    """Compares what is right on the same images, bool [images], with the champion's.

    Returns:
      The check, and what verdict.json says of the comparison.
    """
    images = len(ours)
    only_ours, only_theirs = int(np.sum(ours & ~theirs)), int(np.sum(theirs & ~ours))
    difference = (only_ours - only_theirs) / images
    lower, upper = bounds.difference_bounds(only_ours, only_theirs, images, floors.confidence)
    margin = floors.max_regression
    said = bounds.compare(lower, upper, margin)
    passed = said == "no worse" or (said == "undecided" and difference >= -margin)
    message = (
        f"Accuracy{floors.of} is {_points(difference)} against {champion} on the same {images:,} "
        f"images (right alone: {only_ours:,} and {only_theirs:,}), and with "
        f"{floors.confidence:.0%} confidence between {_points(lower)} and {_points(upper)}; at "
        f"most {100 * margin:.2f} points may be lost ({floors.key('max_regression')}): "
    )
    message += {
        "no worse": "no worse.",
        "worse": "worse.",
        "undecided": "the images are too few to tell, so the estimate decides: "
        + ("within the margin." if passed else "a loss beyond the margin."),
    }[said]
    told = {
        "accuracy": float(theirs.mean()),
        "difference": difference,
        "lower": lower,
        "upper": upper,
        "verdict": said,
    }
    bound = lower if said == "no worse" else upper if said == "worse" else difference
    return Check(floors.check("champion"), difference, bound, -margin, passed, message), told


def majority(matrix: npt.NDArray[np.int64]) -> float:
    """Returns the share of the largest class; a row for each label."""
    return float(matrix.sum(axis=1).max(initial=0) / max(1, matrix.sum()))


def per_class(
    matrix: npt.NDArray[np.int64], classes: Sequence[str]
) -> dict[str, dict[str, float | int | None]]:
    """Returns precision, recall, F1 and support by class; a row for each label."""
    told = matrix.sum(axis=0)
    found: dict[str, dict[str, float | int | None]] = {}
    for i, name in enumerate(classes):
        right, support = int(matrix[i, i]), int(matrix[i].sum())
        precision = right / int(told[i]) if told[i] else 0.0
        recall = right / support if support else None
        total = support + int(told[i])
        found[name] = {
            "precision": precision,
            "recall": recall,
            "f1": 2 * right / total if support else None,
            "support": support,
        }
    return found


def metrics(
    measured: Measured, by_class: Mapping[str, Mapping[str, float | int | None]]
) -> dict[str, float]:
    """Returns verdict.json's metrics; averages are over the classes that have test images."""
    seen = [row for row in by_class.values() if row["support"]]
    columns = {key: [float(row[key] or 0) for row in seen] for key in ("precision", "recall", "f1")}
    return {
        "accuracy": measured.accuracy,
        "top_k_accuracy": measured.top_k_accuracy,
        "cross_entropy": measured.cross_entropy,
        "macro_precision": _mean(columns["precision"]),
        "macro_recall": _mean(columns["recall"]),
        "macro_f1": _mean(columns["f1"]),
        "worst_class_recall": min(columns["recall"], default=0.0),
    }


def _points(difference: float) -> str:
    return f"{100 * difference:+.2f} points"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
