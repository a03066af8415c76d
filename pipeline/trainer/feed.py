"""What batches are made with: the splits, how they are cut, and what a batch goes through."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from pipeline import heads
from pipeline.config import Train
from pipeline.features import TRAIN
from pipeline.records import Input, Records, packed
from pipeline.trainer import augment, imbalance, sampling
from pipeline.trainer.cache import Kept

# AutoGraph would rewrite Keras's sources, and ours, for loops and branches that aren't there.
plain = tf.autograph.experimental.do_not_convert

ENDLESS: Final = np.iinfo(np.int64).max


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


class Feed:
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
        if len(targets) == 1:
            return pixels, packed(targets), weights
        # Keras wants weights for each target where it gets some; classes are the label's.
        of_each = {name: tf.ones_like(weights) for name in targets} | {heads.LABEL: weights}
        return pixels, packed(targets), of_each

    def mapped(self, batches: tf.data.Dataset, element: Any) -> tf.data.Dataset:
        """Applies a function to batches, several at a time, in their order."""
        parallel = batches.map(element, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return parallel.prefetch(tf.data.AUTOTUNE)


def epochs(first: int) -> tf.data.Dataset:
    """Yields the numbers of epochs, int64 [], without end."""
    return tf.data.Dataset.range(first, ENDLESS)
