"""How far new images lie from known ones in a model's features, and how far chance alone carries.

The maximum mean discrepancy of Gretton et al. ("A kernel two-sample test", JMLR 13, 2012), with a
Gaussian kernel whose width is the median distance among the known images. A shift of the classes is
taken out first: the known images are weighted so that the model sees its classes in them as often
as in the new ones. What is left is a change of content. Pure NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_RESAMPLES = 200
_QUANTILE = 0.99


@dataclass(frozen=True)
class Moved:
    """A distance, 0 to about 1.4, and the 99th percentile of what chance shows."""

    distance: float
    chance: float


def moved(known: Floats, known_classes: Ints, new: Floats, new_classes: Ints, seed: int) -> Moved:
    """Returns how far `new` lies from `known`.

    The bound comes from the known images alone: they are halved at random, as many as there are new
    ones are drawn from one half with the new ones' classes, and compared with the other half. So it
    grows where there are few of either.

    Args:
      known: features, float32 [images, features]; at least four images.
      known_classes: the classes that the model sees in them, int64 [images].
      new: features, float32 [images, features].
      new_classes: int64 [images].
      seed: of the resampling.

    Raises:
      ValueError: there are too few images to compare.
    """
    if len(known) < 4 or not len(new):
        raise ValueError(f"{len(known)} known images and {len(new)} new ones can't be compared")
    among, between, within = _kernels(known, new)
    wanted = np.bincount(new_classes, minlength=int(known_classes.max(initial=0)) + 1)
    draw = np.random.default_rng(seed)
    found, by_chance = [], []
    for _ in range(_RESAMPLES):
        order = draw.permutation(len(known))
        one, other = order[: len(known) // 2], order[len(known) // 2 :]
        weights = _weights(one, known_classes, wanted)
        drawn = _drawn(other, known_classes, wanted, draw)
        difference = weights - drawn
        by_chance.append(difference @ among @ difference)
        found.append(weights @ among @ weights - 2 * weights @ between + within)
    return Moved(_root(float(np.median(found))), _root(float(np.quantile(by_chance, _QUANTILE))))


def _kernels(known: Floats, new: Floats) -> tuple[npt.NDArray[np.float64], Floats, float]:
    """Returns the kernel among the known, its mean to the new for each known, and among the new."""
    among, between, within = _squares(known, known), _squares(known, new), _squares(new, new)
    apart = among[np.triu_indices(len(known), 1)]
    width = float(np.median(apart)) or 1.0
    kernel = np.exp(-among / width).astype(np.float64)
    return kernel, np.exp(-between / width).mean(axis=1), float(np.exp(-within / width).mean())


def _squares(one: Floats, other: Floats) -> Floats:
    """Returns the squared distances, float32 [len(one), len(other)]."""
    products = one @ other.T
    squares = (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1)[None, :] - 2 * products
    found: Floats = np.maximum(squares, 0)
    return found


def _weights(rows: Ints, classes: Ints, wanted: Ints) -> npt.NDArray[np.float64]:
    """Returns weights that give these rows the wanted mix of classes; they add up to 1."""
    weights = np.zeros(len(classes))
    for number, count in enumerate(wanted):
        mine = rows[classes[rows] == number]
        if count and len(mine):
            weights[mine] = count / len(mine)
    total = weights.sum()
    if not total:  # no class in common: the new ones are others in any case
        weights[rows] = 1
        total = weights.sum()
    found: npt.NDArray[np.float64] = weights / total
    return found


def _drawn(
    rows: Ints, classes: Ints, wanted: Ints, draw: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Returns the shares of a sample of these rows, drawn with the wanted mix of classes."""
    counts = np.zeros(len(classes))
    for number, count in enumerate(wanted):
        mine = rows[classes[rows] == number]
        if count and len(mine):
            np.add.at(counts, draw.choice(mine, count), 1)
    if not counts.any():
        np.add.at(counts, draw.choice(rows, int(wanted.sum())), 1)
    return counts / counts.sum()


def _root(square: float) -> float:
    return float(np.sqrt(max(0.0, square)))
