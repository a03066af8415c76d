"""The transform graph: encoded bytes to pixels, class names to ids.

TensorFlow Transform traces `preprocessing_fn` once. The graph is applied in tf.data when training,
by TFMA when evaluating, and inside the serving signature; there is no second preprocessing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

from pipeline.config import Transform
from pipeline.decode import Resize, decode_and_resize
from pipeline.features import CHANNEL_FACTS, IMAGE, LABEL, LABEL_ID, PIXELS
from pipeline.heads import Head

# Data of one even colour has no variance to divide by. One level of 255 is the finest difference
# that a pixel can show.
_SMALLEST_DEVIATION = 1 / 255


def preprocessing_fn(
    inputs: Mapping[str, Any],
    custom_config: Mapping[str, Any],
    classes: Sequence[str],
    heads: Sequence[Head] = (),
) -> dict[str, tf.Tensor]:
    """Builds the transform graph.

    Args:
      inputs: `image` and `label`, string [batch]; for `standard` also the recorded facts; the
        features of the heads, string or float32 [batch].
      custom_config: `transform` holds the resolved config.Transform.
      classes: in the order of their ids; the executor takes them from the schema.
      heads: those beside the label, with their classes.

    Returns:
      `pixels`, float32 [batch, size, size, channels], and `label_id`, int64 [batch], -1 for a
      label that is not among the classes. By the name of its `target`, what each head learns:
      int64 [batch] like `label_id`, or float32 [batch].

    Raises:
      tf.errors.InvalidArgumentError: (when applied) an image can't be decoded, or is too large.
    """
    options = Transform.model_validate(custom_config["transform"])
    size, channels = options.image_size, options.channels
    if size is None or channels is None:
        raise ValueError(f"transform.image_size and .channels must be resolved, got {options!r}")
    pixels = _decoder(size, channels, options.resize, options.max_pixels)(inputs[IMAGE])
    if options.normalize == "standard":
        mean, deviation = channel_moments(inputs, channels)
        pixels = (pixels - mean) / deviation
    targets = {
        head.target: (
            label_ids(inputs[head.feature], head.classes)
            if head.kind == "class"
            # Something of the graph's own: TensorFlow Transform takes no input for an output.
            else tf.identity(inputs[head.feature])
        )
        for head in heads
    }
    return {PIXELS: pixels, LABEL_ID: label_ids(inputs[LABEL], classes), **targets}


@functools.cache
def _decoder(
    size: int, channels: int, resize: Resize, max_pixels: int
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns decode_and_resize as a function of the images (string [batch]), traced once.

    TensorFlow Transform traces preprocessing_fn three to nine times; decoding is nearly all of it.
    """

    def decode(images: tf.Tensor) -> tf.Tensor:
        return decode_and_resize(
            images, image_size=size, channels=channels, resize=resize, max_pixels=max_pixels
        )

    return tf.function(decode, [tf.TensorSpec([None], tf.string)], autograph=False)


def label_ids(label: tf.Tensor, classes: Sequence[str]) -> tf.Tensor:
    """Returns int64 [batch]: the positions of `label` (string [batch]) in `classes`, else -1.

    A binary search among the classes' hashes, then one comparison of the names. A lookup table
    would do, but it has state: TensorFlow Transform feeds whatever has state when it analyzes, and
    would read all of train on Beam for it.

    Raises:
      ValueError: two classes have one 63-bit hash, or one name.
    """
    names = np.array([name.encode() for name in classes], object)
    with tf.init_scope():
        hashes = _hashed(tf.constant(names)).numpy()
    order = np.argsort(hashes, kind="stable")
    if len(set(hashes.tolist())) < len(names):
        raise ValueError("two of the classes can't be told apart; rename one")
    nearest = tf.searchsorted(tf.constant(hashes[order]), _hashed(label))
    candidate = tf.gather(order.astype(np.int64), tf.minimum(nearest, len(names) - 1))
    return tf.where(tf.equal(tf.gather(names, candidate), label), candidate, -1)


def _hashed(text: tf.Tensor) -> tf.Tensor:
    """Returns int64, FarmHash's fingerprint: the same on every machine and in every version."""
    return tf.strings.to_hash_bucket_fast(text, 2**63 - 1)


def channel_moments(inputs: Mapping[str, Any], channels: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns mean and standard deviation of train's pixels, float32 [channels] each.

    Worked out from the facts that ingest recorded, in one cheap pass that decodes nothing. Each
    image counts once, whatever its size: they are all resized to as many pixels. So the mean is the
    mean of the images' means, and the variance is pooled: the mean of the variances within images
    plus the variance of the means between them. (Shrinking smooths an image, so that the variance
    of what the network sees is a little smaller; the black bars of `pad` aren't counted.)

    Args:
      inputs: `channel_mean` and `channel_std` (sparse float32 [batch, 1 or 3]), `brightness` and
        `contrast` (float32 [batch], the moments of the luma).
      channels: 1 or 3; for 1 the luma's moments are taken.
    """
    if channels == 1:
        means, deviations = (inputs[name][:, tf.newaxis] for name in ("brightness", "contrast"))
    else:
        means, deviations = (_three(inputs[name]) for name in CHANNEL_FACTS)
    mean = tft.mean(means, reduce_instance_dims=False)
    within = tft.mean(tf.square(deviations), reduce_instance_dims=False)
    between = tft.var(means, reduce_instance_dims=False)
    deviation = tf.maximum(tf.sqrt(within + between), _SMALLEST_DEVIATION)
    return tf.ensure_shape(mean, (channels,)), tf.ensure_shape(deviation, (channels,))


def _three(values: tf.SparseTensor) -> tf.Tensor:
    """Returns float32 [batch, 3] of one or three values a row; a grey image's counts for each."""
    dense = tf.sparse.to_dense(values)
    dense = tf.pad(dense, [[0, 0], [0, 3]])[:, :3]
    ones = tf.ones_like(values.values, tf.int64)
    count = tf.math.unsorted_segment_sum(ones, values.indices[:, 0], values.dense_shape[0])
    three = tf.where(tf.equal(count, 1)[:, tf.newaxis], dense[:, :1], dense)
    return tf.ensure_shape(three, (None, 3))


def serving_pixels(
    transform_layer: Callable[[Mapping[str, tf.Tensor]], Mapping[str, tf.Tensor]],
    image: tf.Tensor,
) -> tf.Tensor:
    """Returns the pixels of encoded images: what a serving signature calls.

    Args:
      transform_layer: `tft.TFTransformOutput(dir).transform_features_layer()`; keep it as an
        attribute of the tf.Module that is saved.
      image: string [batch], encoded files. No label and no facts are needed: the layer drops what
        depends on features that it isn't given.

    Returns:
      float32 [batch, size, size, channels].
    """
    return transform_layer({IMAGE: image})[PIXELS]
