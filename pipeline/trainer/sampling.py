"""Which images an epoch takes, and in which order: plain NumPy.

With train.oversample rare classes are drawn more often, and frequent ones less, so that an epoch
keeps its length. Class c, which has n_c of n images, gets a share that is proportional to
n_c ** (1 - oversample): at 0 as many as it has, at 0.5 by the square root (Mahajan et al. 2018), at
1 as many as every other class.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def expected(counts: npt.NDArray[np.int64], oversample: float) -> npt.NDArray[np.float64]:
    """Returns how many images of each class an epoch takes, on average.

    Args:
      counts: the images of each class, int64 [classes].
      oversample: train.oversample, 0 to 1.

    Returns:
      float64 [classes]; they add up to all images, and a class without images has none.
    """
    shares = np.where(counts > 0, np.maximum(counts, 1) ** (1.0 - oversample), 0.0)
    drawn: npt.NDArray[np.float64] = counts.sum() * shares / max(shares.sum(), 1e-12)
    return drawn


def order(
    label_ids: npt.NDArray[np.int64], oversample: float, seed: int, epoch: int
) -> npt.NDArray[np.int64]:
    """Returns the rows of an epoch in their order, int64 [examples], from (seed, epoch) alone.

    Without oversampling each row comes once. With it, each row of a class comes as often as the
    others or once more: a class that has to be drawn 2.5 times comes twice, and half of it, drawn
    anew in each epoch, a third time.

    Args:
      label_ids: of all rows, int64 [examples], from 0.
      oversample: train.oversample.
      seed: train.seed.
      epoch: counted from the first of training.
    """
    random = np.random.default_rng([seed, epoch])
    if not oversample:
        return random.permutation(len(label_ids))
    counts = np.bincount(label_ids)
    by_class = np.split(np.argsort(label_ids, kind="stable"), np.cumsum(counts)[:-1])
    chosen = []
    for rows, wanted in zip(by_class, _whole(expected(counts, oversample)), strict=True):
        if len(rows):
            times, rest = divmod(int(wanted), len(rows))
            chosen += [np.tile(rows, times), random.choice(rows, rest, replace=False)]
    return random.permutation(np.concatenate(chosen))


def _whole(numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Rounds numbers to whole ones with the same (whole) sum: the largest fractions go up."""
    whole = np.floor(numbers).astype(np.int64)
    missing = round(float(numbers.sum())) - int(whole.sum())
    whole[np.argsort(whole - numbers, kind="stable")[:missing]] += 1
    return whole
