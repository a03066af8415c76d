"""How much a test set of this size can tell: one-sided confidence bounds of shares and means.

A share of n images is an estimate, and so is a mean error; a floor is held to the end of its
confidence interval, not to the estimate, so that luck does not decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv, ndtri, stdtrit

Comparison = Literal["no worse", "worse", "undecided"]

# Nobody labels more for one floor.
_MOST_IMAGES = 10_000_000


def lower_bound(successes: int, trials: int, confidence: float) -> float:
    """Returns the one-sided lower bound of a share: with `confidence`, it is no smaller.

    The exact bound of Clopper and Pearson ("The use of confidence or fiducial limits illustrated
    in the case of the binomial", Biometrika 26, 1934): the true share lies above it at least as
    often as `confidence` says, however few the trials. 0 without trials.

    Raises:
      ValueError: not 0 <= successes <= trials.
    """
    _check(successes, trials)
    if successes == 0:
        return 0.0
    return float(betaincinv(successes, trials - successes + 1, 1 - confidence))


def upper_bound(successes: int, trials: int, confidence: float) -> float:
    """Returns the one-sided upper bound of a share (see `lower_bound`); 1 without trials."""
    _check(successes, trials)
    if successes == trials:
        return 1.0
    return float(betaincinv(successes + 1, trials - successes, confidence))


def difference_bounds(
    only_first: int, only_second: int, trials: int, confidence: float
) -> tuple[float, float]:
    """Returns the lower and the upper one-sided bound of a difference of two shares.

    Both shares come from the same images: the first model's accuracy less the second's. The score
    interval of Tango ("Equivalence test and confidence interval for the difference in proportions
    for the paired-sample design", Statistics in Medicine 17, 1998), which keeps its confidence
    where the models hardly ever differ; each bound alone holds with `confidence`.

    Args:
      only_first: images that the first model alone has right.
      only_second: images that the second model alone has right.
      trials: all images.
      confidence: of each bound, between 0.5 and 1.

    Raises:
      ValueError: the counts are negative, or there are fewer images than disagreements.
    """
    if min(only_first, only_second) < 0 or trials < max(1, only_first + only_second):
        raise ValueError(f"impossible counts: {only_first} + {only_second} of {trials}")
    z = float(ndtri(confidence))
    estimate = (only_first - only_second) / trials

    def score(difference: float) -> float:
        return _score(only_first, only_second, trials, difference)

    lower = _bisect(lambda difference: score(difference) - z, -1.0, estimate)
    upper = _bisect(lambda difference: score(difference) + z, estimate, 1.0)
    return lower, upper


def mean_bounds(values: npt.NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """Returns the lower and the upper one-sided bound of a mean.

    Student's t interval ("The probable error of a mean", Biometrika 6, 1908). It is exact for
    normal values and, by the central limit theorem, right for any from some tens of images on;
    absolute errors are skewed, so that with fewer images the upper bound may be a little too low.

    Args:
      values: float64 [images]; for two models, the differences on the same images.
      confidence: of each bound, between 0.5 and 1.

    Returns:
      Infinite bounds where nothing can be told: fewer than two values, or one that is no number.
    """
    if len(values) < 2 or not np.isfinite(values).all():
        return -math.inf, math.inf
    mean, images = float(values.mean()), len(values)
    half = float(stdtrit(images - 1, confidence)) * float(values.std(ddof=1)) / math.sqrt(images)
    return mean - half, mean + half


def bounded_mean(
    values: npt.NDArray[np.float64], least: float, most: float, confidence: float
) -> tuple[float, float]:
    """Returns the lower and the upper one-sided bound of a mean of values between two ends.

    Near an end `mean_bounds` is too sure: thirty images that are all right would show 100 %. Here
    each bound is that of the values and one more at the end that it looks towards. Of all right it
    then says about what Clopper and Pearson's does, and of hundreds of values what Student's t
    does; tests/test_bounds.py has how often it errs.

    Args:
      values: float64 [images], at least one.
      least: the smallest that a value can be.
      most: the greatest.
      confidence: of each bound, between 0.5 and 1.
    """
    lower, _ = mean_bounds(np.append(values, least), confidence)
    _, upper = mean_bounds(np.append(values, most), confidence)
    return max(least, lower), min(most, upper)


def compare(lower: float, upper: float, margin: float) -> Comparison:
    """Says what the bounds of a difference tell about a loss of more than `margin`."""
    if lower >= -margin:
        return "no worse"
    return "worse" if upper < -margin else "undecided"


def images_needed(share: float, floor: float, confidence: float) -> int | None:
    """Returns about how many images show that a true `share` lies above `floor`.

    The fewest on which the lower bound of just this share (`lower_bound`, of a part of an image,
    too) reaches the floor: more than there are, wherever theirs does not. None where the share lies
    so near the floor that no sensible number would.

    Raises:
      ValueError: the share is not above the floor: no number of images would.
    """
    if share <= floor:
        raise ValueError(f"{share} is not above {floor}")

    def shown(images: int) -> bool:
        right = share * images
        return bool(betaincinv(right, images - right + 1, 1 - confidence) >= floor)

    if not shown(_MOST_IMAGES):
        return None
    least, most = 0, _MOST_IMAGES
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if shown(middle) else (middle, most)
    return most


def _check(successes: int, trials: int) -> None:
    if not 0 <= successes <= trials:
        raise ValueError(f"impossible counts: {successes} of {trials}")


def _score(first: int, second: int, trials: int, difference: float) -> float:
    """Returns Tango's statistic of the hypothesis that the difference is this one."""
    distance = first - second - trials * difference
    # The share of images that the second alone has right, most likely under the hypothesis.
    a = 2 * trials
    b = -first - second + (2 * trials - first + second) * difference
    c = -second * difference * (1 - difference)
    share = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = trials * (2 * share + difference * (1 - difference))
    if variance <= 1e-12 * trials:
        return 0.0 if abs(distance) < 1e-9 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def _bisect(decreasing: Callable[[float], float], low: float, high: float) -> float:
    """Returns the zero of a function that falls from above 0 at `low` to below 0 at `high`."""
    if decreasing(low) <= 0:
        return low
    if decreasing(high) >= 0:
        return high
    while high - low > 1e-12:
        middle = (low + high) / 2
        if decreasing(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
