"""The final gate's reasoning: what was found, what it was held to, and why it passed or failed.

Pure: numbers in, a verdict out. Every check is one plain sentence with its value, its bound and
its threshold; the failed ones are the reasons. docs/blessing.md explains the statistics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import bounds
from pipeline.config import Evaluate
from pipeline.errors import bounded
from pipeline.measured import Measured
from pipeline.predictions import Predictions

# Batches of another size may round a near tie the other way: one image in a thousand, at least 1.
_ROUNDING_SHARE = 0.001


@dataclass(frozen=True)
class Evidence:
    """What the gate judges on.

    Attributes:
      measured: TFMA's results.
      predictions: the model's answers, image by image.
      champion: the champion's answers about the same images; None without a champion.
      serving: the content of serving_check.json.
      test_images: how many images ingest put into `test`.
    """

    measured: Measured
    predictions: Predictions
    champion: Predictions | None
    serving: Mapping[str, Any]
    test_images: int


@dataclass(frozen=True)
class Check:
    """One thing that was checked; `bound` is what `threshold` is compared with."""

    name: str
    value: float | None
    bound: float | None
    threshold: float | None
    passed: bool
    message: str


def judge(evidence: Evidence, options: Evaluate) -> dict[str, Any]:
    """Returns the content of verdict.json."""
    predictions = evidence.predictions
    matrix = evidence.measured.matrix(len(predictions.classes))
    per_class = _per_class(matrix, predictions.classes)
    majority = float(matrix.sum(axis=1).max(initial=0) / max(1, matrix.sum()))
    comparison, champion = _against_champion(evidence, options)
    checks = [
        _same_images(evidence),
        _sound(predictions),
        _agreement(evidence),
        _accuracy(evidence.measured, majority, options),
        _class_recall(matrix, predictions.classes, options),
        *([comparison] if comparison else []),
        _serving(evidence.serving),
    ]
    return {
        "blessed": all(check.passed for check in checks),
        "reasons": [check.message for check in checks if not check.passed],
        "metrics": _metrics(evidence.measured, per_class),
        "checks": [asdict(check) for check in checks],
        "champion": champion,
        "per_class": per_class,
        "confusion": matrix.tolist(),
        "majority_share": majority,
        "test_examples": evidence.measured.examples,
    }


def _same_images(evidence: Evidence) -> Check:
    evaluated, predicted = evidence.measured.examples, len(evidence.predictions.ids)
    champion = evidence.champion
    same = evaluated == predicted == evidence.test_images
    if champion is not None:
        same = same and champion.ids == evidence.predictions.ids
    return Check(
        name="same_images",
        value=evaluated,
        bound=None,
        threshold=evidence.test_images,
        passed=same,
        message=(
            f"All judged the same {evaluated:,} test images."
            if same
            else f"Not all judged the same: ingest put {evidence.test_images:,} images into test, "
            f"TFMA evaluated {evaluated:,}, and the predictions hold {predicted:,}"
            + (f" (the champion's {len(champion.ids):,})." if champion else ".")
        ),
    )


def _sound(predictions: Predictions) -> Check:
    """Checks that probabilities are such, and that the label is the most probable class."""
    given = predictions.probabilities.astype(np.float64)
    finite = np.isfinite(given).all(axis=1)
    whole = finite & (given >= 0).all(axis=1) & (np.abs(given.sum(axis=1) - 1) < 1e-3)
    best = np.where(finite, given.argmax(axis=1), 0)
    named = [
        name == predictions.classes[index]
        for name, index in zip(predictions.predicted, best.tolist(), strict=True)
    ]
    bad = int(np.sum(~(whole & np.asarray(named, np.bool_))))
    return Check(
        name="answers",
        value=bad,
        bound=None,
        threshold=0,
        passed=bad == 0,
        message=(
            "Each answer names its most probable class, and its probabilities add up to 1."
            if bad == 0
            else f"{bad:,} of {len(named):,} answers are unsound: probabilities that do not add up "
            "to 1, or a label that is not the most probable class; expected none."
        ),
    )


def _agreement(evidence: Evidence) -> Check:
    correct = int(evidence.predictions.correct().sum())
    evaluated = round(evidence.measured.accuracy * evidence.measured.examples)
    allowed = max(1, math.floor(_ROUNDING_SHARE * evidence.measured.examples))
    apart = abs(correct - evaluated)
    return Check(
        name="evaluated_is_served",
        value=apart,
        bound=None,
        threshold=allowed,
        passed=apart <= allowed,
        message=(
            f"TFMA counts {evaluated:,} images right, and the predictions {correct:,}: "
            + (
                "what is served is what was evaluated."
                if apart <= allowed
                else f"they may differ by {allowed:,}. What is served is not what was evaluated."
            )
        ),
    )


def _accuracy(measured: Measured, majority: float, options: Evaluate) -> Check:
    floor = options.min_accuracy
    source = "evaluate.min_accuracy"
    if floor is None:
        floor = majority + 0.1 * (1 - majority)
        source = f"the largest class's share, {majority:.1%}, plus a tenth of the rest"
    correct = round(measured.accuracy * measured.examples)
    bound = bounds.lower_bound(correct, measured.examples, options.confidence)
    passed = bound >= floor
    message = (
        f"Accuracy is {measured.accuracy:.2%} on {measured.examples:,} test images, and with "
        f"{options.confidence:.0%} confidence at least {bound:.2%}; the floor is {floor:.2%} "
        f"({source})."
    )
    if not passed and measured.accuracy > floor:
        needed = bounds.images_needed(measured.accuracy, floor, options.confidence)
        message += f" About {needed:,} test images would be needed to tell them apart."
    return Check("accuracy", measured.accuracy, bound, floor, passed, message)


def _class_recall(
    matrix: npt.NDArray[np.int64], classes: tuple[str, ...], options: Evaluate
) -> Check:
    floor = options.min_class_recall
    source = "evaluate.min_class_recall"
    if floor is None:
        floor = 0.5 / max(1, len(classes))
        source = f"half of 1/{len(classes)}"
    rows = [
        (
            int(matrix[i, i]) / support,
            bounds.upper_bound(int(matrix[i, i]), support, options.confidence),
            name,
        )
        for i, name in enumerate(classes)
        if (support := int(matrix[i].sum()))
    ]
    if not rows:
        return Check("class_recall", None, None, floor, False, "No class has a test image.")
    below = sorted(row for row in rows if row[1] < floor)
    recall, bound, name = below[0] if below else min(rows)
    message = (
        f"The worst class, {name}, has a recall of {recall:.2%}, and with "
        f"{options.confidence:.0%} confidence at most {bound:.2%}; the floor is {floor:.2%} "
        f"({source})."
    )
    if len(below) > 1:
        message += f" Below it: {bounded([row[2] for row in below])}."
    return Check("class_recall", recall, bound, floor, not below, message)


def _against_champion(
    evidence: Evidence, options: Evaluate
) -> tuple[Check | None, dict[str, Any] | None]:
    champion = evidence.champion
    if champion is None:
        return None, None
    name = "the champion" if champion.version is None else f"version {champion.version}"
    told: dict[str, Any] = {"version": champion.version, "accuracy": None}
    if champion.ids != evidence.predictions.ids or not champion.ids:
        message = f"The model can't be compared with {name}: they judged other images."
        return Check("champion", None, None, -options.max_regression, False, message), told
    ours, theirs = evidence.predictions.correct(), champion.correct()
    images = len(ours)
    only_ours, only_theirs = int(np.sum(ours & ~theirs)), int(np.sum(theirs & ~ours))
    difference = (only_ours - only_theirs) / images
    lower, upper = bounds.difference_bounds(only_ours, only_theirs, images, options.confidence)
    margin = options.max_regression
    said = bounds.compare(lower, upper, margin)
    passed = said == "no worse" or (said == "undecided" and difference >= -margin)
    message = (
        f"Accuracy is {_points(difference)} against {name} on the same {images:,} images "
        f"(right alone: {only_ours:,} and {only_theirs:,}), and with {options.confidence:.0%} "
        f"confidence between {_points(lower)} and {_points(upper)}; at most "
        f"{100 * margin:.2f} points may be lost (evaluate.max_regression): "
    )
    message += {
        "no worse": "no worse.",
        "worse": "worse.",
        "undecided": "the images are too few to tell, so the estimate decides: "
        + ("within the margin." if passed else "a loss beyond the margin."),
    }[said]
    told = {
        "version": champion.version,
        "accuracy": float(theirs.mean()),
        "difference": difference,
        "lower": lower,
        "upper": upper,
        "verdict": said,
    }
    bound = lower if said == "no worse" else upper if said == "worse" else difference
    return Check("champion", difference, bound, -margin, passed, message), told


def _serving(serving: Mapping[str, Any]) -> Check:
    passed = bool(serving["passed"])
    return Check(
        name="serving",
        value=serving.get("max_difference"),
        bound=None,
        threshold=serving.get("tolerance"),
        passed=passed,
        message=str(serving["message"]),
    )


def _points(difference: float) -> str:
    return f"{100 * difference:+.2f} points"


def _per_class(
    matrix: npt.NDArray[np.int64], classes: tuple[str, ...]
) -> dict[str, dict[str, float | int | None]]:
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


def _metrics(
    measured: Measured, per_class: Mapping[str, Mapping[str, float | int | None]]
) -> dict[str, float]:
    """Averages are over the classes that have test images."""
    seen = [row for row in per_class.values() if row["support"]]
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
