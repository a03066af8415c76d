"""Augmentation's operations: Keras's preprocessing layers as functions of images and seeds.

The layers' random numbers come from elsewhere: a layer's own generator is a variable that counts
calls, which makes an epoch depend on how many there were before it.

Two things are put together here, because Keras 3.12 and 3.15 do them in a way that doesn't serve:
RandomCrop cuts the same window from all images of a batch, and single numbers mean ranges.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from pipeline.config import augmentation as steps


class Seeds(keras.random.SeedGenerator):
    """The seeds of one batch and one step: a Keras generator without a variable.

    Each use folds another number into the key. The numbers are counted while the graph is traced.
    """

    def __init__(self, key: tf.Tensor) -> None:
        # Keras's own __init__ would make the variable.
        self._key = key
        self._uses = 0

    def next(self, ordered: bool = True) -> tf.Tensor:
        """Returns two whole numbers."""
        self._uses += 1
        return tf.random.fold_in(self._key, self._uses)


# From images, float32 [batch, side, side, channels] of 0 to 1, and seeds to images.
Op = Callable[[tf.Tensor, Seeds], tf.Tensor]

# Whatever precision the model works in, images are augmented in float32, and on the last axis are
# their channels.
PLAIN: dict[str, Any] = {"dtype": "float32", "data_format": "channels_last"}
COLOR: dict[str, Any] = {**PLAIN, "value_range": (0.0, 1.0)}


def filling(step: Any) -> dict[str, Any]:
    """Returns a warping layer's options: what fills the gaps, and how pixels are interpolated."""
    return {
        **PLAIN,
        "fill_mode": step.fill_mode,
        "fill_value": step.fill_value,
        "interpolation": step.interpolation,
    }


def of(layer: keras.layers.Layer) -> Op:
    """Returns a preprocessing layer as a function of images and seeds."""

    def apply(images: tf.Tensor, seeds: Seeds) -> tf.Tensor:
        drawn = layer.get_random_transformation(images, training=True, seed=seeds)
        return layer.transform_images(images, drawn, training=True)

    return apply


def contrast(factor: float) -> Op:
    """Returns the contrast, drawn from 1 - factor to 1 + factor."""
    # A single number would only raise the contrast: Keras reads it as (0, factor).
    return of(keras.layers.RandomContrast((factor, factor), **COLOR))


def jitter(step: steps.ColorJitter, channels: int) -> Op:
    """Brightness, contrast, saturation and hue, in the order of Keras's RandomColorJitter."""
    layers = keras.layers
    chain = []
    if step.brightness:
        chain.append(of(layers.RandomBrightness(step.brightness, **COLOR)))
    if step.contrast:
        chain.append(contrast(step.contrast))
    if step.saturation and channels == 3:
        # Keras multiplies the saturation by f / (1 - f).
        less, more = 1 - step.saturation, 1 + step.saturation
        factor = (less / (1 + less), more / (1 + more))
        chain.append(of(layers.RandomSaturation(factor, **COLOR)))
    if step.hue and channels == 3:
        # Keras's unit is half of the circle.
        chain.append(of(layers.RandomHue(2 * step.hue, **COLOR)))

    def apply(images: tf.Tensor, seeds: Seeds) -> tf.Tensor:
        for one in chain:
            images = one(images, seeds)
        return images

    return apply


def erasing(step: steps.Erasing) -> Op:
    """Returns the rectangle that is blotted out in a share of the images."""
    # A single probability would be the upper end of a range that Keras draws from.
    layer = keras.layers.RandomErasing(
        factor=(step.probability, step.probability),
        scale=(step.smallest, step.largest),
        fill_value=step.fill_value,
        **COLOR,
    )
    return of(layer)


def cropped(step: steps.Crop, images: tf.Tensor, seeds: Seeds) -> tf.Tensor:
    """Cuts another square from each image: padding, cut and size at once."""
    batch, side = tf.shape(images)[0], images.shape[1]
    padding = round(step.padding * side)
    place = keras.random.uniform((batch, 2), seed=seeds)
    if step.smallest == 1:  # whole pixels, so that nothing is blurred
        corner = tf.cast(tf.floor(place * (2 * padding + 1)), tf.int32) - padding
        return _shifted(step, images, corner)
    scale = keras.random.uniform((batch, 1), step.smallest, 1.0, seed=seeds)
    corner = place * (side * (1 - scale) + 2 * padding) - padding
    zero = tf.zeros((batch, 1))
    # The middle of an output pixel, in the input's pixels.
    shift = corner + (scale - 1) / 2
    across = [scale, zero, shift[:, :1]]
    down = [zero, scale, shift[:, 1:]]
    return keras.ops.image.affine_transform(
        images,
        tf.concat([*across, *down, zero, zero], 1),
        interpolation=step.interpolation,
        fill_mode=step.fill_mode,
        fill_value=step.fill_value,
        data_format="channels_last",
    )


def _shifted(step: steps.Crop, images: tf.Tensor, corner: tf.Tensor) -> tf.Tensor:
    """Returns each image from its corner on, int32 [batch, 2] of (x, y).

    Pixels are looked up, which costs a quarter of an affine transformation.
    """
    side, channels = images.shape[1], images.shape[3]
    places = corner[:, :, tf.newaxis] + tf.range(side)
    inside = (places >= 0) & (places < side)
    match step.fill_mode:
        case "reflect":
            places %= 2 * side
            places = tf.minimum(places, 2 * side - 1 - places)
        case "wrap":
            places %= side
        case _:
            places = tf.clip_by_value(places, 0, side - 1)
    x, y = places[:, 0, tf.newaxis, :], places[:, 1, :, tf.newaxis]
    flat = tf.reshape(images, (-1, side * side, channels))
    found = tf.gather(flat, tf.reshape(y * side + x, (-1, side * side)), batch_dims=1)
    found = tf.reshape(found, (-1, side, side, channels))
    if step.fill_mode == "constant":
        kept = inside[:, 0, tf.newaxis, :] & inside[:, 1, :, tf.newaxis]
        found = tf.where(kept[..., tf.newaxis], found, step.fill_value)
    return found
