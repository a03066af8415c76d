"""Artifacts as ingest writes them, made for tests: tf.Examples of real images, and the report."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from PIL import Image
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.dsl.components.base.base_executor import BaseExecutor
from tfx.types.artifact import Artifact

from components.image_statistics import IN_MEMORY_RUNNER
from pipeline import images
from pipeline.features import (
    CHANNEL_FACTS,
    FLOAT_FACTS,
    FORMAT,
    ID,
    IMAGE,
    LABEL,
    SHA256,
)

# With an image named, TFX doesn't pack its own sources for workers that there aren't: 3 s a time.
BEAM_ARGS = [
    f"--runner={IN_MEMORY_RUNNER}",
    "--direct_running_mode=in_memory",
    "--direct_num_workers=1",
    "--sdk_container_image=unused",
]


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    """Returns the image as a file of this format."""
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def example(data: bytes, label: str, name: str = "made") -> tf.train.Example:
    """Returns the tf.Example that ingest would make of this file, `prepare` included."""
    ready = images.prepare(data)
    facts = images.facts(ready.pixels)
    ints = {
        "height": ready.height,
        "width": ready.width,
        "channels": ready.channels,
        "byte_size": len(ready.encoded),
    }
    made = tf.train.Example()
    feature = made.features.feature
    for key, value in {
        IMAGE: ready.encoded,
        LABEL: label.encode(),
        ID: name.encode(),
        SHA256: images.digest(ready.pixels).hex().encode(),
        FORMAT: ready.format.encode(),
    }.items():
        feature[key].bytes_list.value.append(value)
    for key, number in ints.items():
        feature[key].int64_list.value.append(number)
    for key in FLOAT_FACTS:
        feature[key].float_list.value.append(getattr(facts, key))
    for key in CHANNEL_FACTS:
        feature[key].float_list.value.extend(getattr(facts, key))
    return made


def write_split(root: Path, split: str, examples: Iterable[tf.train.Example]) -> None:
    """Writes one shard of the examples artifact below `root`."""
    folder = root / f"Split-{split}"
    folder.mkdir(parents=True)
    with tf.io.TFRecordWriter(str(folder / "data_tfrecord-00000-of-00001")) as writer:
        for made in examples:
            writer.write(made.SerializeToString())


def write_report(
    root: Path, classes: list[str], per_class: Mapping[str, Mapping[str, int]]
) -> Path:
    """Writes the ingest report's summary.json, as far as validation reads it."""
    root.mkdir(parents=True, exist_ok=True)
    summary = {"classes": classes, "per_class": per_class}
    (root / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return root


def artifact(kind: type[Artifact], uri: Path, splits: Iterable[str] = ()) -> Artifact:
    """Returns an artifact of TFX's at this place, made if it isn't there."""
    uri.mkdir(parents=True, exist_ok=True)
    made = kind()
    made.uri = str(uri)
    if splits:
        made.split_names = json.dumps(list(splits))
    return made


def execute(
    executor: type[BaseExecutor],
    inputs: Mapping[str, Artifact],
    outputs: Mapping[str, Artifact],
    **properties: Any,
) -> None:
    """Runs an executor as TFX's launcher would, with Beam in this process."""
    arguments: dict[str, Any] = {}
    if issubclass(executor, BaseBeamExecutor):
        arguments["context"] = executor.Context(beam_pipeline_args=BEAM_ARGS)
    executor(**arguments).Do(
        {key: [value] for key, value in inputs.items()},
        {key: [value] for key, value in outputs.items()},
        properties,
    )
