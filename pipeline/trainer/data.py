"""Batches for Keras: kept rows or decoded records, shuffled, augmented, weighted, in shares.

    loaded = load(source, fitted_on, held_out, train.cache, disk)
    batches = batches_of(loaded, train, first_epoch=0)

An epoch's order depends on (seed, epoch) alone, and a batch's augmentation on (seed, epoch, step).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from pipeline import events, heads
from pipeline.config import Train
from pipeline.features import EVAL, LABEL, TRAIN
from pipeline.records import (
    DECODE_BATCH,
    Input,
    Records,
    packed,
    sample_images,
    scan,
    unpacked,
)
from pipeline.trainer import augment, imbalance, sampling
from pipeline.trainer.cache import Kept, Place, bytes_kept, choose_place, keep

__all__ = [
    "DECODE_BATCH",
    "Batches",
    "Input",
    "Kept",
    "Layout",
    "Loaded",
    "Place",
    "Records",
    "batches_of",
    "bytes_kept",
    "choose_place",
    "keep",
    "load",
    "sample_images",
    "scan",
    "unpacked",
]

# Encoded records that an epoch without a cache mixes at a time.
SHUFFLE_BUFFER: Final = 10_000

# AutoGraph would rewrite Keras's sources, and ours, for loops and branches that aren't there.
_plain = tf.autograph.experimental.do_not_convert

_ENDLESS: Final = np.iinfo(np.int64).max


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How batches are cut for the devices.

    Attributes:
      batch_size: images of a step, on all devices together.
      worker: this process, of `workers` that each read their rows of every batch.
      workers: see there.
      whole: whether every batch has the same number of rows, and a static shape. An epoch then
        leaves out the rows that don't fill one: others each time.
      multiple: what the batches of eval have to be a multiple of; only with `whole`.
    """

    batch_size: int
    worker: int = 0
    workers: int = 1
    whole: bool = False
    multiple: int = 1


@dataclass(frozen=True)
class Batches:
    """What is fitted on.

    Attributes:
      train: epoch after epoch without end. Elements are pixels (float32 [batch, side, side,
        channels]), targets and, where train.class_weights is on, weights (float32 [batch]). With
        one head the targets are int64 [batch], or shares (float32 [batch, classes]) where
        train.augment mixes labels; with several they are a dict by the head's name.
      held_out: eval once: pixels and targets.
      examples: images of an epoch.
      batch_size: images of a step, on all devices together.
      whole: whether an epoch leaves out what doesn't fill a batch.
    """

    train: tf.data.Dataset
    held_out: tf.data.Dataset
    examples: int
    batch_size: int
    whole: bool = False

    @property
    def steps(self) -> int:
        """Returns the batches of an epoch; a smaller last one counts, unless it is left out."""
        full, rest = divmod(self.examples, self.batch_size)
        return full + (1 if rest and not self.whole else 0)


@dataclass(frozen=True)
class Loaded:
    """The splits train and eval, for any number of `batches_of`.

    `kept` has them behind the transform graph, by name; without it they are decoded again.
    """

    source: Input
    fitted_on: Records
    held_out: Records
    kept: dict[str, Kept] | None

    @functools.cached_property
    def label_ids(self) -> npt.NDArray[np.int64]:
        """The labels of train in the order of the files, int64 [examples]."""
        if self.kept is not None:
            return self.kept[TRAIN].label_ids
        return self.source.label_ids(self.fitted_on)


def load(
    source: Input,
    fitted_on: Records,
    held_out: Records,
    cache: Literal["auto", "memory", "disk", "off"],
    disk: Path,
) -> Loaded:
    """Puts both splits through the transform graph and keeps them, where there is room.

    Args:
      source: the transform graph.
      fitted_on: the split train.
      held_out: the split eval.
      cache: train.cache.
      disk: a directory for a file that is never seen there.

    Raises:
      ConfigError: they do not fit where train.cache wants them.
      DataRefused: an example's label is none of the classes.
    """
    disk.mkdir(parents=True, exist_ok=True)
    place = choose_place(cache, bytes_kept(source, fitted_on, held_out), disk)
    kept = None
    if place != "off":
        kept = keep(source, {TRAIN: fitted_on, EVAL: held_out}, place, disk)
    return Loaded(source, fitted_on, held_out, kept)


