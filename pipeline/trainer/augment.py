"""Augmentation: the steps of train.augment on batches of training images, inside tf.data.

The work is that of Keras's preprocessing layers. Their random numbers come from elsewhere, though:
a layer's own generator is a variable that counts calls, which makes an epoch depend on how many
there were before it. Here each batch has a key made of (seed, epoch, step), so that an epoch looks
the same however training came to it.

Every step works on images from 0 (black) to 1 (white). Standardized images are brought there and
back; their range is that of black and white behind the transform graph.

Four things are put together here, because Keras 3.12 and 3.15 do them in a way that doesn't serve:
RandAugment gives a whole batch the same operations, and computes all of them; AugMix draws its
operations once, when the graph is traced; Equalization takes one histogram of the whole batch; and
RandomCrop cuts the same window from all images of a batch. The operations are Keras's layers again.
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

Targets = dict[str, tf.Tensor]
Op = Callable[[tf.Tensor, "Seeds"], tf.Tensor]
_Mix = Callable[[tf.Tensor, Targets, "Seeds"], tuple[tf.Tensor, Targets]]


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
            return _of(layers.RandomFlip(both if mode == "both" else mode, **_PLAIN))
        case steps.Rotation(factor=factor):
            return _of(layers.RandomRotation(factor, **_filling(step)))
        case steps.Translation(height=height, width=width):
            return _of(layers.RandomTranslation(height, width, **_filling(step)))
        case steps.Shear(x=x, y=y):
            return _of(layers.RandomShear(x, y, **_filling(step)))
        case steps.Zoom(factor=factor, stretch=stretch):
            return _of(layers.RandomZoom(factor, factor if stretch else None, **_filling(step)))
        case steps.Crop():
            return functools.partial(_cropped, step)
        case steps.ColorJitter():
            return _jitter(step, channels)
        case steps.Brightness(factor=factor):
            return _of(layers.RandomBrightness(factor, **_COLOR))
        case steps.Contrast(factor=factor):
            return _contrast(factor)
        case steps.Erasing():
            return _erasing(step)
        case steps.RandAugment():
            return _rand_augment(step, channels)
        case steps.AugMix():
            return _aug_mix(step)
    raise ValueError(f"no augmentation: {step!r}")


# Whatever precision the model works in, images are augmented in float32, and on the last axis are
# their channels.
_PLAIN: dict[str, Any] = {"dtype": "float32", "data_format": "channels_last"}
_COLOR: dict[str, Any] = {**_PLAIN, "value_range": (0.0, 1.0)}


def _filling(step: Any) -> dict[str, Any]:
    return {
        **_PLAIN,
        "fill_mode": step.fill_mode,
        "fill_value": step.fill_value,
        "interpolation": step.interpolation,
    }


def _of(layer: keras.layers.Layer) -> Op:
    """Returns a preprocessing layer as a function of images and seeds."""

    def apply(images: tf.Tensor, seeds: Seeds) -> tf.Tensor:
        drawn = layer.get_random_transformation(images, training=True, seed=seeds)
        return layer.transform_images(images, drawn, training=True)

    return apply


def _contrast(factor: float) -> Op:
    # A single number would only raise the contrast: Keras reads it as (0, factor).
    return _of(keras.layers.RandomContrast((factor, factor), **_COLOR))


def _jitter(step: steps.ColorJitter, channels: int) -> Op:
    """Brightness, contrast, saturation and hue, in the order of Keras's RandomColorJitter."""
    layers = keras.layers
    chain = []
    if step.brightness:
        chain.append(_of(layers.RandomBrightness(step.brightness, **_COLOR)))
    if step.contrast:
        chain.append(_contrast(step.contrast))
    if step.saturation and channels == 3:
        # Keras multiplies the saturation by f / (1 - f).
        less, more = 1 - step.saturation, 1 + step.saturation
        factor = (less / (1 + less), more / (1 + more))
        chain.append(_of(layers.RandomSaturation(factor, **_COLOR)))
    if step.hue and channels == 3:
        # Keras's unit is half of the circle.
        chain.append(_of(layers.RandomHue(2 * step.hue, **_COLOR)))

    def apply(images: tf.Tensor, seeds: Seeds) -> tf.Tensor:
        for one in chain:
            images = one(images, seeds)
        return images

    return apply


