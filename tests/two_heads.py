"""Pictures that show a class, a grade and a severity, and a model with a head for each.

The class is the shape, the grade its colour, the severity how much of the picture it fills.
"""

from __future__ import annotations

import csv
import functools
import io
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
import numpy as np
import tensorflow as tf
import tensorflow_transform.beam as tft_beam
from PIL import Image, ImageDraw
from tensorflow_transform.tf_metadata import dataset_metadata, metadata_io

from components.image_statistics import IN_MEMORY_RUNNER
from pipeline import heads, transform
from pipeline.config import Train, Transform
from pipeline.features import IMAGE, LABEL
from schemas import image_schema
from tests import examples

SIZE = 24
CLASSES = ("round", "square")
GRADES = ("good", "bad")  # not sorted: the champion's order
COLUMN = "Severity (0-1)"
CONFIGURED = (
    {"name": "grade", "kind": "class"},
    {
        "name": "severity",
        "kind": "regression",
        "column": COLUMN,
        "minimum": 0.0,
        "maximum": 1.0,
        "weight": 20.0,
    },
)
TRAIN = Train(preset="mnist-cnn-small", heads=CONFIGURED, epochs=1, batch_size=32)
HEADS = heads.of(TRAIN, CLASSES, {"grade": GRADES})


@dataclass(frozen=True)
class Shown:
    """One picture, and what it shows."""

    data: bytes
    label: str
    grade: str
    severity: float


def shown(number: int, size: int = SIZE) -> Shown:
    """Returns the picture of this number, the same at every run."""
    rng = np.random.default_rng(number)
    label, grade = CLASSES[number % 2], GRADES[number // 2 % 2]
    severity = round(float(rng.uniform(0.05, 0.8)), 3)
    side = size * np.sqrt(severity)
    x, y = (rng.uniform(0, size - side) for _ in range(2))
    colour = tuple(int(value) for value in rng.integers(170, 256, 3))
    colour = (colour[0], 40, 40) if grade == "bad" else (40, colour[1], 40)
    image = Image.new("RGB", (size, size), tuple(int(v) for v in rng.integers(0, 60, 3)))
    draw = ImageDraw.Draw(image)
    draw_shape = draw.ellipse if label == "round" else draw.rectangle
    draw_shape((x, y, x + side, y + side), fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Shown(buffer.getvalue(), label, grade, severity)


def write_manifest(root: Path, count: int) -> Path:
    """Writes `count` pictures and the manifest beside them; returns `root`."""
    (root / "images").mkdir(parents=True)
    with open(root / "manifest.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "grade", COLUMN])
        for number in range(count):
            one = shown(number)
            name = f"images/{number:04d}.png"
            (root / name).write_bytes(one.data)
            writer.writerow([name, one.label, one.grade, one.severity])
    return root


def example(number: int) -> tf.train.Example:
    """Returns the tf.Example that ingest makes of a picture."""
    one = shown(number)
    made = examples.example(one.data, one.label, f"{number:04d}.png")
    made.features.feature["class_grade"].bytes_list.value.append(one.grade.encode())
    made.features.feature[f"target_{COLUMN}"].float_list.value.append(one.severity)
    return made


def write_split(root: Path, split: str, numbers: Iterable[int]) -> Path:
    """Writes a split of the examples artifact below `root`, and returns `root`."""
    examples.write_split(root, split, [example(number) for number in numbers])
    return root


def schema() -> str:
    """Returns the schema as ImageSchemaGen completes it."""
    return image_schema.completed(CLASSES, HEADS[1:])


@functools.cache
def transform_graph() -> Path:
    """Makes the transform graph with all heads' targets, once a process."""
    folder = tempfile.TemporaryDirectory(prefix="two-heads-")
    _folders.append(folder)
    path = Path(folder.name) / "graph"
    preprocess = functools.partial(
        transform.preprocessing_fn,
        custom_config={"transform": Transform(image_size=SIZE, channels=3).model_dump(mode="json")},
        classes=CLASSES,
        heads=HEADS[1:],
    )
    wanted = {IMAGE, LABEL, *(head.feature for head in HEADS)}
    whole = image_schema.parse(schema())
    for feature in [one for one in whole.feature if one.name not in wanted]:
        whole.feature.remove(feature)
    tensors = whole.tensor_representation_group[""].tensor_representation
    for name in [name for name in tensors if name not in wanted]:
        del tensors[name]
    metadata = dataset_metadata.DatasetMetadata(whole)
    one = shown(0)
    rows = [
        {
            IMAGE: one.data,
            LABEL: one.label.encode(),
            "class_grade": one.grade.encode(),
            f"target_{COLUMN}": one.severity,
        }
    ]
    with (
        beam.Pipeline(runner=IN_MEMORY_RUNNER) as steps,
        tft_beam.Context(temp_dir=str(Path(folder.name) / "temporary")),
    ):
        analyzed = (steps | beam.Create(rows), metadata) | tft_beam.AnalyzeDataset(preprocess)
        analyzed | tft_beam.WriteTransformFn(str(path))
    metadata_io.write_metadata(metadata, str(path / "metadata"))
    return path


_folders: list[tempfile.TemporaryDirectory[str]] = []
