"""Small descriptions of a picture that survive resizing and recompression.

`phash` is the DCT hash of Zauner, "Implementation and Benchmarking of Perceptual Image Hash
Functions" (2010); `thumbnail` confirms on pixels what the hash only suspects.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

_SIDE = 32
THUMB_SIDE = 16
THUMB_BYTES = THUMB_SIDE * THUMB_SIDE * 3
# ITU-R 601 in 1024ths; whole numbers, so that everything below is exact in float64.
_LUMA = np.array((306.0, 601.0, 117.0))


def _dct(size: int, terms: int) -> npt.NDArray[np.float64]:
    """Returns the first `terms` rows of the DCT-II matrix in whole 1024ths, [terms, size].

    With whole numbers the products stay exact in float64, and the hash the same everywhere.
    """
    position = (2 * np.arange(size) + 1) * np.pi / (2 * size)
    return np.rint(1024 * np.cos(np.arange(terms)[:, np.newaxis] * position))


_ROWS = _dct(_SIDE, 8)
_COLUMNS = np.ascontiguousarray(_ROWS.T)


def describe(picture: Image.Image) -> tuple[int, bytes]:
    """Returns (64-bit perceptual hash, THUMB_BYTES bytes of a small RGB thumbnail).

    Args:
      picture: an image of mode L or RGB.
    """
    resized = picture.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    small = np.asarray(resized).astype(np.float64)
    luma = small * 1024 if small.ndim == 2 else small @ _LUMA
    terms = (_ROWS @ luma @ _COLUMNS).reshape(-1)
    ranked = np.sort(terms[1:])  # the first term is the mean brightness alone
    bits = np.packbits(terms > ranked[31])
    return int.from_bytes(bits.tobytes(), "big"), _thumbnail(small)


def _thumbnail(small: npt.NDArray[np.float64]) -> bytes:
    """Halves float64 [32, 32] or [32, 32, 3] and returns it as RGB bytes."""
    halved = (small[::2, ::2] + small[1::2, ::2] + small[::2, 1::2] + small[1::2, 1::2]) / 4
    levels = (halved + 0.5).astype(np.uint8)
    return levels.tobytes() if small.ndim == 3 else np.repeat(levels, 3).tobytes()
