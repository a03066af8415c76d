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

from pipeline.blessing import bounds
from pipeline.blessing.measured import Measured, least_accuracy
from pipeline.blessing.paired import Decision, Verdict
from pipeline.config import Evaluate
from pipeline.config.judging import HeadFloors
from pipeline.heads import LABEL

# Batches of another size may round a near tie the other way: one image in a thousand, at least 1.
_ROUNDING_SHARE = 0.001


@dataclass(frozen=True)
class Check:
    """One thing that was checked; `bound` is what `threshold` is compared with.

    `interval` is the confidence interval of `value`, (lower, upper), where it has one.
    """

    name: str
    value: float | None
    bound: float | None
    threshold: float | None
    passed: bool
    message: str
    interval: tuple[float, float] | None = None


# What one subject of the blessing adds: its checks, and its keys of verdict.json.
Part = tuple[list[Check], dict[str, Any]]


@dataclass(frozen=True)
class Floors:
    """What one class head must reach; None where the data decides.

    `decisions` says what becomes of each verdict on the comparison with the champion.
    """

    head: str
    min_accuracy: float | None
    min_class_recall: float | None
    max_regression: float
    confidence: float
    decisions: Mapping[Verdict, Decision]

    @classmethod
    def asked(cls, options: Evaluate, head: str = LABEL) -> Floors:
        """Returns what the section evaluate asks of a class head."""
        own: HeadFloors = options.heads.get(head, {}) if head != LABEL else {}
        label = head == LABEL
        return cls(
            head=head,
            min_accuracy=options.min_accuracy if label else own.get("min_accuracy"),
            min_class_recall=options.min_class_recall if label else own.get("min_class_recall"),
            max_regression=own.get("max_regression", options.max_regression),
            confidence=options.confidence,
            decisions=decisions(options),
        )

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


def decisions(options: Evaluate) -> dict[Verdict, Decision]:
    """Returns what becomes of each verdict."""
    return {
        "better": options.on_better,
        "no worse": options.on_no_worse,
        "worse": options.on_worse,
        "undecided": options.on_undecided,
    }


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
        floor = least_accuracy(majority)
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
        if needed is not None:
            message += f" About {needed:,} test images would be needed to tell them apart."
    interval = (bound, bounds.upper_bound(correct, measured.examples, floors.confidence))
    name = floors.check("accuracy")
    return Check(name, measured.accuracy, bound, floor, passed, message, interval)


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


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
