"""Healthy models, and sabotaged ones: each a whole export, written by the pipeline's own code."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from benchmarks.sabotage.data import Base
from pipeline import export, model_json, records
from pipeline.config import Calibration, Train
from pipeline.export import Facts
from pipeline.features import CALIB, EVAL, PIXELS, TRAIN
from pipeline.records import Input
from pipeline.trainer import train_child, training
from pipeline.trainer.train import Job

_STEPS = 12  # of the bisection: finer than an image of eval
SERVING = "Format-Serving"

Weights = Sequence[npt.NDArray[np.float32]]


def job(base: Base, folder: Path, train: Train, examples: Path | None = None) -> Job:
    """Returns the training job of a model in `folder`, on the base's examples or on others."""
    source = examples or base.examples

    def files(split: str) -> tuple[str, ...]:
        return (str(source / f"Split-{split}" / "*"),)

    return Job(
        train_files=files(TRAIN),
        eval_files=files(EVAL),
        calib_files=files(CALIB),
        calibration=Calibration(method="temperature"),
        transform_graph=base.transform_graph,
        schema_path=base.schema / "schema.pbtxt",
        model_dir=folder / SERVING,
        run_dir=folder / "model_run",
        checkpoints=folder / "checkpoints",
        train=train,
        transform=base.transform,
        code="",
        events=None,
        parent=os.getpid(),
    )


def fit(base: Base, folder: Path, train: Train, examples: Path | None = None) -> None:
    """Trains a model as Trainer's child does, and exports it to `folder`/Format-Serving."""
    asked = job(base, folder, train, examples)
    asked.run_dir.mkdir(parents=True)
    train_child.run(asked)


class Mishandled(Input):
    """The transform graph with pixels that are mishandled behind it, in every signature."""

    def __init__(self, base: Base, how: str) -> None:
        """Opens the graph; `how` is `scale`, `inverted` or `channels`."""
        assert base.transform.image_size
        assert base.transform.channels
        super().__init__(base.transform_graph, base.transform.image_size, base.transform.channels)
        self._how = how

    def apply(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        out = super().apply(inputs)
        pixels = out[PIXELS]
        changed = {
            "scale": pixels * 255.0,  # never divided
            "inverted": 1.0 - pixels,
            "channels": tf.reverse(pixels, axis=[3]),  # BGR
        }
        return {**out, PIXELS: changed[self._how]}


def mishandle(base: Base, healthy: Path, target: Path, how: str) -> None:
    """Exports a healthy model behind a preprocessing that it was not trained behind."""
    model = export.load_weights(healthy / SERVING)
    _write(base, model, Mishandled(base, how), _facts(healthy), target)


def permute(base: Base, healthy: Path, target: Path) -> None:
    """Exports a healthy model with its class names moved on by one."""
    facts = _facts(healthy)
    names = (*facts.classes[1:], facts.classes[0])
    model = export.load_weights(healthy / SERVING)
    _write(base, model, _source(base), replace(facts, classes=names), target)


def two_bits(base: Base, healthy: Path, target: Path) -> None:
    """Exports a healthy model with each kernel rounded to four levels, in all its files."""
    model = export.load_weights(healthy / SERVING)
    model.set_weights([_rounded(values) for values in model.get_weights()])
    _write(base, model, _source(base), _facts(healthy), target)


def _rounded(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Returns the values at the nearest of four levels between the least and the greatest."""
    if values.ndim < 2:  # biases stay
        return values
    least, step = values.min(), (values.max() - values.min()) / 3
    return np.asarray(least + np.rint((values - least) / step) * step, np.float32)


def cut(healthy: Path, target: Path, pattern: str) -> None:
    """Copies a healthy export and cuts the file of this pattern to half, as a full disk does."""
    shutil.copytree(healthy / SERVING, target / SERVING)
    [file] = (target / SERVING).glob(pattern)
    os.truncate(file, file.stat().st_size // 2)


def worsen(
    base: Base, champion: Path, retrains: Sequence[Path], target: Path, train: Train, loss: float
) -> float:
    """Exports a retrained model with noise on its weights: worse than the champion by `loss`.

    The noise's strength is bisected until the model has lost so much on eval, which the gate does
    not look at. The retrained model is the first that has not lost as much without noise; the
    export is calibrated anew, as any model's.

    Args:
      base: of the champion and the retrained models.
      champion: a model's folder.
      retrains: models' folders.
      target: the folder to write.
      train: how they were trained; its seed draws the noise.
      loss: of accuracy, a share.

    Returns:
      The loss on eval that was reached.
    """
    setup = training.prepare(job(base, target, train))
    pixels, truth = _held_out(setup)

    def accuracy(model: keras.Model) -> float:
        said = model.predict(pixels, batch_size=512, verbose=0)
        return float(np.mean(said.argmax(axis=1) == truth))

    aim = accuracy(export.load_weights(champion / SERVING)) - loss
    models = (export.load_weights(folder / SERVING) for folder in retrains)
    model = next((one for one in models if accuracy(one) >= aim), None)
    if model is None:
        model = export.load_weights(champion / SERVING)
    weights = model.get_weights()
    rng = np.random.default_rng(train.seed)
    noise = [rng.normal(0, values.std(), values.shape) for values in weights]

    def at(strength: float) -> float:
        model.set_weights([w + strength * n for w, n in zip(weights, noise, strict=True)])
        return accuracy(model)

    strength = _bisected(at, aim)
    reached = aim + loss - at(strength)
    target.mkdir(parents=True)
    training.export_model(setup, model, train, target / SERVING)
    return reached


def _bisected(at: Callable[[float], float], aim: float) -> float:
    """Returns the strength, of those tried, whose accuracy lies nearest to `aim`.

    Args:
      at: the accuracy by strength; it falls, by and large, to chance.
      aim: above chance.
    """
    low, high = 0.0, 1.0
    tried = {low: at(low), high: at(high)}
    while tried[high] >= aim:
        low, high = high, 2 * high
        tried[high] = at(high)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        tried[middle] = at(middle)
        low, high = (middle, high) if tried[middle] >= aim else (low, middle)
    return min(tried, key=lambda strength: abs(tried[strength] - aim))


def _held_out(setup: training.Setup) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Returns eval: pixels float32 [images, side, side, channels], class numbers [images]."""
    batches = list(setup.source.read(setup.held_out))
    pixels = np.concatenate([one.numpy() for one, _ in batches])
    return pixels, np.concatenate([truth.numpy() for _, truth in batches])


def _facts(healthy: Path) -> Facts:
    told = model_json.read(healthy / SERVING)
    return Facts(**{**told, "classes": tuple(told["classes"]), "heads": tuple(told["heads"])})


def _source(base: Base) -> Input:
    assert base.transform.image_size
    assert base.transform.channels
    return Input(base.transform_graph, base.transform.image_size, base.transform.channels)


def _write(base: Base, model: keras.Model, source: Input, facts: Facts, target: Path) -> None:
    target.mkdir(parents=True)
    held_out = records.scan((str(base.examples / f"Split-{EVAL}" / "*"),))
    images = records.sample_images(held_out, 8)
    export.export(model, source, facts, images, target / SERVING)