def _erasing(step: steps.Erasing) -> Op:
    # A single probability would be the upper end of a range that Keras draws from.
    layer = keras.layers.RandomErasing(
        factor=(step.probability, step.probability),
        scale=(step.smallest, step.largest),
        fill_value=step.fill_value,
        **_COLOR,
    )
    return _of(layer)


def _cropped(step: steps.Crop, images: tf.Tensor, seeds: Seeds) -> tf.Tensor:
    """Cuts another square from each image: one affine transformation for padding, cut and size."""
    batch, side = tf.shape(images)[0], images.shape[1]
    padding = round(step.padding * side)
    place = keras.random.uniform((batch, 2), seed=seeds)
    if step.smallest < 1:
        scale = keras.random.uniform((batch, 1), step.smallest, 1.0, seed=seeds)
        corner = place * (side * (1 - scale) + 2 * padding) - padding
    else:  # whole pixels, so that nothing is blurred
        scale = tf.ones((batch, 1))
        corner = tf.floor(place * (2 * padding + 1)) - padding
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


def _mix_up(step: steps.MixUp) -> _Mix:
    layer = keras.layers.MixUp(step.alpha, **_PLAIN)

    def apply(pixels: tf.Tensor, targets: Targets, seeds: Seeds) -> tuple[tf.Tensor, Targets]:
        drawn = layer.get_random_transformation(pixels, training=True, seed=seeds)
        mixed = _some(pixels, step.probability, seeds)
        drawn["mix_weight"] = tf.where(mixed, drawn["mix_weight"], 1.0)
        return _blended(layer, pixels, targets, drawn)

    return apply


def _cut_mix(step: steps.CutMix) -> _Mix:
    layer = keras.layers.CutMix((step.alpha, step.alpha), **_PLAIN)

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


def _rand_augment(step: steps.RandAugment, channels: int) -> Op:
    """Draws `ops` of the paper's 14 operations for each image (Cubuk et al. 2020)."""
    operations = [_unchanged, *_warping(step), *_coloring(step.strength, channels)]

    def apply(images: tf.Tensor, seeds: Seeds) -> tf.Tensor:
        for _ in range(step.ops):
            images = _drawn(operations, images, seeds)
        return images

    return apply


def _aug_mix(step: steps.AugMix) -> Op:
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
    layers, strength, filling = keras.layers, step.strength, _filling(step)
    return [
        _of(layers.RandomRotation(strength / 12, **filling)),
        _of(layers.RandomShear(0.3 * strength, 0.0, **filling)),
        _of(layers.RandomShear(0.0, 0.3 * strength, **filling)),
        _of(layers.RandomTranslation(0.3 * strength, 0.0, **filling)),
        _of(layers.RandomTranslation(0.0, 0.3 * strength, **filling)),
    ]


def _recoding(strength: float) -> list[Op]:
    """What redraws the levels: at strength 1 down to 4 bits, inverted from any level on."""
    fewest = 8 - round(4 * strength)
    return [
        _of(keras.layers.AutoContrast(**_COLOR)),
        _equalized,
        # Keras draws whole numbers below the upper end.
        _of(keras.layers.RandomPosterization((fewest, 9), **_COLOR)),
        functools.partial(_solarized, 1 - strength),
    ]


def _coloring(strength: float, channels: int) -> list[Op]:
    layers, spread = keras.layers, 0.45 * strength
    more = [
        *_recoding(strength),
        _of(layers.RandomBrightness(spread, **_COLOR)),
        _contrast(2 * spread),
        # Keras's 0.5 leaves an image as it is.
        _of(layers.RandomSharpness((0.5 - spread, 0.5 + spread), **_COLOR)),
    ]
    if channels == 3:
        more.append(_of(layers.RandomColorDegeneration((0.0, 2 * spread), **_COLOR)))
    return more


def _solarized(lowest: float, images: tf.Tensor, seeds: Seeds) -> tf.Tensor:
    """Inverts what is above a threshold. Keras's layer draws a lower one the weaker it is set."""
    shape = (tf.shape(images)[0], 1, 1, 1)
    threshold = keras.random.uniform(shape, lowest, 1.0, seed=seeds)
    return tf.where(images < threshold, images, 1.0 - images)


def _equalized(images: tf.Tensor, seeds: Seeds) -> tf.Tensor:
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
