"""Records of a split, and the transform graph that makes pixels and targets of them.

The graph is applied to whole batches of records inside tf.data.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tensorflow_transform as tft

from pipeline import heads
from pipeline.errors import DataRefused, SafelightError, bounded
from pipeline.features import IMAGE, LABEL, PIXELS
from pipeline.heads import Head

# The first images of a split that a few small ones are chosen from.
_SAMPLED = 64

# Batches of this many records keep the cores busy in the transform graph without much memory.
DECODE_BATCH: Final = 256


@dataclass(frozen=True)
class Records:
    """The TFRecord files of one split: their number of examples, and a digest of their content."""

    files: tuple[Path, ...]
    examples: int
    digest: str

    @property
    def names(self) -> list[str]:
        """Returns the files' paths as strings."""
        return [str(path) for path in self.files]


def scan(patterns: Sequence[str]) -> Records:
    """Finds the files of a split and reads the frames of their records, not the records.

    A TFRecord's frame holds its length and a checksum of its data: together they identify the
    content without reading it.

    Args:
      patterns: file patterns, as TFX's Trainer gets them.

    Raises:
      SafelightError: a file is cut short, or isn't an uncompressed TFRecord.
      DataRefused: no file, or no record in them.
    """
    files = tuple(sorted(Path(name) for pattern in patterns for name in tf.io.gfile.glob(pattern)))
    digest = hashlib.sha256()
    examples = sum(_scan_file(path, digest) for path in files)
    if not examples:
        raise DataRefused(
            f"There is nothing to train on: no examples in {bounded(patterns)}. "
            "Add images, or change ingest.split so that train and eval get some."
        )
    return Records(files, examples, digest.hexdigest())


def _scan_file(path: Path, digest: Any) -> int:
    size = path.stat().st_size
    if not size:
        return 0
    count, position = 0, 0
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        # A frame: length (8 bytes), its checksum (4), the data, the data's checksum (4).
        while position + 16 <= size:
            (length,) = struct.unpack_from("<Q", content, position)
            end = position + 16 + length
            if end > size:
                break
            digest.update(content[position : position + 8] + content[end - 4 : end])
            count, position = count + 1, end
    if position != size:
        raise SafelightError(
            f"{path} is not a whole, uncompressed TFRecord file: what should be a record ends "
            f"behind the file's {size} bytes. Delete the artifact that it belongs to and run again."
        )
    return count


def sample_images(records: Records, count: int) -> list[bytes]:
    """Returns the smallest `count` encoded images among the first of a split, in its order."""
    first = tf.data.TFRecordDataset(records.names).take(_SAMPLED)
    spec = {IMAGE: tf.io.FixedLenFeature([], tf.string)}
    images = [tf.io.parse_single_example(record, spec)[IMAGE].numpy() for record in first]
    smallest = sorted(range(len(images)), key=lambda index: len(images[index]))[:count]
    return [images[index] for index in sorted(smallest)]


class Input:
    """The transform graph, ready to be mapped over batches of serialized examples.

    `layer` is TFT's, `spec` parses what it needs, `shape` is that of the pixels it gives, and
    `heads` are those whose targets it gives.
    """

    def __init__(
        self,
        transform_graph: Path,
        image_size: int,
        channels: int,
        answers: Sequence[Head] = (Head(name=heads.LABEL, kind="class"),),
    ) -> None:
        output = tft.TFTransformOutput(str(transform_graph))
        spec = output.raw_feature_spec()
        self.layer = output.transform_features_layer()
        self.heads = tuple(answers)
        self.spec = {name: spec[name] for name in (IMAGE, *(head.feature for head in answers))}
        self.shape = (image_size, image_size, channels)
        # Traced once for all data sets; AutoGraph would rewrite TFT's own sources meanwhile.
        self.transform = tf.function(
            self._transform, [tf.TensorSpec([None], tf.string)], autograph=False
        )

    def apply(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns what the graph makes of these features (string [batch] each).

        TFT's layer is a Keras 2 model. Called as one, it would be traced through Keras 2, and again
        when it is saved: 15 seconds for the same graph.
        """
        out: dict[str, tf.Tensor] = self.layer.call(inputs)
        return out

    def _transform(self, serialized: tf.Tensor) -> tuple[tf.Tensor, Any]:
        """Returns pixels (float32 [batch, *shape]) and the targets, as `packed` has them.

        Args:
          serialized: tf.Examples, string [batch].
        """
        out = self.apply(tf.io.parse_example(serialized, self.spec))
        pixels = tf.ensure_shape(out[PIXELS], (None, *self.shape))
        targets = {head.name: tf.reshape(out[head.target], [-1]) for head in self.heads}
        return pixels, packed(targets)

    def read(self, *splits: Records) -> tf.data.Dataset:
        """Yields splits once, in the order of their files, in batches of DECODE_BATCH."""
        files = [name for records in splits for name in records.names]
        batches = -(-sum(records.examples for records in splits) // DECODE_BATCH)
        serialized = tf.data.TFRecordDataset(files).batch(DECODE_BATCH)
        counted = serialized.apply(tf.data.experimental.assert_cardinality(batches))
        return self.mapped(counted).prefetch(tf.data.AUTOTUNE)

    def mapped(self, serialized: tf.data.Dataset) -> tf.data.Dataset:
        """Applies `transform` to each batch, several at a time, in their order."""
        return serialized.map(
            self.transform, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )

    def label_ids(self, records: Records) -> npt.NDArray[np.int64]:
        """Reads the labels alone, in the order of the files: int64 [examples], -1 for no class.

        The label's head has to have its classes.
        """
        spec = {LABEL: tf.io.FixedLenFeature([], tf.string)}
        number = {name.encode(): index for index, name in enumerate(self.heads[0].classes)}
        batches = tf.data.TFRecordDataset(records.names).batch(1024)
        labels = batches.map(lambda serialized: tf.io.parse_example(serialized, spec)[LABEL])
        found = [number.get(name, -1) for batch in labels.as_numpy_iterator() for name in batch]
        return np.array(found, np.int64)

    def value_range(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None:
        """Returns what black and white are behind the graph, float32 [channels] each.

        None says 0 and 1, as with transform.normalize=unit.
        """
        side, _, channels = self.shape
        images = [
            tf.io.encode_png(tf.fill((side, side, channels), tf.constant(level, tf.uint8)))
            for level in (0, 255)
        ]
        black, white = self.apply({IMAGE: tf.stack(images)})[PIXELS].numpy()[:, 0, 0, :]
        return None if not black.any() and (white == 1).all() else (black, white)


def packed(targets: Mapping[str, Any]) -> Any:
    """Returns the targets as Keras takes them: by head, or just the label's if it is alone."""
    return dict(targets) if len(targets) > 1 else targets[heads.LABEL]


def unpacked(targets: Any) -> dict[str, Any]:
    """Returns the targets by head, whatever `packed` made of them."""
    return dict(targets) if isinstance(targets, Mapping) else {heads.LABEL: targets}
