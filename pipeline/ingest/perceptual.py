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


def describe(batch: npt.NDArray[np.uint8]) -> list[tuple[int, bytes]]:
    """Returns (64-bit perceptual hash, THUMB_BYTES bytes of a small RGB thumbnail) of each image.

    Args:
      batch: uint8 [images, height, width, 1 or 3].
    """
    small = _shrunk(batch).astype(np.float64)
    luma = small * 1024 if small.ndim == 3 else small @ _LUMA
    terms = (_ROWS @ luma @ _COLUMNS).reshape(len(batch), -1)
    ranked = np.sort(terms[:, 1:], axis=1)  # the first term is the mean brightness alone
    bits = np.packbits(terms > ranked[:, 31:32], axis=1)
    hashes = bits.view(">u8")[:, 0].tolist()
    return list(zip(hashes, _thumbnails(small), strict=True))


def _shrunk(batch: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Returns uint8 [images, 32, 32] of grey images, [images, 32, 32, 3] of colour."""
    images = batch[..., 0] if batch.shape[-1] == 1 else batch
    if images.shape[1:3] == (_SIDE, _SIDE):
        return images
    return np.stack([_resized(image) for image in images])


def _resized(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    picture = Image.fromarray(image)
    return np.asarray(picture.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0))


def _thumbnails(small: npt.NDArray[np.float64]) -> list[bytes]:
    """Halves float64 [images, 32, 32] or [images, 32, 32, 3]; returns RGB bytes of each."""
    halved = small[:, ::2, ::2] + small[:, 1::2, ::2] + small[:, ::2, 1::2] + small[:, 1::2, 1::2]
    levels = (halved / 4 + 0.5).astype(np.uint8)
    if small.ndim == 3:
        levels = np.repeat(levels[..., np.newaxis], 3, axis=3)
    return [image.tobytes() for image in levels]
