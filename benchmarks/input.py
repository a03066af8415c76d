"""What feeding costs: a training step on real data against one on a batch that never changes.

    python -m benchmarks.input DATA [--steps 200] [--augment flip crop]
    python -m benchmarks.input --policy [--side 96]

DATA has train/<class>/ (CIFAR-10 as JPEGs, say). The network is S2 (`cifar10-cnn`) at 32x32, with
128 images a step. The ways of feeding take turns, round after round, so that a machine that gets
slower or faster meanwhile favours none: one batch kept by tf.data and repeated, the images kept in
memory, those augmented, and what `image_dataset_from_directory(...).cache()` gives, shuffled as in
benchmarks/plain_keras.py. Each turn begins with a fresh iterator and a few steps that don't count.

With --policy: what each augmentation costs by itself, in processor time.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import cast

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["TF_USE_LEGACY_KERAS"] = "0"

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from pipeline import heads, models
from pipeline.config import Train, augmentation
from pipeline.features import EVAL, TRAIN
from pipeline.heads import Head
from pipeline.trainer import augment, data, fitting

SIDE, BATCH, ROUNDS, WARM_UP, RUNS = 32, 128, 5, 4, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--steps", type=int, default=200, help="of each way, over all rounds")
    parser.add_argument("--augment", nargs="*", default=["flip", "crop"])
    parser.add_argument("--policy", action="store_true", help="what each augmentation costs")
    parser.add_argument("--side", type=int, default=SIDE, help="of the images, with --policy")
    arguments = parser.parse_args()
    if arguments.policy:
        Console(width=100).print(costs(arguments.side))
        return
    if arguments.data is None:
        sys.exit("Give DATA, a folder with train/<class>/, or --policy.")
    classes, ways = feeds(arguments.data, arguments.augment)
    Console(width=100).print(compared(measured(classes, ways, arguments.steps), arguments.augment))


def feeds(folder: Path, policy: list[str]) -> tuple[list[str], dict[str, tf.data.Dataset]]:
    """Returns the classes, and endless batches of pixels and class ids by the way they come."""
    plain = keras.utils.image_dataset_from_directory(
        folder / "train", image_size=(SIDE, SIDE), batch_size=BATCH
    )
    classes = plain.class_names
    scaled = plain.map(lambda pixels, label: (pixels / 255.0, tf.cast(label, tf.int64))).cache()
    pixels, ids = zip(*scaled.as_numpy_iterator(), strict=True)
    kept = data.Kept(np.concatenate(pixels), {heads.LABEL: np.concatenate(ids)})
    return classes, {
        "one batch": tf.data.Dataset.from_tensors((pixels[0], ids[0])).cache().repeat(),
        "kept": of_safelight(kept, classes, []),
        "kept, augmented": of_safelight(kept, classes, policy),
        "plain .cache()": scaled.shuffle(1000).repeat().prefetch(2),
    }


def of_safelight(kept: data.Kept, classes: list[str], policy: list[str]) -> tf.data.Dataset:
    """Returns the batches that training takes."""
    records = data.Records((), len(kept.pixels), "")
    source = cast(data.Input, Source(classes))
    loaded = data.Loaded(source, records, records, {TRAIN: kept, EVAL: kept})
    return data.batches_of(loaded, Train(batch_size=BATCH, augment=tuple(policy))).train


class Source:
    """Stands for the transform graph, whose work is done: what is asked of it from then on."""

    def __init__(self, classes: list[str]) -> None:
        self.heads = (Head(name=heads.LABEL, kind="class", classes=tuple(classes)),)
        self.shape = (SIDE, SIDE, 3)

    def value_range(self) -> None:
        """Says that pixels go from 0 to 1."""


def measured(
    classes: list[str], ways: dict[str, tf.data.Dataset], steps: int
) -> dict[str, list[float]]:
    """Returns the seconds of a step, one a round, for each way."""
    train = Train(preset="cifar10-cnn", epochs=1, batch_size=BATCH)
    label = Head(name=heads.LABEL, kind="class", classes=tuple(classes))
    model = models.build(train, image_size=SIDE, channels=3, heads=[label])
    fitting.compile_model(model, train, [label], 1)
    model.make_train_function()
    step = model.train_function
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    turn = max(1, steps // ROUNDS)
    for _ in range(ROUNDS):
        for name, batches in ways.items():
            iterator = iter(batches)
            for _ in range(WARM_UP):
                step(iterator)
            began = time.monotonic()
            for _ in range(turn):
                step(iterator)
            seconds[name].append((time.monotonic() - began) / turn)
    return seconds


def compared(seconds: dict[str, list[float]], policy: list[str]) -> Table:
    """Returns the steps' times, and each against the same round's on one batch."""
    table = Table(
        "fed by", "ms a step", "images/s", "against one batch", title=f"S2, {BATCH} images a step"
    )
    for name, rounds in seconds.items():
        middle = float(np.median(rounds))
        ratio = float(np.median(np.divide(rounds, seconds["one batch"])))
        told = f"{name}: {' '.join(policy)}" if name.endswith("augmented") else name
        table.add_row(told, f"{middle * 1e3:.1f}", f"{BATCH / middle:.0f}", f"{ratio:.3f}")
    table.caption = "Limit: kept, at most 1.06 on the CPU. Medians of the rounds."
    return table


def costs(side: int) -> Table:
    """Returns the processor time of each augmentation, with its default options."""
    pixels = np.random.default_rng(0).random((BATCH, side, side, 3), np.float32)
    table = Table("augmentation", "us an image", title=f"{side}x{side}x3, {BATCH} at a time")
    for name in augmentation.STEPS:
        policy = augment.Policy([augmentation.read(name)], {heads.LABEL: 10})
        run = tf.function(policy, autograph=False)
        fixed = (tf.constant(pixels), {heads.LABEL: tf.zeros([BATCH], tf.int64)})
        run(*fixed, augment.key(0, 0, 0))
        began = time.process_time()
        for number in range(RUNS):
            run(*fixed, augment.key(0, 0, number))
        table.add_row(name, f"{(time.process_time() - began) / RUNS / BATCH * 1e6:.0f}")
    return table


if __name__ == "__main__":
    main()
