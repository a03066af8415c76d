"""Champion against challenger on the same images: how sure a difference is, and what it would take.

Pure: numbers in, numbers out. docs/blessing.md explains the verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, ndtr, ndtri

from pipeline.blessing import bootstrap, bounds
from pipeline.blessing.bootstrap import Difference
from pipeline.evaluator.predictions import Predictions

Verdict = Literal["better", "no worse", "worse", "undecided"]
Decision = Literal["push", "block", "estimate"]

# As Keras and TFMA have it: a probability of 0 for the truth costs -log of this.
_EPSILON = 1e-7
# "About N more images" are to tell in four cases of five.
_POWER = 0.8
# Nobody labels more for one comparison.
_MOST_IMAGES = 10_000_000

Bools = npt.NDArray[np.bool_]


def mcnemar(only_first: int, only_second: int) -> float:
    """Returns McNemar's two-sided p-value of two models that judged the same images.

    The mid-p version of the exact test ("Note on the sampling error of the difference between
    correlated proportions or percentages", Psychometrika 12, 1947). It keeps its level where few
    images disagree, and isn't as timid as the exact one (Fagerland, Lydersen and Laake, BMC Medical
    Research Methodology 13:91, 2013).

    Args:
      only_first: images that the first model alone has right.
      only_second: images that the second model alone has right.

    Raises:
      ValueError: a count is negative.
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"impossible counts: {only_first} and {only_second}")
    apart, fewer = only_first + only_second, min(only_first, only_second)
    # Both tails, and half of what was found in each.
    less = float(bdtr(fewer - 1, apart, 0.5)) if fewer else 0.0
    return min(1.0, float(bdtr(fewer, apart, 0.5)) + less)


def accuracy(ours: Bools, theirs: Bools, confidence: float) -> Difference:
    """Compares what is right on the same images, bool [images] each, by Tango's bounds."""
    images = len(ours)
    only_ours, only_theirs = alone(ours, theirs)
    gain = (only_ours - only_theirs) / images
    lower, upper = bounds.difference_bounds(only_ours, only_theirs, images, confidence)
    # One image more that disagrees: where none did, the error isn't known to be nothing.
    share = (only_ours + only_theirs + 1) / (images + 1)
    error = math.sqrt(max(share - gain**2, 0.0) / images)
    return Difference(float(ours.mean()), float(theirs.mean()), gain, lower, upper, error)


def alone(ours: Bools, theirs: Bools) -> tuple[int, int]:
    """Returns how many images the first alone has right, and how many the second."""
    return int(np.sum(ours & ~theirs)), int(np.sum(theirs & ~ours))


def metrics(
    ours: Predictions, theirs: Predictions, confidence: float, resamples: int
) -> dict[str, Difference]:
    """Compares two models by every metric; they judged the same images in the same order.

    The champion's classes are ours by their names: what it does not know, it can't get right.

    Returns:
      accuracy by Tango's bounds, the others by a paired bootstrap (bootstrap.py): macro_recall,
      macro_f1, worst_class_recall and cross_entropy (in nats; a gain is what it falls by).
    """
    number = {name: index for index, name in enumerate(ours.classes)}
    counted = bootstrap.counted(
        _numbers(ours.labels, number),
        _numbers(ours.predicted, number),
        _numbers(theirs.predicted, number),
        len(ours.classes),
        confidence,
        resamples,
    )
    entropy = bootstrap.mean_loss(
        losses(ours, ours.labels), losses(theirs, ours.labels), confidence, resamples
    )
    right = accuracy(ours.correct(), _agreeing(theirs.predicted, ours.labels), confidence)
    return {"accuracy": right, **counted, "cross_entropy": entropy}


def losses(predictions: Predictions, labels: Sequence[str]) -> npt.NDArray[np.float64]:
    """Returns -log of each truth's probability, float64 [images]; as of 0 for an unknown one."""
    number = {name: index for index, name in enumerate(predictions.classes)}
    truth = _numbers(labels, number)
    rows = np.arange(len(truth))
    given = predictions.probabilities[rows, np.maximum(truth, 0)].astype(np.float64)
    share = np.where((truth >= 0) & np.isfinite(given), given, 0.0)
    return np.asarray(-np.log(np.clip(share, _EPSILON, 1 - _EPSILON)), np.float64)


def verdict(lower: float, upper: float, margin: float, sure: bool = True) -> Verdict:
    """Says what the bounds of a difference tell of a gain, and of a loss of more than `margin`.

    Without `sure`, a test that knows better denies the gain.
    """
    if lower > 0 and sure:
        return "better"
    return bounds.compare(lower, upper, margin)


def passes(
    said: Verdict, difference: float, margin: float, decisions: Mapping[Verdict, Decision]
) -> bool:
    """Says whether a verdict passes, by the decision that is configured for it."""
    decision = decisions[said]
    return decision == "push" or (decision == "estimate" and difference >= -margin)


def images_needed(found: Difference, images: int, margin: float, confidence: float) -> int | None:
    """Returns about how many more images would decide what is undecided, in four cases of five.

    By normal theory, as if the gain and its spread were what they are estimated to be. None where
    the gain lies so near the edge of the margin that no sensible number would.

    Args:
      found: the comparison on `images` images.
      images: how many there were.
      margin: the loss that is accepted.
      confidence: of each bound.
    """
    gap = abs(found.difference + margin)
    spread = found.error * math.sqrt(images)
    z = float(ndtri(confidence)) + float(ndtri(_POWER))
    if gap * math.sqrt(_MOST_IMAGES) <= z * spread:
        return None
    return max(1, math.ceil((z * spread / gap) ** 2) - images)


def power(
    images: int,
    disagreement: float,
    margin: float,
    loss: float,
    confidence: float,
    on_undecided: Decision = "estimate",
) -> float:
    """Returns how often the gate blocks a challenger that truly is worse, by normal theory.

    Args:
      images: of the split `test`.
      disagreement: the share of images that one of the two models alone has right.
      margin: the loss of accuracy that is accepted.
      loss: the true loss of accuracy; negative for a gain.
      confidence: of each bound.
      on_undecided: what becomes of a comparison that the images can't decide.

    Raises:
      ValueError: no images, or models that differ by more than they disagree.
    """
    if images < 1 or not abs(loss) <= disagreement <= 1:
        raise ValueError(
            f"impossible: {images} images, a loss of {loss} and a disagreement of {disagreement}"
        )
    spread = math.sqrt(max(disagreement - loss**2, 1e-12) / images)
    z = float(ndtri(confidence))
    shift = {"push": -z, "estimate": 0.0, "block": z}[on_undecided]
    return float(ndtr((loss - margin) / spread + shift))


def _numbers(names: Sequence[str], number: Mapping[str, int]) -> npt.NDArray[np.int64]:
    return np.fromiter((number.get(name, -1) for name in names), np.int64, len(names))


def _agreeing(names: Sequence[str], labels: Sequence[str]) -> Bools:
    pairs = zip(labels, names, strict=True)
    return np.fromiter((label == name for label, name in pairs), np.bool_, len(labels))
