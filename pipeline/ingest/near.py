"""Near duplicates across splits: suspected by perceptual hash, confirmed on small pictures.

Two hashes within MAX_DISTANCE bits agree in at least one of MAX_DISTANCE + 1 bands (the
pigeonhole principle), so that only images that share a band are compared. On handwriting a third
of all images have a neighbour within 4 bits, and nearly none of them is a duplicate: what decides
is the difference between the thumbnails' pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MAX_DISTANCE = 4
# Mean absolute difference of thumbnails, in levels of 255, once their mean brightness agrees.
MAX_DIFFERENCE = 3.0
MAX_SHIFT = 24.0
# A band that thousands of images share (blank pages, say) is searched in part: its cost is bounded.
MAX_IN_BAND = 2000

_BANDS = tuple((13 * band, min(13, 64 - 13 * band)) for band in range(MAX_DISTANCE + 1))
_POPCOUNT = np.array([bin(value).count("1") for value in range(1 << 16)], np.uint8)


class Pair(NamedTuple):
    """Two images that look the same; `nearer` lies in the split closer to training."""

    nearer: int
    further: int
    distance: int
    difference: float


def pairs(
    hashes: npt.NDArray[np.uint64],
    splits: npt.NDArray[np.int8],
    thumbs: npt.NDArray[np.uint8],
    places: npt.NDArray[np.int64],
) -> list[Pair]:
    """Returns the confirmed pairs across splits, the most alike first.

    Args:
      hashes: uint64 [images], of the images to compare.
      splits: int8 [images], codes.
      thumbs: uint8 [all images, bytes]; may lie on disk.
      places: int64 [images], the rows of `thumbs`.
    """
    seen: dict[tuple[int, int], Pair] = {}
    for left, right in _candidates(hashes, splits):
        distance = _distance(hashes[left], hashes[right])
        close = np.flatnonzero(distance <= MAX_DISTANCE)
        if not len(close):
            continue
        difference = _difference(thumbs[places[left[close]]], thumbs[places[right[close]]])
        for which in np.flatnonzero(difference <= MAX_DIFFERENCE):
            one, two = int(left[close[which]]), int(right[close[which]])
            nearer, further = (one, two) if splits[one] < splits[two] else (two, one)
            seen[nearer, further] = Pair(
                nearer, further, int(distance[close[which]]), float(difference[which])
            )
    return sorted(seen.values(), key=lambda pair: (pair.difference, pair.nearer, pair.further))


def _candidates(
    hashes: npt.NDArray[np.uint64], splits: npt.NDArray[np.int8]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yields arrays of positions, pairwise from two splits, whose hashes share a band."""
    for shift, width in _BANDS:
        band = (hashes >> np.uint64(shift)) & np.uint64((1 << width) - 1)
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.diff(band[order], prepend=band[order[:1]] + np.uint64(1)))
        for start, end in zip(starts, np.append(starts[1:], len(order)), strict=True):
            if end - start < 2:
                continue
            members = order[start:end]
            # Neighbours in the whole hash are the likeliest: a crowded band is cut along it.
            members = members[np.argsort(hashes[members], kind="stable")]
            for first in range(0, len(members), MAX_IN_BAND):
                yield from _across(members[first : first + MAX_IN_BAND], splits)


def _across(
    members: npt.NDArray[np.int64], splits: npt.NDArray[np.int8]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    for split in np.unique(splits[members])[1:]:
        there = members[splits[members] == split]
        before = members[splits[members] < split]
        yield np.repeat(there, len(before)), np.tile(before, len(there))


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
