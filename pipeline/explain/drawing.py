"""Attributions as pictures: the image in grey, and over it a perceptually uniform colour map."""

from __future__ import annotations

from typing import Final

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.decode import Resize

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

# Equal steps of its values look equally large, also in grey and to the colour-blind.
_COLOURS: Final = "inferno"
# Sides in pixels: small pictures are enlarged by whole factors, large ones shrunk.
_SMALL, _LARGE = 192, 448
# How far the picture's own light shows below the map.
_BELOW: Final = 0.45


def shown(pixels: Bytes) -> Image.Image:
    """Returns a picture of uint8 [height, width, 1 or 3] in a size to look at, in colour."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
    longest = max(image.size)
    if longest > _LARGE:
        image.thumbnail((_LARGE, _LARGE), Image.Resampling.LANCZOS)
    elif longest < _SMALL:
        factor = -(-_SMALL // longest)
        size = (image.width * factor, image.height * factor)
        image = image.resize(size, Image.Resampling.NEAREST)
    return image


def overlay(picture: Image.Image, values: Floats, resize: Resize) -> Image.Image:
    """Returns a map of the model's view over the picture.

    Args:
      picture: of `shown`.
      values: float32 [side, side], 0 to 1, over the square that the model sees.
      resize: how the picture became that square (transform.resize).
    """
    placed = _placed(values, picture.width, picture.height, resize)
    coloured = matplotlib.colormaps[_COLOURS](placed)[..., :3]
    grey = np.asarray(picture.convert("L"), np.float32)[..., np.newaxis] / 255
    # Where the map says much its colour covers the picture; elsewhere the picture shows, dimmed.
    weight = placed[..., np.newaxis]
    mixed = weight * coloured + (1 - weight) * _BELOW * grey
    return Image.fromarray(np.clip(mixed * 255, 0, 255).astype(np.uint8))


def _placed(values: Floats, width: int, height: int, resize: Resize) -> Floats:
    """Returns the map in the picture's own form, float32 [height, width]: resizing undone."""
    if resize == "stretch":
        return _resized(values, width, height)
    if resize == "crop":
        side = min(width, height)
        top, left = (height - side) // 2, (width - side) // 2
        whole = np.zeros((height, width), np.float32)
        whole[top : top + side, left : left + side] = _resized(values, side, side)
        return whole
    side = max(width, height)
    top, left = (side - height) // 2, (side - width) // 2
    return _resized(values, side, side)[top : top + height, left : left + width]


def _resized(values: Floats, width: int, height: int) -> Floats:
    """Enlarges by whole factors without smoothing, so that single pixels stay what they are."""
    side = values.shape[0]
    whole = width % side == 0 and height % side == 0
    how = Image.Resampling.NEAREST if whole else Image.Resampling.BILINEAR
    image = Image.fromarray(values.astype(np.float32)).resize((width, height), how)
    return np.clip(np.asarray(image, np.float32), 0.0, 1.0)