def batches_of(
    loaded: Loaded,
    train: Train,
    *,
    layout: Layout | None = None,
    first_epoch: int = 0,
    images: int = 0,
) -> Batches:
    """Returns the batches that the configuration asks for.

    Args:
      loaded: the splits.
      train: the configuration; `layout` or its batch size have to be there.
      layout: for several devices or processes.
      first_epoch: the epochs that are already done.
      images: take this many of train, evenly spread; 0 takes all.

    Raises:
      ConfigError: train.class_weights names a class that there isn't.
    """
    if layout is None:
        assert train.batch_size
        layout = Layout(batch_size=train.batch_size)
    examples = min(images or loaded.fitted_on.examples, loaded.fitted_on.examples)
    feed = _Feed(loaded, train, layout, examples)
    if loaded.kept is None:
        fitted = _streamed(feed, first_epoch)
    else:
        fitted = _shuffled(feed, loaded.kept[TRAIN].thinned(examples), first_epoch)
    held_out = _held_out(loaded, layout)
    return Batches(fitted, held_out, examples, layout.batch_size, layout.whole)


class _Feed:
    """What each training batch goes through behind its rows: augmentation, weights, its shape."""

    def __init__(self, loaded: Loaded, train: Train, layout: Layout, examples: int) -> None:
        self.loaded, self.train, self.layout, self.examples = loaded, train, layout, examples
        answers = loaded.source.heads
        labels = answers[0].classes
        self.weights: npt.NDArray[np.float32] | None = None
        self.times = np.ones(len(labels), np.float32)
        if train.class_weights != "none" or train.oversample:
            counts = np.bincount(loaded.label_ids, minlength=len(labels))
            self.weights = imbalance.class_weights(train, labels, counts)
            wanted = sampling.expected(counts, train.oversample)
            self.times = (wanted / np.maximum(counts, 1)).astype(np.float32)
        self.policy: augment.Policy | None = None
        if train.augment:
            classes = {head.name: len(head.classes) for head in answers if head.kind == "class"}
            value_range = loaded.source.value_range()
            self.policy = augment.Policy(
                train.augment, classes, value_range, loaded.source.shape[-1]
            )

    @property
    def local_rows(self) -> int | None:
        """The rows of this process's batches, if they are all the same."""
        layout = self.layout
        return layout.batch_size // layout.workers if layout.whole else None

    def share(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns this process's of a whole batch's rows or records."""
        return rows[self.layout.worker :: self.layout.workers]

    def element(
        self, epoch: tf.Tensor, step: tf.Tensor, pixels: tf.Tensor, targets: dict[str, Any]
    ) -> tuple[Any, ...]:
        """Returns a batch as Keras takes it."""
        pixels = tf.ensure_shape(pixels, (self.local_rows, *self.loaded.source.shape))
        targets = {name: tf.ensure_shape(t, (self.local_rows,)) for name, t in targets.items()}
        if self.policy is not None:
            key = augment.key(self.train.seed, epoch, step, self.layout.worker)
            pixels, targets = self.policy(pixels, targets, key)
        if self.weights is None:
            return pixels, packed(targets)
        weights = imbalance.sample_weights(targets[heads.LABEL], self.weights)
        return pixels, packed(targets), weights if len(targets) == 1 else {heads.LABEL: weights}

    def mapped(self, batches: tf.data.Dataset, element: Any) -> tf.data.Dataset:
        """Applies a function to batches, several at a time, in their order."""
        parallel = batches.map(element, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return parallel.prefetch(tf.data.AUTOTUNE)


def _shuffled(feed: _Feed, kept: Kept, first_epoch: int) -> tf.data.Dataset:
    """Yields epochs from kept rows, each in an order from (seed, epoch)."""
    size, train = feed.layout.batch_size, feed.train
    steps = Batches(None, None, feed.examples, size, feed.layout.whole).steps

    def ordered(epoch: np.int64) -> npt.NDArray[np.int64]:
        return sampling.order(kept.label_ids, train.oversample, train.seed, int(epoch))

    @_plain
    def epoch_of(epoch: tf.Tensor) -> tf.data.Dataset:
        rows = tf.ensure_shape(tf.numpy_function(ordered, [epoch], tf.int64), (feed.examples,))

        @_plain
        def batch(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            return epoch, step, feed.share(rows[step * size : (step + 1) * size])

        return tf.data.Dataset.range(steps).map(batch)

    @_plain
    def element(epoch: tf.Tensor, step: tf.Tensor, rows: tf.Tensor) -> tuple[Any, ...]:
        return feed.element(epoch, step, *_gathered(kept, rows))

    return feed.mapped(_epochs(first_epoch).flat_map(epoch_of), element)


def _gathered(kept: Kept, rows: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Returns these rows (int64 [batch]) of the pixels and of each head's targets.

    By NumPy: to TensorFlow the array would be a constant of the graph, and copied.
    """
    names = list(kept.targets)
    kinds = [tf.float32, *(tf.as_dtype(kept.targets[name].dtype) for name in names)]

    def gather(numbers: npt.NDArray[np.int64]) -> list[npt.NDArray[Any]]:
        return [kept.pixels[numbers], *(kept.targets[name][numbers] for name in names)]

    pixels, *targets = tf.numpy_function(gather, [rows], kinds)
    shape = (None, *kept.pixels.shape[1:])
    shaped = {name: tf.ensure_shape(t, (None,)) for name, t in zip(names, targets, strict=True)}
    return tf.ensure_shape(pixels, shape), shaped


def _held_out(loaded: Loaded, layout: Layout) -> tf.data.Dataset:
    """Yields each row of eval once, in the order of the files.

    Whole batches leave out a few rows: fewer than there are batches, or than fill a multiple.
    """
    rows = loaded.held_out.examples
    size = DECODE_BATCH
    if layout.whole:
        size = _even_batch(rows, layout.multiple)
        if rows % size:
            events.note(f"Eval leaves out {rows % size} of {rows} images: its batches are whole.")
    static = size if layout.whole else None

    @_plain
    def element(pixels: tf.Tensor, targets: Any) -> tuple[tf.Tensor, Any]:
        shaped = {name: tf.ensure_shape(t, (static,)) for name, t in unpacked(targets).items()}
        return tf.ensure_shape(pixels, (static, *loaded.source.shape)), packed(shaped)

    if loaded.kept is None:
        serialized = tf.data.TFRecordDataset(loaded.held_out.names)
        records = serialized.batch(size, drop_remainder=layout.whole)
        batches = loaded.source.mapped(records).map(_known)
    else:
        kept = loaded.kept[EVAL]
        numbers = tf.data.Dataset.range(rows).batch(size, drop_remainder=layout.whole)
        gather = _plain(functools.partial(_gathered, kept))
        batches = numbers.map(gather, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return batches.map(element).prefetch(tf.data.AUTOTUNE)


def _even_batch(rows: int, multiple: int) -> int:
    """Returns the size of at most DECODE_BATCH, or `multiple`, that leaves out the fewest rows."""
    most = max(DECODE_BATCH // multiple, 1) * multiple
    batches = -(-rows // most)
    return max(rows // batches // multiple * multiple, min(multiple, rows))


def _streamed(feed: _Feed, first_epoch: int) -> tf.data.Dataset:
    """Yields epochs decoded anew.

    Files come in an order from (seed, epoch), and their records mix within SHUFFLE_BUFFER.
    """
    source, layout, seed = feed.loaded.source, feed.layout, feed.train.seed

    @_plain
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
            .map(_plain(lambda step, serialized: (epoch, step, feed.share(serialized))))
        )

    @_plain
    def element(epoch: tf.Tensor, step: tf.Tensor, serialized: tf.Tensor) -> tuple[Any, ...]:
        pixels, targets = _known(*source.transform(serialized))
        return feed.element(epoch, step, pixels, unpacked(targets))

    return feed.mapped(_epochs(first_epoch).flat_map(epoch_of), element)


def _mixed(feed: _Feed, epoch: tf.Tensor) -> tf.data.Dataset:
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


def _resampled(feed: _Feed, epoch: tf.Tensor) -> tf.data.Dataset:
    """Yields records as often as their class is drawn, without end.

    A class that is to be drawn 2.5 times comes twice, and each of its records a third time with a
    chance of one half. So the length of a pass varies a little: the next one goes on, and an epoch
    takes as many as there are images.
    """
    spec = {LABEL: tf.io.FixedLenFeature([], tf.string)}
    classes = feed.loaded.source.heads[0].classes
    names = tf.constant([name.encode() for name in classes])

    @_plain
    def one_pass(number: tf.Tensor) -> tf.data.Dataset:
        drawn = augment.key(feed.train.seed, epoch, number)

        @_plain
        def copies(index: tf.Tensor, record: tf.Tensor) -> tf.data.Dataset:
            label = tf.io.parse_single_example(record, spec)[LABEL]
            mean = tf.reduce_sum(tf.where(tf.equal(names, label), feed.times, 0.0))
            chance = tf.random.stateless_uniform([], tf.random.fold_in(drawn, index))
            count = tf.cast(tf.floor(mean + chance), tf.int64)
            return tf.data.Dataset.from_tensors(record).repeat(count)

        return _mixed(feed, epoch).enumerate().flat_map(copies)

    return tf.data.Dataset.range(_ENDLESS).flat_map(one_pass)


@_plain
def _known(pixels: tf.Tensor, targets: Any) -> tuple[tf.Tensor, Any]:
    """Fails for an image whose label is none of the classes."""
    message = "An image has a label that is none of the schema's classes."
    ids = unpacked(targets)[heads.LABEL]
    with tf.control_dependencies([tf.debugging.assert_non_negative(ids, message)]):
        return tf.identity(pixels), targets


def _epochs(first: int) -> tf.data.Dataset:
    return tf.data.Dataset.range(first, _ENDLESS)
