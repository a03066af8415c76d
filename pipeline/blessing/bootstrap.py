"""A paired bootstrap: how much of a difference between two models may be the luck of the images.

Both models are asked about the same images, so that whole images are drawn again, with both
answers. Two things keep it fast. Metrics that count depend on an image through three names alone
(the truth and both answers): equal images are one cell, and a resample is a multinomial draw of
cells, not of images. And all resamples are one matrix.

SciPy's own `bootstrap` draws images and leaves each out in turn for its correction: 10,000 images
squared. The tests hold this one to it on small data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.special import ndtr, ndtri

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

COUNTED = ("macro_recall", "macro_f1", "worst_class_recall")
# Numbers that one block of resamples may hold.
_BLOCK = 1_000_000
# Resamples and the estimate are added up in other orders.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Difference:
    """One metric of two models on the same images.

    Attributes:
      value: the first model's.
      champion: the second's.
      difference: what the first gains; of a loss, what it falls by.
      lower: of the gain, the one-sided bound from below.
      upper: the same from above.
      error: standard error of the gain.
    """

    value: float
    champion: float
    difference: float
    lower: float
    upper: float
    error: float


def counted(
    truth: Ints,
    ours: Ints,
    theirs: Ints,
    classes: int,
    confidence: float,
    resamples: int,
    seed: int = 0,
) -> dict[str, Difference]:
    """Compares macro recall, macro F1 and the worst class's recall.

    Means are over the classes that have an image, in each resample over those that it has.

    Args:
      truth: int64 [images], a class each, or -1 for what is none of them.
      ours: the first model's answers, int64 [images], the same way.
      theirs: the second model's.
      classes: how many there are.
      confidence: of each bound, between 0.5 and 1.
      resamples: how many.
      seed: the same one gives the same bounds.
    """
    counts, indicator = _cells(truth, ours, theirs, classes)
    images = int(counts.sum())
    whole = _metrics((counts @ indicator)[None, :].astype(np.float64))
    drawn: dict[str, list[Floats]] = {name: [] for name in COUNTED}
    rng = np.random.default_rng(seed)
    for size in _blocks(resamples, max(len(counts), indicator.shape[1])):
        weights = rng.multinomial(images, counts / images, size=size)
        for name, (first, second) in _metrics((weights @ indicator).astype(np.float64)).items():
            drawn[name].append(first - second)
    without = _left_out(counts, indicator)
    found = {}
    for name in COUNTED:
        value, champion = (float(values[0]) for values in whole[name])
        resampled = np.concatenate(drawn[name])
        skew = _skewness(without[name], counts.astype(np.float64))
        lower, upper = corrected_bounds(value - champion, resampled, skew, confidence)
        found[name] = Difference(
            value, champion, value - champion, lower, upper, float(resampled.std())
        )
    return found


def mean_loss(
    ours: Floats, theirs: Floats, confidence: float, resamples: int, seed: int = 0
) -> Difference:
    """Compares the means of a loss, float64 [images] each: less is better."""
    gains = theirs - ours
    images = len(gains)
    rng = np.random.default_rng(seed)
    resampled = np.concatenate(
        [
            gains[rng.integers(0, images, (size, images), dtype=np.int32)].mean(axis=1)
            for size in _blocks(resamples, images)
        ]
    )
    # What is left without an image departs from the mean as much as the image does.
    skew = _skewness(-gains, np.ones(images))
    gain = float(gains.mean())
    lower, upper = corrected_bounds(gain, resampled, skew, confidence)
    return Difference(
        float(ours.mean()), float(theirs.mean()), gain, lower, upper, float(resampled.std())
    )


def corrected_bounds(
    estimate: float, resampled: Floats, skew: float, confidence: float
) -> tuple[float, float]:
    """Returns the lower and the upper one-sided bound from the resamples, float64 [resamples].

    BCa: percentiles, corrected for bias and for skewness (Efron, "Better bootstrap confidence
    intervals", Journal of the American Statistical Association 82, 1987). The worst of many classes
    is a biased metric, a resample's worst being worse than the sample's: plain percentiles of its
    difference are so timid that they hold nearly always, and decide nothing.

    Args:
      estimate: of the whole sample.
      resampled: the same of each resample.
      skew: Efron's acceleration.
      confidence: of each bound, between 0.5 and 1.
    """
    apart = resampled - estimate
    below = np.mean(apart < -_ROUNDING) + np.mean(np.abs(apart) <= _ROUNDING) / 2
    least = 0.5 / len(resampled)
    bias = float(ndtri(np.clip(below, least, 1 - least)))
    shares = []
    for z in (float(ndtri(1 - confidence)), float(ndtri(confidence))):
        moved = bias + z
        shares.append(float(ndtr(bias + moved / max(1 - skew * moved, 1e-6))))
    lower, upper = np.quantile(resampled, shares)
    return float(lower), float(upper)


def _cells(truth: Ints, ours: Ints, theirs: Ints, classes: int) -> tuple[Ints, sparse.csr_matrix]:
    """Returns the images of each cell, int64 [cells], and what an image of it adds.

    The latter is [cells, 5 x classes]: support, right and named so by the first model, right and
    named so by the second.
    """
    width = classes + 1
    codes, counts = np.unique(
        ((truth + 1) * width + ours + 1) * width + theirs + 1, return_counts=True
    )
    told, of_first, of_second = (
        codes // width**2 - 1,
        codes // width % width - 1,
        codes % width - 1,
    )
    groups = [
        told,
        np.where(of_first == told, told, -1),
        of_first,
        np.where(of_second == told, told, -1),
        of_second,
    ]
    rows, columns = [], []
    for number, names in enumerate(groups):
        there = np.flatnonzero(names >= 0)
        rows.append(there)
        columns.append(number * classes + names[there])
    row, column = np.concatenate(rows), np.concatenate(columns)
    shape = (len(codes), 5 * classes)
    matrix = sparse.csr_matrix((np.ones(len(row), np.int64), (row, column)), shape=shape)
    return counts.astype(np.int64), matrix


def _metrics(sums: Floats) -> dict[str, tuple[Floats, Floats]]:
    """Returns each metric of both models, float64 [rows], from float64 [rows, 5 x classes]."""
    support, right, named, their_right, their_named = np.split(sums, 5, axis=1)
    ours = _averages(support, right, named)
    theirs = _averages(support, their_right, their_named)
    return {name: (ours[name], theirs[name]) for name in COUNTED}


def _averages(support: Floats, right: Floats, named: Floats) -> dict[str, Floats]:
    seen = support > 0
    classes = np.maximum(seen.sum(axis=1), 1)
    recall = np.divide(right, support, out=np.zeros_like(right), where=seen)
    f1 = np.divide(2 * right, support + named, out=np.zeros_like(right), where=seen)
    return {
        "macro_recall": recall.sum(axis=1) / classes,
        "macro_f1": f1.sum(axis=1) / classes,
        "worst_class_recall": np.where(seen, recall, 1.0).min(axis=1),
    }


def _left_out(counts: Ints, indicator: sparse.csr_matrix) -> Mapping[str, Floats]:
    """Returns each metric's gain without one image of each cell, float64 [cells]."""
    total = (counts @ indicator).astype(np.float64)
    parts: dict[str, list[Floats]] = {name: [] for name in COUNTED}
    first = 0
    for size in _blocks(len(counts), indicator.shape[1]):
        rows = indicator[first : first + size].toarray()
        first += size
        for name, (ours, theirs) in _metrics(total - rows).items():
            parts[name].append(ours - theirs)
    return {name: np.concatenate(values) for name, values in parts.items()}


def _skewness(without: Floats, counts: Floats) -> float:
    """Returns Efron's acceleration from the values without an image; `counts` images each."""
    departures = np.average(without, weights=counts) - without
    squares = float((counts * departures**2).sum())
    if squares <= 0:
        return 0.0
    return float((counts * departures**3).sum() / (6 * squares**1.5))


def _blocks(total: int, width: int) -> Iterator[int]:
    """Yields the sizes of blocks of rows of this width that together are `total`."""
    most = max(1, _BLOCK // max(1, width))
    for first in range(0, total, most):
        yield min(most, total - first)
