"""Examples, schemas and transform graphs for tests of training: real TFRecords, real TFT."""

from __future__ import annotations

import functools
import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import apache_beam as beam
import tensorflow as tf
import tensorflow_transform.beam as tft_beam
from tensorflow_transform.tf_metadata import dataset_metadata, metadata_io, schema_utils

from components.image_statistics import IN_MEMORY_RUNNER
from pipeline import transform
from pipeline.config import Transform
from pipeline.features import ID, IMAGE, LABEL
from schemas import image_schema
from tests import made

CLASSES = tuple(sorted(made.HUES))


def encoded(label: str, number: int, size: int = 32, grey: bool = False) -> bytes:
    """Returns a PNG of `made.picture`."""
    buffer = io.BytesIO()
    made.picture(label, number, (size, size), grey).save(buffer, "PNG")
    return buffer.getvalue()


def example(label: str, number: int, size: int = 32, grey: bool = False) -> bytes:
    """Returns a serialized tf.Example with image, label and id."""
    values = {
        IMAGE: encoded(label, number, size, grey),
        LABEL: label.encode(),
        ID: f"{label}/{number}".encode(),
    }
    feature = {
        name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        for name, value in values.items()
    }
    made_of = tf.train.Example(features=tf.train.Features(feature=feature))
    serialized: bytes = made_of.SerializeToString(deterministic=True)
    return serialized


def write_split(
    root: Path,
    split: str,
    counts: Mapping[str, int],
    *,
    size: int = 32,
    grey: bool = False,
    first: int = 0,
    shards: int = 2,
) -> str:
    """Writes `Split-<split>/` with the classes taking turns; returns the pattern of its files."""
    folder = root / f"Split-{split}"
    folder.mkdir(parents=True)
    names = [folder / f"data_tfrecord-{index:05d}-of-{shards:05d}" for index in range(shards)]
    writers = [tf.io.TFRecordWriter(str(name)) for name in names]
    written = 0
    for number in range(max(counts.values())):
        for label, count in counts.items():
            if number < count:
                record = example(label, first + number, size, grey)
                writers[written % shards].write(record)
                written += 1
    for writer in writers:
        writer.close()
    return str(folder / "*")


def write_schema(path: Path, classes: Sequence[str] = CLASSES) -> Path:
    """Writes the curated schema with these classes, as ImageSchemaGen does."""
    path.write_text(image_schema.completed(classes), encoding="utf-8")
    return path


@functools.cache
def transform_graph(size: int = 32, channels: int = 3, classes: tuple[str, ...] = CLASSES) -> Path:
    """Makes the graph from encoded bytes and names to pixels and class numbers, once a process."""

    options = Transform(image_size=size, channels=channels).model_dump(mode="json")
    preprocess = functools.partial(
        transform.preprocessing_fn, custom_config={"transform": options}, classes=classes
    )
    spec = {name: tf.io.FixedLenFeature([], tf.string) for name in (IMAGE, LABEL)}
    metadata = dataset_metadata.DatasetMetadata(schema_utils.schema_from_feature_spec(spec))
    # Kept for as long as the process: the paths stand in the cache.
    folder = tempfile.TemporaryDirectory(prefix="graphs-")
    _folders.append(folder)
    path = Path(folder.name) / "graph"
    rows = [{IMAGE: encoded(label, 0), LABEL: label.encode()} for label in classes]
    with (
        beam.Pipeline(runner=IN_MEMORY_RUNNER) as steps,
        tft_beam.Context(temp_dir=str(Path(folder.name) / "temporary")),
    ):
        analyzed = (steps | beam.Create(rows), metadata) | tft_beam.AnalyzeDataset(preprocess)
        analyzed | tft_beam.WriteTransformFn(str(path))
    metadata_io.write_metadata(metadata, str(path / "metadata"))
    return path


_folders: list[tempfile.TemporaryDirectory[str]] = []
