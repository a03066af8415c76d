"""Images for the page: small pictures as data URIs, the same bytes for the same image."""

from __future__ import annotations

import base64
import io
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline import images
from pipeline.ingest import headers

# Below this side a picture is kept as it is, in a PNG, and the browser enlarges its pixels.
_SMALL = 40
_SIDE = 112
_JPEG_QUALITY = 82
# A JPEG with a longer side is decoded at an eighth to a half of its size, in a fifth of the time,
# and to at least so much: a page may show hundreds of photographs.
_LARGE = 8 * _SIDE
_DECODED = 2 * _SIDE
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Picture:
    """A picture in the page; `pixelated` ones are so small that their pixels should show."""

    source: str
    width: int
    height: int
    pixelated: bool


def of_file(encoded: bytes) -> Picture | None:
    """Returns the thumbnail of an encoded image, or None where it can't be read."""
    pixels = _of_photograph(encoded)
    if pixels is not None:
        return of_pixels(pixels)
    try:
        pixels = images.prepare(encoded, min_side=1, max_pixels=images.MOST_PIXELS).pixels
    except images.BadImage:
        return None
    return of_pixels(pixels)


def _of_photograph(encoded: bytes) -> npt.NDArray[np.uint8] | None:
    """Returns a large JPEG's pixels at a smaller size; None of what has to be decoded whole."""
    if headers.sniff(encoded[: headers.SNIFF_BYTES]) != "jpeg":
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(encoded), formats=images.PLUGINS["jpeg"])
        plain = image.mode in ("L", "RGB") and image.getexif().get(_ORIENTATION, 1) == 1
        if not plain or max(image.size) <= _LARGE:
            return None
        image.draft(image.mode, (_DECODED, _DECODED))
        pixels = np.asarray(image)
    except Exception:  # noqa: BLE001 - what is damaged raises whatever it likes, and is told below
        return None
    return pixels if pixels.ndim == 3 else pixels[..., np.newaxis]


def of_pixels(pixels: npt.NDArray[np.uint8]) -> Picture:
    """Returns the thumbnail of uint8 [height, width, 1 or 3]."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    longest = max(image.size)
    buffer = io.BytesIO()
    if longest <= _SMALL:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
        kind = "jpeg"
    source = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Picture(source, image.width, image.height, pixelated=longest <= _SMALL)
