"""Small descriptions of a picture that survive resizing and recompression.

`phash` is the DCT hash of Zauner, "Implementation and Benchmarking of Perceptual Image Hash
Functions" (2010); `thumbnail` confirms on pixels what the hash only suspects.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

THUMB_SIDE = 16
THUMB_BYTES = THUMB_SIDE * THUMB_SIDE * 3


def _dct(size: int, terms: int) -> npt.NDArray[np.float64]:
    """Returns the first `terms` rows of the DCT-II matrix in whole 1024ths, [terms, size].

    With whole numbers the products stay exact in float64, and the hash the same everywhere.
    """
    position = (2 * np.arange(size) + 1) * np.pi / (2 * size)
    return np.rint(1024 * np.cos(np.arange(terms)[:, np.newaxis] * position))


_ROWS = _dct(32, 8)
_COLUMNS = np.ascontiguousarray(_ROWS.T)


def describe(pixels: npt.NDArray[np.uint8], luma: npt.NDArray[np.uint8]) -> tuple[int, bytes]:
    """Returns (64-bit perceptual hash, THUMB_BYTES bytes of a small RGB thumbnail).

    Args:
      pixels: uint8 [height, width, 1 or 3].
      luma: uint8 [height, width], of the same image.
    """
    small = Image.fromarray(luma).resize((32, 32), Image.Resampling.BILINEAR, reducing_gap=2.0)
    terms = (_ROWS @ np.asarray(small).astype(np.float64) @ _COLUMNS).reshape(-1)
    ranked = np.sort(terms[1:])  # the first term is the mean brightness alone
    bits = terms > ranked[31]
    return int.from_bytes(np.packbits(bits).tobytes(), "big"), _thumbnail(pixels)


def _thumbnail(pixels: npt.NDArray[np.uint8]) -> bytes:
    side = (THUMB_SIDE, THUMB_SIDE)
    grey = pixels.shape[2] == 1
    image = Image.fromarray(pixels[..., 0] if grey else pixels)
    thumb = image.resize(side, Image.Resampling.BOX, reducing_gap=2.0)
    return np.repeat(np.asarray(thumb), 3).tobytes() if grey else thumb.tobytes()
