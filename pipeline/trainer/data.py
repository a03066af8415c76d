"""Batches for Keras: kept rows or decoded records, shuffled, augmented, weighted, in shares.

    loaded = load(source, fitted_on, held_out, train.cache, disk)
    batches = batches_of(loaded, train, first_epoch=0)

An epoch's order depends on (seed, epoch) alone, and a batch's augmentation on (seed, epoch, step).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from pipeline import events
from pipeline.config import Train
from pipeline.features import EVAL, TRAIN
from pipeline.records import (
    DECODE_BATCH,
    Input,
    Records,
    packed,
    sample_images,
    scan,
    unpacked,
)
from pipeline.trainer import sampling, streams
from pipeline.trainer.cache import Kept, Place, bytes_kept, choose_place, keep
from pipeline.trainer.feed import Feed, Layout, Loaded, epochs, plain

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
    feed = Feed(loaded, train, layout, examples)
    if loaded.kept is None:
        fitted = streams.streamed(feed, first_epoch)
    else:
        fitted = _shuffled(feed, loaded.kept[TRAIN].thinned(examples), first_epoch)
    evaluated = held_out(loaded, layout)
    return Batches(fitted, evaluated, examples, layout.batch_size, layout.whole)


def _shuffled(feed: Feed, kept: Kept, first_epoch: int) -> tf.data.Dataset:
    """Yields epochs from kept rows, each in an order from (seed, epoch)."""
    size, train = feed.layout.batch_size, feed.train
    steps = Batches(None, None, feed.examples, size, feed.layout.whole).steps

    def ordered(epoch: np.int64) -> npt.NDArray[np.int64]:
        return sampling.order(kept.label_ids, train.oversample, train.seed, int(epoch))

    @plain
    def epoch_of(epoch: tf.Tensor) -> tf.data.Dataset:
        rows = tf.ensure_shape(tf.numpy_function(ordered, [epoch], tf.int64), (feed.examples,))

        @plain
        def batch(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            return epoch, step, feed.share(rows[step * size : (step + 1) * size])

        return tf.data.Dataset.range(steps).map(batch)

    @plain
    def element(epoch: tf.Tensor, step: tf.Tensor, rows: tf.Tensor) -> tuple[Any, ...]:
        return feed.element(epoch, step, *_gathered(kept, rows))

    return feed.mapped(epochs(first_epoch).flat_map(epoch_of), element)


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


def held_out(loaded: Loaded, layout: Layout) -> tf.data.Dataset:
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

    @plain
    def element(pixels: tf.Tensor, targets: Any) -> tuple[tf.Tensor, Any]:
        shaped = {name: tf.ensure_shape(t, (static,)) for name, t in unpacked(targets).items()}
        return tf.ensure_shape(pixels, (static, *loaded.source.shape)), packed(shaped)

    if loaded.kept is None:
        serialized = tf.data.TFRecordDataset(loaded.held_out.names)
        records = serialized.batch(size, drop_remainder=layout.whole)
        batches = loaded.source.mapped(records).map(streams.known)
    else:
        kept = loaded.kept[EVAL]
        numbers = tf.data.Dataset.range(rows).batch(size, drop_remainder=layout.whole)
        gather = plain(functools.partial(_gathered, kept))
        batches = numbers.map(gather, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return batches.map(element).prefetch(tf.data.AUTOTUNE)


def _even_batch(rows: int, multiple: int) -> int:
    """Returns the size of at most DECODE_BATCH, or `multiple`, that leaves out the fewest rows."""
    most = max(DECODE_BATCH // multiple, 1) * multiple
    batches = -(-rows // most)
    return max(rows // batches // multiple * multiple, min(multiple, rows))
