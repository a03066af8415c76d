"""Augmentation: the steps of train.augment on batches of training images, inside tf.data.

The work is that of Keras's preprocessing layers (`augment_layers`, and `augment_drawn` for what is
drawn for each image). Each batch has a key made of (seed, epoch, step), so that an epoch looks the
same however training came to it.

Every step works on images from 0 (black) to 1 (white). Standardized images are brought there and
back; their range is that of black and white behind the transform graph.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from pipeline.config import augmentation as steps
from pipeline.trainer import augment_drawn
from pipeline.trainer.augment_layers import (
    COLOR,
    PLAIN,
    Op,
    Seeds,
    contrast,
    cropped,
    erasing,
    filling,
    jitter,
    of,
)

Targets = dict[str, tf.Tensor]
_Mix = Callable[[tf.Tensor, Targets, Seeds], tuple[tf.Tensor, Targets]]


def key(seed: int, epoch: tf.Tensor | int, step: tf.Tensor | int, worker: int = 0) -> tf.Tensor:
    """Returns the key of a batch, int64 [2].

    Args:
      seed: train.seed.
      epoch, step: whole numbers, counted through all of training and within the epoch.
      worker: the process, where several share each batch.
    """
    mixed = np.random.SeedSequence([seed, worker]).generate_state(2).astype(np.int32)
    epochs = tf.random.fold_in(tf.constant(mixed), tf.cast(epoch, tf.int64))
    return tf.random.fold_in(epochs, tf.cast(step, tf.int64))


class Policy:
    """The steps of train.augment, ready to be mapped over batches."""

    def __init__(
        self,
        policy: Sequence[steps.Step],
        classes: Mapping[str, int],
        value_range: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None = None,
        channels: int = 3,
    ) -> None:
        """Makes the layers; they hold variables, so do it outside of tf.data.

        Args:
          policy: in order.
          classes: of each class head, by the head's name: how many there are. Needed for steps that
            mix labels.
          value_range: what black and white are in the images, float32 [channels] each; without it
            0 and 1.
          channels: 1 or 3.
        """
        self._steps = [_made(step, channels) for step in policy]
        self._mixes = any(step.mixes_labels for step in policy)
        self._classes = dict(classes)
        self._range = value_range

    def __call__(
        self, pixels: tf.Tensor, targets: Targets, key: tf.Tensor
    ) -> tuple[tf.Tensor, Targets]:
        """Augments one batch, in a graph: Keras's layers refuse no images at all when run eagerly.

        Args:
          pixels: float32 [batch, side, side, channels].
          targets: by head; int64 or float32 [batch].
          key: of `key`.

        Returns:
          The pixels, and the targets: where the policy mixes labels, those of class heads are
          shares, float32 [batch, classes].
        """
        if self._mixes:
            shared = {name: tf.one_hot(targets[name], k) for name, k in self._classes.items()}
            targets = {**targets, **shared}
        shape = pixels.shape
        if self._range is not None:
            low, high = self._range
            pixels = (pixels - low) * (1 / (high - low))
        for number, step in enumerate(self._steps):
            pixels, targets = step(pixels, targets, Seeds(tf.random.fold_in(key, number)))
        if self._range is not None:
            pixels = pixels * (high - low) + low
        return tf.ensure_shape(pixels, shape), targets


def preview(
    policy: Sequence[steps.Step], pixels: npt.NDArray[np.float32], seed: int
) -> npt.NDArray[np.float32]:
    """Returns images as training sees them in some step, by the same code.

    Args:
      policy: train.augment.
      pixels: float32 [n, side, side, channels], 0 to 1; one batch, whose images MixUp and CutMix
        mix with each other.
      seed: another one gives other images.
    """
    made = tf.function(Policy(policy, {"label": 1}, channels=pixels.shape[-1]), autograph=False)
    zeros = {"label": tf.zeros([len(pixels)], tf.int64)}
    out, _ = made(tf.constant(pixels, tf.float32), zeros, key(seed, 0, 0))
    return np.asarray(out, np.float32)


def _made(step: steps.Step, channels: int) -> _Mix:
    """Returns a step as a function of pixels (0 to 1), targets and seeds."""
    match step:
        case steps.MixUp():
            return _mix_up(step)
        case steps.CutMix():
            return _cut_mix(step)
        case _:
            operation = _operation(step, channels)
            return lambda pixels, targets, seeds: (operation(pixels, seeds), targets)


def _operation(step: steps.Step, channels: int) -> Op:
    layers = keras.layers
    match step:
        case steps.Flip(mode=mode):
            both = "horizontal_and_vertical"
            return of(layers.RandomFlip(both if mode == "both" else mode, **PLAIN))
        case steps.Rotation(factor=factor):
            return of(layers.RandomRotation(factor, **filling(step)))
        case steps.Translation(height=height, width=width):
            return of(layers.RandomTranslation(height, width, **filling(step)))
        case steps.Shear(x=x, y=y):
            return of(layers.RandomShear(x, y, **filling(step)))
        case steps.Zoom(factor=factor, stretch=stretch):
            return of(layers.RandomZoom(factor, factor if stretch else None, **filling(step)))
        case steps.Crop():
            return functools.partial(cropped, step)
        case steps.ColorJitter():
            return jitter(step, channels)
        case steps.Brightness(factor=factor):
            return of(layers.RandomBrightness(factor, **COLOR))
        case steps.Contrast(factor=factor):
            return contrast(factor)
        case steps.Erasing():
            return erasing(step)
        case steps.RandAugment():
            return augment_drawn.rand_augment(step, channels)
        case steps.AugMix():
            return augment_drawn.aug_mix(step)
    raise ValueError(f"no augmentation: {step!r}")


def _mix_up(step: steps.MixUp) -> _Mix:
    layer = keras.layers.MixUp(step.alpha, **PLAIN)

    def apply(pixels: tf.Tensor, targets: Targets, seeds: Seeds) -> tuple[tf.Tensor, Targets]:
        drawn = layer.get_random_transformation(pixels, training=True, seed=seeds)
        mixed = _some(pixels, step.probability, seeds)
        drawn["mix_weight"] = tf.where(mixed, drawn["mix_weight"], 1.0)
        return _blended(layer, pixels, targets, drawn)

    return apply


def _cut_mix(step: steps.CutMix) -> _Mix:
    layer = keras.layers.CutMix((step.alpha, step.alpha), **PLAIN)

    def apply(pixels: tf.Tensor, targets: Targets, seeds: Seeds) -> tuple[tf.Tensor, Targets]:
        drawn = layer.get_random_transformation(pixels, training=True, seed=seeds)
        mixed = _some(pixels, step.probability, seeds)
        masks = drawn["batch_masks"] & mixed[:, tf.newaxis, tf.newaxis, tf.newaxis]
        drawn["batch_masks"] = masks
        # Keras's own share is the area before its edges are rounded to pixels.
        drawn["mix_weight"] = 1.0 - tf.reduce_mean(tf.cast(masks, tf.float32), [1, 2, 3])
        return _blended(layer, pixels, targets, drawn)

    return apply


def _some(pixels: tf.Tensor, probability: float, seeds: Seeds) -> tf.Tensor:
    """Returns bool [batch]: which images a step with this probability is for."""
    return keras.random.uniform((tf.shape(pixels)[0],), seed=seeds) < probability


def _blended(
    layer: keras.layers.Layer, pixels: tf.Tensor, targets: Targets, drawn: Any
) -> tuple[tf.Tensor, Targets]:
    return layer.transform_images(pixels, drawn, training=True), {
        name: layer.transform_labels(target, drawn, training=True)
        for name, target in targets.items()
    }
