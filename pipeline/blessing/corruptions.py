"""Pictures made worse in a TensorFlow graph: noise, blur, JPEG compression, brightness, contrast.

The kinds are five of those of Hendrycks and Dietterich ("Benchmarking Neural Network Robustness to
Common Corruptions and Perturbations", ICLR 2019), and the three strengths their severities 1, 3 and
5: those of ImageNet-C for photographs, which were set at 224 x 224 pixels, and those of CIFAR-10-C
for images of up to 64 pixels. docs/slices.md has the table.
"""

from __future__ import annotations

import functools
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
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
# Of decoded pixels in one call of the graph, which holds about 100 bytes for each of these.
_CALL_BYTES: Final = 2**19

Pixels = npt.NDArray[np.uint8]


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
    pictures: Sequence[Pixels], image_ids: Sequence[bytes], largest_side: int = _LARGEST_SIDE
) -> npt.NDArray[np.object_]:
    """Returns each image as 15 encoded files; images of one size are spoiled together.

    The same images and ids give the same bytes at every call on one machine: two models can be
    asked about the same spoiled pictures.

    Args:
      pictures: uint8 [height, width, 1 or 3] each, of any sizes.
      image_ids: what the noise of each is drawn from.
      largest_side: in pixels; a larger image is shrunk to it, as far as it is above 256.

    Returns:
      bytes [images, kinds, strengths], in the order of KINDS, from mild to strong: PNG without
      loss, and JPEG of the quality that is the strength.
    """
    files = np.empty((len(pictures), len(KINDS), STRENGTHS), np.object_)
    hashes = [hashlib.sha256(name).digest()[:8] for name in image_ids]
    for rows in _of_one_size(pictures):
        pixels = np.stack([pictures[row] for row in rows])
        seeds = np.stack([np.frombuffer(hashes[row], np.int32) for row in rows])
        small = max(pixels.shape[1:3]) <= _SMALL_SIDE
        spoil = _graph(small, max(largest_side, _LARGEST_SIDE))
        files[rows] = spoil(tf.constant(pixels), tf.constant(seeds)).numpy()
    return files


def _of_one_size(pictures: Sequence[Pixels]) -> Iterator[list[int]]:
    """Yields the rows of images that are spoiled in one call."""
    by_shape: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, picture in enumerate(pictures):
        by_shape[picture.shape].append(row)
    for rows in by_shape.values():
        count = max(1, _CALL_BYTES // pictures[rows[0]].nbytes)
        yield from (rows[start : start + count] for start in range(0, len(rows), count))


@functools.cache
def _graph(small: bool, largest_side: int) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns a function of uint8 [images, height, width, channels] and int32 [images, 2]."""
    strengths = _SMALL if small else _LARGE

    def build(pixels: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        shrunk = pixels if small else _shrunk(pixels, largest_side)
        values = tf.cast(shrunk, tf.float32) / 255.0
        noise = _noise(tf.shape(values)[1:], seeds)
        mean = tf.reduce_mean(values, axis=[1, 2], keepdims=True)
        files = [
            _pngs([values + strength * noise for strength in strengths.noise]),
            _pngs([_blurred(values, strength) for strength in strengths.blur]),
            _jpegs(shrunk, strengths.jpeg),
            _pngs([_brighter(values, strength) for strength in strengths.brightness]),
            _pngs([mean + strength * (values - mean) for strength in strengths.contrast]),
        ]
        return tf.stack(files, axis=1)

    signature = [
        tf.TensorSpec([None, None, None, None], tf.uint8),
        tf.TensorSpec([None, 2], tf.int32),
    ]
    return tf.function(build, signature, autograph=False)


def _shrunk(pixels: tf.Tensor, largest_side: int) -> tf.Tensor:
    """Shrinks uint8 [images, height, width, channels] to the largest side; smaller ones stay."""
    size = tf.shape(pixels)[1:3]
    factor = tf.minimum(1.0, largest_side / tf.cast(tf.reduce_max(size), tf.float32))
    wanted = tf.maximum(1, tf.cast(tf.round(tf.cast(size, tf.float32) * factor), tf.int32))
    resized = tf.image.resize(pixels, wanted, antialias=True)
    return tf.cast(tf.round(tf.clip_by_value(resized, 0.0, 255.0)), tf.uint8)


def _noise(shape: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
    """Draws float32 [images, *shape], each image from its own seed whatever stands beside it."""
    return tf.map_fn(
        lambda seed: tf.random.stateless_normal(shape, seed, alg="philox"),
        seeds,
        fn_output_signature=tf.float32,
    )


def _pngs(versions: Sequence[tf.Tensor]) -> tf.Tensor:
    """Encodes float32 [images, height, width, channels] each, 0 to 1: string [images, versions].

    Without compression, for they are read once.
    """
    values = tf.stack(versions, axis=1)
    pixels = tf.cast(tf.round(tf.clip_by_value(values, 0.0, 1.0) * 255.0), tf.uint8)
    return tf.io.encode_png(pixels, compression=0)


def _jpegs(pixels: tf.Tensor, qualities: Sequence[int]) -> tf.Tensor:
    """Encodes uint8 [images, height, width, channels]: string [images, qualities]."""
    return tf.map_fn(
        lambda one: tf.stack([tf.io.encode_jpeg(one, quality=quality) for quality in qualities]),
        pixels,
        fn_output_signature=tf.string,
    )


def _blurred(values: tf.Tensor, deviation: float) -> tf.Tensor:
    """Convolves float32 [images, height, width, channels] with a Gaussian.

    At the borders the weights within the image count, which works for an image of any size.
    """
    radius = int(4 * deviation + 0.5)
    places = np.arange(-radius, radius + 1, dtype=np.float32)
    weights = np.exp(-0.5 * (places / deviation) ** 2)
    images, height, width, channels = tf.unstack(tf.shape(values))
    planes = tf.reshape(tf.transpose(values, [0, 3, 1, 2]), [-1, height, width, 1])
    for shape in ((-1, 1, 1, 1), (1, -1, 1, 1)):
        kernel = tf.constant(weights.reshape(shape))
        inside = tf.nn.conv2d(tf.ones_like(planes[:1]), kernel, 1, "SAME")
        planes = tf.nn.conv2d(planes, kernel, 1, "SAME") / inside
    return tf.transpose(tf.reshape(planes, [images, channels, height, width]), [0, 2, 3, 1])


def _brighter(values: tf.Tensor, more: float) -> tf.Tensor:
    """Raises the value (of hue, saturation, value) of float32 [images, height, width, channels]."""
    value = tf.reduce_max(values, axis=-1, keepdims=True)
    raised = tf.minimum(value + more, 1.0)
    scaled = values * tf.math.divide_no_nan(raised, value)
    return tf.where(value > 0, scaled, tf.broadcast_to(raised, tf.shape(values)))
