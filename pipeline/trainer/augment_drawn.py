"""RandAugment and AugMix: operations that are drawn for each image.

Three things are put together here, because Keras 3.12 and 3.15 do them in a way that doesn't serve:
RandAugment gives a whole batch the same operations, and computes all of them; AugMix draws its
operations once, when the graph is traced; and Equalization takes one histogram of the whole batch.
The operations are Keras's layers again.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from pipeline.config import augmentation as steps
from pipeline.trainer.augment_layers import COLOR, Op, Seeds, contrast, filling, of


def rand_augment(step: steps.RandAugment, channels: int) -> Op:
    """Draws `ops` of the paper's 14 operations for each image (Cubuk et al. 2020)."""
    operations = [_unchanged, *_warping(step), *_coloring(step.strength, channels)]

    def apply(images: tf.Tensor, seeds: Seeds) -> tf.Tensor:
        for _ in range(step.ops):
            images = _drawn(operations, images, seeds)
        return images

    return apply


def aug_mix(step: steps.AugMix) -> Op:
    """Blends chains of operations (Hendrycks et al. 2020); brightness, contrast, colour and
    sharpness aren't among them, as in the paper.
    """
    operations = [*_warping(step), *_recoding(step.strength)]

    def apply(images: tf.Tensor, seeds: Seeds) -> tf.Tensor:
        batch, chains = tf.shape(images)[0], step.chains
        shares = tf.random.stateless_gamma((chains, batch), seeds.next(), step.alpha)
        shares /= tf.reduce_sum(shares, 0)
        kept = _column(keras.random.beta((batch,), step.alpha, step.alpha, seed=seeds))
        # All chains at once, one behind the other.
        changed = tf.tile(images, (chains, 1, 1, 1))
        depth = keras.random.randint((chains * batch,), 1, step.depth + 1, seed=seeds)
        for done in range(step.depth):
            changed = _drawn(operations, changed, seeds, only=done < depth)
        changed = _column(shares) * changed
        mixture = tf.reduce_sum(tf.reshape(changed, (chains, *tf.unstack(tf.shape(images)))), 0)
        return kept * images + (1 - kept) * mixture

    return apply


def _column(values: tf.Tensor) -> tf.Tensor:
    return tf.reshape(values, (-1, 1, 1, 1))


def _drawn(
    operations: Sequence[Op], images: tf.Tensor, seeds: Seeds, only: tf.Tensor | None = None
) -> tf.Tensor:
    """Applies to each image one operation, drawn for it; none where `only` (bool [batch]) is false.

    Each operation sees just the images that drew it, all at once.
    """
    batch = tf.shape(images)[0]
    choice = keras.random.randint((batch,), 0, len(operations), seed=seeds)
    if only is not None:
        operations = [*operations, _unchanged]
        choice = tf.where(only, choice, len(operations) - 1)
    rows = tf.dynamic_partition(tf.range(batch), choice, len(operations))
    parts = tf.dynamic_partition(images, choice, len(operations))
    done = [operation(part, seeds) for operation, part in zip(operations, parts, strict=True)]
    return tf.reshape(tf.dynamic_stitch(rows, done), tf.shape(images))


def _unchanged(images: tf.Tensor, seeds: Seeds) -> tf.Tensor:
    return images


def _warping(step: Any) -> list[Op]:
    """Rotation by up to 30 degrees, shear by 0.3, translation by 0.3 of the side, at strength 1."""
    layers, strength, options = keras.layers, step.strength, filling(step)
    return [
        of(layers.RandomRotation(strength / 12, **options)),
        of(layers.RandomShear(0.3 * strength, 0.0, **options)),
        of(layers.RandomShear(0.0, 0.3 * strength, **options)),
        of(layers.RandomTranslation(0.3 * strength, 0.0, **options)),
        of(layers.RandomTranslation(0.0, 0.3 * strength, **options)),
    ]


def _recoding(strength: float) -> list[Op]:
    """What redraws the levels: at strength 1 down to 4 bits, inverted from any level on."""
    fewest = 8 - round(4 * strength)
    return [
        of(keras.layers.AutoContrast(**COLOR)),
        equalized,
        # Keras draws whole numbers below the upper end.
        of(keras.layers.RandomPosterization((fewest, 9), **COLOR)),
        functools.partial(_solarized, 1 - strength),
    ]


def _coloring(strength: float, channels: int) -> list[Op]:
    layers, spread = keras.layers, 0.45 * strength
    more = [
        *_recoding(strength),
        of(layers.RandomBrightness(spread, **COLOR)),
        contrast(2 * spread),
        # Keras's 0.5 leaves an image as it is.
        of(layers.RandomSharpness((0.5 - spread, 0.5 + spread), **COLOR)),
    ]
    if channels == 3:
        more.append(of(layers.RandomColorDegeneration((0.0, 2 * spread), **COLOR)))
    return more


def _solarized(lowest: float, images: tf.Tensor, seeds: Seeds) -> tf.Tensor:
    """Inverts what is above a threshold. Keras's layer draws a lower one the weaker it is set."""
    shape = (tf.shape(images)[0], 1, 1, 1)
    threshold = keras.random.uniform(shape, lowest, 1.0, seed=seeds)
    return tf.where(images < threshold, images, 1.0 - images)


def equalized(images: tf.Tensor, seeds: Seeds) -> tf.Tensor:
    """Spreads each channel's levels evenly, image by image, as Pillow's ImageOps.equalize does."""
    shape = tf.shape(images)
    levels = tf.cast(tf.round(images * 255), tf.int32)
    flat = tf.reshape(tf.transpose(levels, (0, 3, 1, 2)), (shape[0] * shape[3], -1))
    counts = tf.math.bincount(flat, minlength=256, maxlength=256, axis=-1)
    brightest = tf.reduce_max(flat, 1, keepdims=True)
    at_brightest = tf.reduce_sum(tf.cast(tf.equal(flat, brightest), tf.int32), 1, keepdims=True)
    step = (shape[1] * shape[2] - at_brightest) // 255
    below = tf.cumsum(counts, 1, exclusive=True)
    table = tf.minimum((below + step // 2) // tf.maximum(step, 1), 255)
    # Too few levels to spread: the image stays.
    table = tf.where(step > 0, table, tf.range(256))
    even = tf.reshape(
        tf.gather(table, flat, batch_dims=1), (shape[0], shape[3], shape[1], shape[2])
    )
    return tf.cast(tf.transpose(even, (0, 2, 3, 1)), tf.float32) * (1 / 255)
