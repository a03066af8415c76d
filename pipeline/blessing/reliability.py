"""How far the label's probabilities can be trusted on test: their error, and what is answered.

Plain NumPy: predictions in, checks out. docs/calibration.md explains the methods.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.blessing import bounds
from pipeline.blessing.class_checks import Check, Part
from pipeline.config import Calibration
from pipeline.evaluator.predictions import Predictions
from pipeline.features import UNKNOWN

BINS: Final = 15
# An answer this near to the threshold may fall on either side of it in another batch.
_ROUNDING: Final = 1e-6


@dataclass(frozen=True)
class Reliability:
    """How confidence and accuracy go together.

    Attributes:
      ece: expected calibration error: over the bins, the mean of |accuracy - confidence|, each
        weighed with its images.
      by_chance: what a perfectly calibrated model is expected to get on so many images.
      bins: those that hold images: `from`, `to`, `confidence`, `accuracy` (means) and `count`.
    """

    ece: float
    by_chance: float
    bins: list[dict[str, Any]]


def reliability(
    confidences: npt.NDArray[np.floating[Any]], right: npt.NDArray[np.bool_]
) -> Reliability:
    """Returns the reliability diagram and its error, over 15 bins of one width.

    ECE: Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015;
    15 bins as in Guo et al. 2017. It is biased upwards, because chance moves each bin's accuracy
    away from its confidence, and never below a distance of 0: `by_chance` says by how much.

    Args:
      confidences: the most probable class's probability, [images]; what is no number counts as 0.
      right: bool [images].
    """
    sure = np.clip(np.nan_to_num(confidences.astype(np.float64), nan=0.0), 0.0, 1.0)
    # Upper ends belong to their bins, as in the paper.
    numbers = np.clip(np.ceil(sure * BINS).astype(np.int64) - 1, 0, BINS - 1)
    bins, ece, by_chance = [], 0.0, 0.0
    for number in np.unique(numbers).tolist():
        inside = numbers == number
        count = int(inside.sum())
        mean, accuracy = float(sure[inside].mean()), float(right[inside].mean())
        share = count / len(sure)
        ece += share * abs(accuracy - mean)
        variance = float(np.mean(sure[inside] * (1 - sure[inside]))) / count
        by_chance += share * math.sqrt(2 / math.pi * variance)
        bins.append(
            {
                "from": number / BINS,
                "to": (number + 1) / BINS,
                "confidence": mean,
                "accuracy": accuracy,
                "count": count,
            }
        )
    return Reliability(ece, by_chance, bins)


def judge(predictions: Predictions, options: Calibration) -> Part:
    """Returns the checks that are asked for, and the key `calibration` of verdict.json."""
    right = predictions.correct()
    confidences = predictions.probabilities.max(axis=1, initial=0.0)
    found = reliability(confidences, right)
    answered = predictions.answered
    precision = share = None
    if answered is not None:
        share = float(answered.mean())
        precision = float(right[answered].mean()) if answered.any() else None
    checks = []
    if options.max_ece is not None:
        checks.append(_error(found, options.max_ece, len(right)))
    if options.target_precision is not None:
        checks.append(_abstention(predictions, confidences, right, options))
    told = {
        "ece": found.ece,
        "ece_by_chance": found.by_chance,
        "bins": found.bins,
        "temperature": predictions.temperature,
        "threshold": predictions.threshold,
        "target_precision": options.target_precision,
        "precision": precision,
        "answered": share,
    }
    return checks, {"calibration": told}


def _error(found: Reliability, most: float, images: int) -> Check:
    """Holds the error, less what chance alone makes of it, to the ceiling."""
    bound = max(0.0, found.ece - found.by_chance)
    return Check(
        name="calibration",
        value=found.ece,
        bound=bound,
        threshold=most,
        passed=bound <= most,
        message=(
            f"The expected calibration error is {found.ece:.4f} on {images:,} test images, "
            f"{bound:.4f} more than chance makes of it; at most {most:g} is allowed "
            "(calibration.max_ece)."
        ),
    )


def _abstention(
    predictions: Predictions,
    confidences: npt.NDArray[np.floating[Any]],
    right: npt.NDArray[np.bool_],
    options: Calibration,
) -> Check:
    """Holds the precision of what is answered, and the share of that, to their floors."""
    target = options.target_precision
    assert target is not None
    limit, answered = predictions.threshold, predictions.answered
    if limit is None or answered is None:
        message = (
            f"The model has no threshold: none showed a precision of {target:g} on the split calib "
            "(calibration.target_precision). Ask for less, or give it more images."
        )
        return Check("abstention", None, None, target, False, message)
    wrong_side = (answered != (confidences >= limit)) & (np.abs(confidences - limit) > _ROUNDING)
    if wrong_side.any():
        message = (
            f"{int(wrong_side.sum()):,} of {len(right):,} labels are {UNKNOWN!r} on the wrong side "
            f"of the threshold {limit:.4g} in model.json; expected none."
        )
        return Check("abstention", None, None, target, False, message)
    given, hits = int(answered.sum()), int(right[answered].sum())
    share = given / max(1, len(right))
    bound = bounds.lower_bound(hits, given, options.confidence) if given else 0.0
    precision = hits / given if given else None
    enough = share >= options.min_answered
    said = "no answer is right or wrong" if precision is None else f"{precision:.2%} of them right"
    message = (
        f"The model answers {share:.1%} of {len(right):,} test images (at least "
        f"{options.min_answered:.1%}, calibration.min_answered): {said}, and with "
        f"{options.confidence:.0%} confidence at least {bound:.2%}; the target is {target:.2%} "
        "(calibration.target_precision)."
    )
    upper = bounds.upper_bound(hits, given, options.confidence) if given else 1.0
    passed = enough and bound >= target
    return Check("abstention", precision, bound, target, passed, message, (bound, upper))
