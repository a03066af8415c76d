"""Images made for tests: real files, learnable classes, the same at every run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

HUES = {
    "blue": (40, 60, 220),
    "green": (40, 200, 60),
    "red": (220, 50, 40),
    "white": (230, 230, 220),
}


def picture(
    label: str, number: int, size: tuple[int, int] = (32, 32), grey: bool = False
) -> Image.Image:
    """Returns a picture in the colour `label` (a key of HUES) with noise and a block somewhere.

    Args:
      label: names the colour, and so the class.
      number: the picture's seed within the class.
      size: width and height in pixels.
      grey: one channel; the classes then differ in brightness.
    """
    rng = np.random.default_rng([sorted(HUES).index(label), number])
    width, height = size
    pixels = np.empty((height, width, 3), np.float64)
    pixels[:] = HUES[label]
    pixels += rng.normal(0, 25, pixels.shape)
    y, x = rng.integers(0, max(1, height // 2)), rng.integers(0, max(1, width // 2))
    pixels[y : y + height // 3, x : x + width // 3] *= 0.5
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return image.convert("L") if grey else image


def class_folders(
    root: Path,
    counts: dict[str, int],
    size: tuple[int, int] = (32, 32),
    grey: bool = False,
    suffix: str = ".png",
) -> Path:
    """Writes `root/<label>/<number><suffix>` for each label and count, and returns `root`."""
    for label, count in counts.items():
        folder = root / label
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            picture(label, number, size, grey).save(folder / f"{number:05d}{suffix}")
    return root
