"""Pictures made worse in a TensorFlow graph: noise, blur, JPEG compression, brightness, contrast.

The kinds are five of those of Hendrycks and Dietterich ("Benchmarking Neural Network Robustness to
Common Corruptions and Perturbations", ICLR 2019), and the three strengths their severities 1, 3 and
5: those of ImageNet-C for photographs, which were set at 224 x 224 pixels, and those of CIFAR-10-C
for images of up to 64 pixels. docs/slices.md has the table.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

KINDS: Final = ("noise", "blur", "jpeg", "brightness", "contrast")
STRENGTHS: Final = 3

_SMALL_SIDE: Final = 64
# Noise of a pixel's size is gone when a picture of ten million pixels becomes one of 224 x 224. So
# larger ones are shrunk first: to about the size that the strengths were set for.
_LARGEST_SIDE: Final = 256


class _Strengths(NamedTuple):
    """Of each kind, from mild to strong."""

    noise: tuple[float, ...]  # standard deviation, of values from 0 to 1
    blur: tuple[float, ...]  # standard deviation of the Gaussian in pixels
    jpeg: tuple[int, ...]  # quality
    brightness: tuple[float, ...]  # added to the brightest channel, of values from 0 to 1
    contrast: tuple[float, ...]  # factor of the distance from the channel's mean


_SMALL: Final = _Strengths(
    noise=(0.04, 0.08, 0.10),
    blur=(0.4, 0.7, 1.0),
    jpeg=(80, 58, 40),
    brightness=(0.05, 0.15, 0.3),
    contrast=(0.75, 0.4, 0.15),
)
_LARGE: Final = _Strengths(
    noise=(0.08, 0.18, 0.38),
    blur=(1.0, 3.0, 6.0),
    jpeg=(25, 15, 7),
    brightness=(0.1, 0.3, 0.5),
    contrast=(0.4, 0.2, 0.05),
)


def corrupted(
    pixels: npt.NDArray[np.uint8], image_id: bytes, largest_side: int = _LARGEST_SIDE
) -> npt.NDArray[np.object_]:
    """Returns an image as 15 encoded files.

    The same image and id give the same bytes at every call on one machine: two models can be
    asked about the same spoiled pictures.

    Args:
      pixels: uint8 [height, width, 1 or 3].
      image_id: what the noise is drawn from.
      largest_side: in pixels; a larger image is shrunk to it, as far as it is above 256.

    Returns:
      bytes [kinds, strengths], in the order of KINDS, from mild to strong: PNG without loss, and
      JPEG of the quality that is the strength.
    """
    seed = np.frombuffer(hashlib.sha256(image_id).digest()[:8], np.int32)
    small = max(pixels.shape[:2]) <= _SMALL_SIDE
    files: npt.NDArray[np.object_] = _graph(small, max(largest_side, _LARGEST_SIDE))(
        tf.constant(pixels), tf.constant(seed)
    ).numpy()
    return files


@functools.cache
def _graph(small: bool, largest_side: int) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    strengths = _SMALL if small else _LARGE

    def build(pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        shrunk = pixels if small else _shrunk(pixels, largest_side)
        values = tf.cast(shrunk, tf.float32) / 255.0
        noise = tf.random.stateless_normal(tf.shape(values), seed, alg="philox")
        mean = tf.reduce_mean(values, axis=[0, 1], keepdims=True)
        files = [
            [_png(values + strength * noise) for strength in strengths.noise],
            [_png(_blurred(values, strength)) for strength in strengths.blur],
            [tf.io.encode_jpeg(shrunk, quality=quality) for quality in strengths.jpeg],
            [_png(_brighter(values, strength)) for strength in strengths.brightness],
            [_png(mean + strength * (values - mean)) for strength in strengths.contrast],
        ]
        return tf.stack([tf.stack(row) for row in files])

    signature = [tf.TensorSpec([None, None, None], tf.uint8), tf.TensorSpec([2], tf.int32)]
    return tf.function(build, signature, autograph=False)


def _shrunk(pixels: tf.Tensor, largest_side: int) -> tf.Tensor:
    """Shrinks uint8 [height, width, channels] to the largest side; a smaller image stays."""
    size = tf.shape(pixels)[:2]
    factor = tf.minimum(1.0, largest_side / tf.cast(tf.reduce_max(size), tf.float32))
    wanted = tf.maximum(1, tf.cast(tf.round(tf.cast(size, tf.float32) * factor), tf.int32))
    resized = tf.image.resize(pixels, wanted, antialias=True)
    return tf.cast(tf.round(tf.clip_by_value(resized, 0.0, 255.0)), tf.uint8)


def _png(values: tf.Tensor) -> tf.Tensor:
    """Encodes float32 [height, width, channels], 0 to 1, without compression: it is read once."""
    pixels = tf.cast(tf.round(tf.clip_by_value(values, 0.0, 1.0) * 255.0), tf.uint8)
    return tf.io.encode_png(pixels, compression=0)


def _blurred(values: tf.Tensor, deviation: float) -> tf.Tensor:
    """Convolves float32 [height, width, channels] with a Gaussian.

    At the borders the weights within the image count, which works for an image of any size.
    """
    radius = int(4 * deviation + 0.5)
    places = np.arange(-radius, radius + 1, dtype=np.float32)
    weights = np.exp(-0.5 * (places / deviation) ** 2)
    planes = tf.transpose(values, [2, 0, 1])[..., tf.newaxis]
    for shape in ((-1, 1, 1, 1), (1, -1, 1, 1)):
        kernel = tf.constant(weights.reshape(shape))
        inside = tf.nn.conv2d(tf.ones_like(planes[:1]), kernel, 1, "SAME")
        planes = tf.nn.conv2d(planes, kernel, 1, "SAME") / inside
    return tf.transpose(planes[..., 0], [1, 2, 0])


def _brighter(values: tf.Tensor, more: float) -> tf.Tensor:
    """Raises the value (of hue, saturation and value) of float32 [height, width, channels]."""
    value = tf.reduce_max(values, axis=2, keepdims=True)
    raised = tf.minimum(value + more, 1.0)
    scaled = values * tf.math.divide_no_nan(raised, value)
    return tf.where(value > 0, scaled, tf.broadcast_to(raised, tf.shape(values)))
