"""Near duplicates across splits: suspected by perceptual hash, confirmed on small pictures.

Two hashes within MAX_DISTANCE bits agree in at least two of MAX_DISTANCE + 2 bands (the
pigeonhole principle), so that only images that share a pair of bands are compared. On handwriting
a third of all images have a neighbour within 4 bits, and nearly none of them is a duplicate: what
decides is the difference between the thumbnails' pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MAX_DISTANCE = 4
# Mean absolute difference of thumbnails, in levels of 255, once their mean brightness agrees.
MAX_DIFFERENCE = 3.0
MAX_SHIFT = 24.0
# Keys that thousands of images share (blank pages, say) are searched in part: the cost is bounded.
MAX_NEIGHBOURS = 200
# Pairs of thumbnails compared at a time: memory stays bounded however many images look alike.
_AT_ONCE = 4096

_WIDTHS = (11, 11, 11, 11, 10, 10)
_BANDS = tuple(
    np.uint64(((1 << width) - 1) << sum(_WIDTHS[:place])) for place, width in enumerate(_WIDTHS)
)
_MASKS = tuple(one | other for one, other in combinations(_BANDS, 2))
_POPCOUNT = np.array([bin(value).count("1") for value in range(1 << 16)], np.uint8)


class Pair(NamedTuple):
    """Two images that look the same; `nearer` lies in the split closer to training."""

    nearer: int
    further: int
    distance: int
    difference: float


@dataclass(frozen=True)
class Pairs:
    """Any number of pairs, an element each: of the frames of a film there are millions.

    Attributes:
      nearer: int64 [pairs].
      further: int64 [pairs].
      distance: uint8 [pairs].
      difference: float64 [pairs].
    """

    nearer: npt.NDArray[np.int64]
    further: npt.NDArray[np.int64]
    distance: npt.NDArray[np.uint8]
    difference: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.nearer)

    def first(self, most: int) -> list[Pair]:
        """Returns at most so many of them, from the first on."""
        columns = (self.nearer, self.further, self.distance, self.difference)
        return [Pair(*row) for row in zip(*(one[:most].tolist() for one in columns), strict=True)]

    def of(self, images: npt.NDArray[np.int64]) -> Pairs:
        """Returns the same pairs of `images`, int64, where these are positions in them."""
        return replace(self, nearer=images[self.nearer], further=images[self.further])


def pairs(
    hashes: npt.NDArray[np.uint64],
    splits: npt.NDArray[np.int8],
    thumbs: npt.NDArray[np.uint8],
    places: npt.NDArray[np.int64],
) -> Pairs:
    """Returns the confirmed pairs across splits, the most alike first.

    Args:
      hashes: uint64 [images], of the images to compare.
      splits: int8 [images], codes.
      thumbs: uint8 [all images, bytes]; may lie on disk.
      places: int64 [images], the rows of `thumbs`.
    """
    left, right = _suspects(hashes, splits)
    difference = np.empty(len(left))
    for start in range(0, len(left), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        difference[some] = _difference(thumbs[places[left[some]]], thumbs[places[right[some]]])
    sure = difference <= MAX_DIFFERENCE
    left, right, difference = left[sure], right[sure], difference[sure]
    swapped = splits[left] >= splits[right]
    nearer, further = np.where(swapped, right, left), np.where(swapped, left, right)
    order = np.lexsort((further, nearer, difference))
    nearer, further = nearer[order], further[order]
    distance = _distance(hashes[nearer], hashes[further])
    return Pairs(nearer, further, distance, difference[order])


def _suspects(
    hashes: npt.NDArray[np.uint64], splits: npt.NDArray[np.int8]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns the positions of the pairs within MAX_DISTANCE, each pair once.

    Two copies of an image share most of their bands, and so are met many times.
    """
    images = np.int64(max(len(hashes), 1))
    known = np.empty(0, np.int64)
    for mask in _MASKS:
        met = [known]
        for left, right in _candidates(hashes, splits, mask):
            close = _distance(hashes[left], hashes[right]) <= MAX_DISTANCE
            one, two = left[close], right[close]
            met.append(np.minimum(one, two) * images + np.maximum(one, two))
        known = np.unique(np.concatenate(met))
    return known // images, known % images


def _candidates(
    hashes: npt.NDArray[np.uint64], splits: npt.NDArray[np.int8], mask: np.uint64
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yields arrays of positions, pairwise from two splits, whose hashes agree under the mask."""
    key = hashes & mask
    # Within a key, neighbours in the whole hash are the likeliest.
    order = np.lexsort((hashes, key))
    key = key[order]
    at = np.arange(len(key))
    for offset in range(1, MAX_NEIGHBOURS + 1):
        at = at[at + offset < len(key)]
        at = at[key[at] == key[at + offset]]
        if not len(at):
            break
        left, right = order[at], order[at + offset]
        apart = splits[left] != splits[right]
        yield left[apart], right[apart]


def _distance(left: npt.NDArray[np.uint64], right: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    words = np.ascontiguousarray(left ^ right).view(np.uint16).reshape(-1, 4)
    return _POPCOUNT[words].sum(axis=1, dtype=np.uint8)


def _difference(
    left: npt.NDArray[np.uint8], right: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float64]:
    gap = left.astype(np.float32) - right.astype(np.float32)
    shift = gap.mean(axis=1, keepdims=True)
    difference = np.abs(gap - shift).mean(axis=1, dtype=np.float64)
    difference[np.abs(shift[:, 0]) > MAX_SHIFT] = 255.0  # a blank page is no copy of a black one
    return difference
