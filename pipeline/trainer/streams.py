"""Epochs that are decoded anew, where the images are not kept between them."""

from __future__ import annotations

from typing import Any, Final

import tensorflow as tf

from pipeline import heads
from pipeline.features import LABEL
from pipeline.records import unpacked
from pipeline.trainer import augment
from pipeline.trainer.feed import ENDLESS, Feed, epochs, plain

# Encoded records that an epoch without a cache mixes at a time.
SHUFFLE_BUFFER: Final = 10_000


def streamed(feed: Feed, first_epoch: int) -> tf.data.Dataset:
    """Yields epochs decoded anew, as `Batches.train` has them.

    Files come in an order from (seed, epoch), and their records mix within SHUFFLE_BUFFER.
    """
    source, layout, seed = feed.loaded.source, feed.layout, feed.train.seed

    @plain
    def epoch_of(epoch: tf.Tensor) -> tf.data.Dataset:
        records = _resampled(feed, epoch) if feed.train.oversample else _mixed(feed, epoch)
        return (
            records.take(feed.examples)
            .shuffle(
                min(SHUFFLE_BUFFER, feed.examples),
                seed=epoch + seed * 1_000_003,
                reshuffle_each_iteration=False,
            )
            .batch(layout.batch_size, drop_remainder=layout.whole)
            .enumerate()
            .map(plain(lambda step, serialized: (epoch, step, feed.share(serialized))))
        )

    @plain
    def element(epoch: tf.Tensor, step: tf.Tensor, serialized: tf.Tensor) -> tuple[Any, ...]:
        pixels, targets = known(*source.transform(serialized))
        return feed.element(epoch, step, pixels, unpacked(targets))

    return feed.mapped(epochs(first_epoch).flat_map(epoch_of), element)


def _mixed(feed: Feed, epoch: tf.Tensor) -> tf.data.Dataset:
    """Yields each serialized record once; with fewer images than there are, every epoch's same."""
    names = tf.constant(feed.loaded.fitted_on.names)
    rows = feed.loaded.fitted_on.examples
    if feed.examples < rows:
        step = rows // feed.examples
        records = tf.data.TFRecordDataset(names).shard(step, 0)
        return records.take(feed.examples)
    seed = tf.stack([tf.constant(feed.train.seed, tf.int64), epoch])
    mixed = tf.random.experimental.stateless_shuffle(names, seed=seed)
    files = tf.data.Dataset.from_tensor_slices(mixed)
    return files.interleave(tf.data.TFRecordDataset, cycle_length=4)


def _resampled(feed: Feed, epoch: tf.Tensor) -> tf.data.Dataset:
    """Yields records as often as their class is drawn, without end.

    A class that is to be drawn 2.5 times comes twice, and each of its records a third time with a
    chance of one half. So the length of a pass varies a little: the next one goes on, and an epoch
    takes as many as there are images.
    """
    spec = {LABEL: tf.io.FixedLenFeature([], tf.string)}
    classes = feed.loaded.source.heads[0].classes
    names = tf.constant([name.encode() for name in classes])

    @plain
    def one_pass(number: tf.Tensor) -> tf.data.Dataset:
        drawn = augment.key(feed.train.seed, epoch, number)

        @plain
        def copies(index: tf.Tensor, record: tf.Tensor) -> tf.data.Dataset:
            label = tf.io.parse_single_example(record, spec)[LABEL]
            mean = tf.reduce_sum(tf.where(tf.equal(names, label), feed.times, 0.0))
            chance = tf.random.stateless_uniform([], tf.random.fold_in(drawn, index))
            count = tf.cast(tf.floor(mean + chance), tf.int64)
            return tf.data.Dataset.from_tensors(record).repeat(count)

        return _mixed(feed, epoch).enumerate().flat_map(copies)

    return tf.data.Dataset.range(ENDLESS).flat_map(one_pass)


@plain
def known(pixels: tf.Tensor, targets: Any) -> tuple[tf.Tensor, Any]:
    """Fails for an image whose label is none of the classes."""
    message = "An image has a label that is none of the schema's classes."
    ids = unpacked(targets)[heads.LABEL]
    with tf.control_dependencies([tf.debugging.assert_non_negative(ids, message)]):
        return tf.identity(pixels), targets
