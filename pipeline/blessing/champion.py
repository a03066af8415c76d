"""The check against the champion: how the two compare, and what becomes of the challenger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.blessing import paired
from pipeline.blessing.bootstrap import Difference
from pipeline.blessing.class_checks import Check, Floors
from pipeline.blessing.paired import Verdict
from pipeline.config import Evaluate
from pipeline.evaluator.predictions import Predictions

_NAMES = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "macro_recall": "Macro recall",
    "worst_class_recall": "The worst class's recall",
    "cross_entropy": "Cross-entropy",
}
_KEYS: dict[Verdict, str] = {
    "better": "on_better",
    "no worse": "on_no_worse",
    "worse": "on_worse",
    "undecided": "on_undecided",
}


def compare(
    ours: Predictions, theirs: Predictions, champion: str, floors: Floors, options: Evaluate
) -> tuple[Check, dict[str, Any]]:
    """Compares the label's answers with the champion's, by `evaluate.metric`.

    Args:
      ours: the challenger's answers.
      theirs: the champion's, about the same images in the same order.
      champion: its name in a sentence.
      floors: what the label is held to.
      options: the section evaluate.

    Returns:
      The check, and verdict.json's `champion` without the version.
    """
    found = paired.metrics(ours, theirs, floors.confidence, options.resamples)
    right, was_right = ours.correct(), theirs.correct()
    check, told = _judge(options.metric, found[options.metric], right, was_right, champion, floors)
    told["metrics"] = {
        name: {
            **{key: value for key, value in asdict(each).items() if key != "error"},
            "verdict": told["verdict"]
            if name == options.metric
            else paired.verdict(each.lower, each.upper, floors.max_regression),
        }
        for name, each in found.items()
    }
    return check, told


def compare_accuracy(
    ours: npt.NDArray[np.bool_], theirs: npt.NDArray[np.bool_], champion: str, floors: Floors
) -> tuple[Check, dict[str, Any]]:
    """Compares what is right on the same images, bool [images] each: for heads beside the label."""
    found = paired.accuracy(ours, theirs, floors.confidence)
    return _judge("accuracy", found, ours, theirs, champion, floors)


def threshold(
    said: Verdict,
    difference: float,
    lower: float,
    upper: float,
    margin: float,
    decisions: Mapping[Verdict, paired.Decision],
) -> tuple[float | None, float | None]:
    """Returns what decides and what it is held to: (bound, threshold), by the decisions made."""
    if decisions["better"] == "block" or decisions["worse"] == "push":
        return None, None
    if decisions["no worse"] == "block":
        return lower, 0.0
    if decisions["undecided"] == "estimate":
        sure = {"better": lower, "no worse": lower, "worse": upper}
        return sure.get(said, difference), -margin
    return (lower if decisions["undecided"] == "block" else upper), -margin


def _judge(
    metric: str,
    found: Difference,
    ours: npt.NDArray[np.bool_],
    theirs: npt.NDArray[np.bool_],
    champion: str,
    floors: Floors,
) -> tuple[Check, dict[str, Any]]:
    images, margin = len(ours), floors.max_regression
    alone = paired.alone(ours, theirs)
    p_value = paired.mcnemar(*alone)
    # Tango's bounds are a little eager where few images disagree; McNemar's mid-p test isn't.
    sure = metric != "accuracy" or p_value / 2 <= 1 - floors.confidence
    said = paired.verdict(found.lower, found.upper, margin, sure)
    passed = paired.passes(said, found.difference, margin, floors.decisions)
    needed = None
    if said == "undecided":
        needed = paired.images_needed(found, images, margin, floors.confidence)
    message = _sentence(metric, found, alone, p_value, champion, images, floors)
    message += _said(said, passed, needed, floors)
    told = {
        "accuracy": float(theirs.mean()),
        "metric": metric,
        "difference": found.difference,
        "lower": found.lower,
        "upper": found.upper,
        "p_value": p_value,
        "verdict": said,
        "images_needed": needed,
    }
    bound, held_to = threshold(
        said, found.difference, found.lower, found.upper, margin, floors.decisions
    )
    interval = (found.lower, found.upper)
    name = floors.check("champion")
    return Check(name, found.difference, bound, held_to, passed, message, interval), told


def _sentence(
    metric: str,
    found: Difference,
    alone: tuple[int, int],
    p_value: float,
    champion: str,
    images: int,
    floors: Floors,
) -> str:
    loss = metric == "cross_entropy"
    ends = sorted(-end if loss else end for end in (found.lower, found.upper))
    change = -found.difference if loss else found.difference
    low, high = (_amount(end, loss) for end in ends)
    margin = f"{floors.max_regression:.4f} nats" if loss else f"{100 * floors.max_regression:.2f}"
    return (
        f"{_NAMES[metric]}{floors.of} is {_amount(change, loss)} against {champion} on the same "
        f"{images:,} images (right alone: {alone[0]:,} and {alone[1]:,}; McNemar's p is "
        f"{p_value:.2g}), and with {floors.confidence:.0%} confidence between {low} and {high}; at "
        + (f"most {margin} may be added" if loss else f"most {margin} points may be lost")
        + f" ({floors.key('max_regression')}): "
    )


def _said(said: Verdict, passed: bool, needed: int | None, floors: Floors) -> str:
    decision = floors.decisions[said]
    if said != "undecided":
        usual = "block" if said == "worse" else "push"
        return f"{said}." if decision == usual else f"{said} (evaluate.{_KEYS[said]}: {decision})."
    more = f" About {rounded(needed):,} more test images would tell." if needed else ""
    if decision == "estimate":
        end = "within the margin." if passed else "a loss beyond the margin."
        return f"the images are too few to tell, so the estimate decides: {end}{more}"
    return f"undecided, the images are too few to tell (evaluate.on_undecided: {decision}).{more}"


def rounded(images: int) -> int:
    """Returns a number of images to two digits: it is an estimate."""
    unit = 10 ** max(0, len(str(images)) - 2)
    return -(-images // unit) * unit


def _amount(value: float, loss: bool) -> str:
    return f"{value:+.4f} nats" if loss else f"{100 * value:+.2f} points"
