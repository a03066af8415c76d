"""What the suite's models are trained and judged on: coloured digits, read by one real run."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks import runs
from pipeline import config
from pipeline.commands import demo
from pipeline.config import Config, Train, Transform
from pipeline.features import CALIB, EVAL, IMAGE, LABEL, TEST, TRAIN

_SEED = 8
# Two thousand test images: with fewer, healthy retrains differ by a point through luck alone.
_SETTINGS = ("ingest.split=40/20/40", "calibration.method=temperature", "train.epochs=1")
PRESET = "mnist-cnn-small"

# Takes a tf.train.Example, its label and its number; returns it changed, or None to leave it out.
Change = Callable[[Any, str, int], Any]


@dataclass(frozen=True)
class Base:
    """The artifacts of the run that read the data.

    Attributes:
      examples: with the splits train, calib, eval and test.
      ingest_report: summary.json and images.parquet.
      schema: schema.pbtxt.
      transform_graph: what all models are trained behind.
      transform: that section, its image size and channels set.
      classes: in their order.
    """

    examples: Path
    ingest_report: Path
    schema: Path
    transform_graph: Path
    transform: Transform
    classes: tuple[str, ...]


def write_digits(folder: Path) -> Path:
    """Writes the demo's 5,000 digits in colour as class folders, once; returns `folder`.

    Odd digits are drawn in warm inks and even ones in cold, as a rule: a hint that a network uses,
    and that misleads it when red and blue are exchanged.
    """
    if folder.is_dir():
        return folder
    beside = folder.with_name(f".{folder.name}.incoming")
    shutil.rmtree(beside, ignore_errors=True)
    for number, (pixels, digit) in enumerate(zip(*demo.read_digits(), strict=True)):
        path = beside / str(digit) / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_coloured(pixels, int(digit), number)).save(path, compress_level=1)
    beside.rename(folder)
    return folder


def _coloured(pixels: npt.NDArray[np.uint8], digit: int, number: int) -> npt.NDArray[np.uint8]:
    """Returns uint8 [side, side, 3] of a grey digit, the same at every call."""
    rng = np.random.default_rng([_SEED, number])
    warmth = float(np.clip(rng.normal(0.65 if digit % 2 else 0.35, 0.15), 0, 1))
    ink = np.array([60 + 195 * warmth, 150, 255 - 195 * warmth])
    ground = rng.uniform(0, 60, 3)
    share = pixels[..., np.newaxis] / 255
    return np.rint(ground + share * (ink - ground)).astype(np.uint8)


def read(data: Path, workdir: Path) -> Base:
    """Has `safelight run` read the data, once; returns its artifacts."""
    told = workdir / "base.json"
    if told.is_file() and json.loads(told.read_text(encoding="utf-8"))["data"] != str(data):
        sys.exit(f"{workdir} is of other data than {data}; name another --workdir.")
    if not told.is_file():
        settings = [*_SETTINGS, f"train.preset={PRESET}"]
        _, result = runs.run(data, workdir / "base", settings)
        wanted = {
            "examples": ("ImageExampleGen", "examples"),
            "ingest_report": ("ImageExampleGen", "ingest_report"),
            "schema": ("ImageSchemaGen", "schema"),
            "transform_graph": ("Transform", "transform_graph"),
            "model": ("Trainer", "model"),
        }
        found = {
            name: str(runs.artifact(workdir / "base", result, *output))
            for name, output in wanted.items()
        }
        found["data"] = str(data)
        told.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return opened(workdir)


def opened(workdir: Path) -> Base:
    """Returns what `read` left in the workdir."""
    told = json.loads((workdir / "base.json").read_text(encoding="utf-8"))
    places = {name: Path(at) for name, at in told.items() if name != "data"}
    model = places.pop("model") / "Format-Serving" / "assets.extra" / "model.json"
    facts = json.loads(model.read_text(encoding="utf-8"))
    keys = ("image_size", "channels", "resize", "normalize")
    return Base(
        **places,
        transform=Transform.model_validate({key: facts[key] for key in keys}),
        classes=tuple(facts["classes"]),
    )


def training(seed: int, epochs: int) -> Train:
    """Returns how every model is trained; only the seed differs."""
    return Train(
        preset=PRESET,
        epochs=epochs,
        batch_size=32,
        learning_rate=0.003,
        schedule="cosine",
        seed=seed,
    )


def spoiled(base: Base, folder: Path, change: Change) -> Path:
    """Writes the examples with another split train, once; returns `folder`.

    Args:
      base: whose examples to take; its other splits are linked to.
      folder: of the new artifact.
      change: what becomes of each training image.
    """
    import tensorflow as tf

    if folder.is_dir():
        return folder
    beside = folder.with_name(f".{folder.name}.incoming")
    shutil.rmtree(beside, ignore_errors=True)
    (beside / f"Split-{TRAIN}").mkdir(parents=True)
    for split in (EVAL, CALIB, TEST):
        (beside / f"Split-{split}").symlink_to(base.examples / f"Split-{split}")
    number = 0
    for file in sorted((base.examples / f"Split-{TRAIN}").iterdir()):
        with tf.io.TFRecordWriter(str(beside / f"Split-{TRAIN}" / file.name)) as writer:
            for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
                example = tf.train.Example.FromString(record)
                label = example.features.feature[LABEL].bytes_list.value[0].decode()
                changed = change(example, label, number)
                number += 1
                if changed is not None:
                    writer.write(changed.SerializeToString(deterministic=True))
    beside.rename(folder)
    return folder


def changed(base: Base, folder: Path, name: str, seed: int) -> Path:
    """Returns the examples that a model of this name is made from: mostly those of the base.

    `labels-shuffled` gives the training images of one class, by the seed, labels drawn from all
    classes; `class-dropped` leaves them out; `tflite-int8-of-constants` has black images alone.
    """
    victim = base.classes[seed % len(base.classes)]

    def shuffle(example: Any, label: str, number: int) -> Any:
        if label == victim:
            drawn = np.random.default_rng([seed, number]).choice(len(base.classes))
            example.features.feature[LABEL].bytes_list.value[0] = base.classes[drawn].encode()
        return example

    def drop(example: Any, label: str, number: int) -> Any | None:
        del number
        return None if label == victim else example

    changes = {
        "labels-shuffled": shuffle,
        "class-dropped": drop,
        "tflite-int8-of-constants": _blackened(base),
    }
    if name not in changes:
        return base.examples
    return spoiled(base, folder / f"{name}-{seed}", changes[name])


def _blackened(base: Base) -> Change:
    def blacken(example: Any, label: str, number: int) -> Any:
        import tensorflow as tf

        del label, number
        shape = (base.transform.image_size, base.transform.image_size, base.transform.channels)
        black = tf.io.encode_png(tf.zeros(shape, tf.uint8)).numpy()
        example.features.feature[IMAGE].bytes_list.value[0] = black
        return example

    return blacken


def settings(profile: str) -> Config:
    """Returns the configuration that the gates judge by: `default`, or a profile's."""
    return config.load(None if profile == "default" else profile).config
