"""From TFRecords through the transform graph to batches for Keras, kept between epochs.

The transform graph is applied to whole batches of records inside tf.data. Its output is computed
once and kept, in memory or in a file, as one float32 array; an epoch is then a permutation of
all its rows, which depends on (seed, epoch) alone. Where there is room for neither, each epoch
decodes again and shuffles through a buffer.
"""

from __future__ import annotations

import hashlib
import mmap
import shutil
import struct
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import psutil
import tensorflow as tf
import tensorflow_transform as tft

from pipeline import events
from pipeline.errors import ConfigError, DataRefused, SafelightError, bounded
from pipeline.features import IMAGE, LABEL, LABEL_ID, PIXELS

Place = Literal["memory", "disk", "off"]

# Batches of this many records keep the cores busy in the transform graph without much memory.
DECODE_BATCH: Final = 256

# Encoded records that an epoch without a cache mixes at a time.
SHUFFLE_BUFFER: Final = 10_000

# What is kept may take this share of the memory or the disk that is free: training needs some too.
_SHARE: Final = 0.5

_PROGRESS_SECONDS: Final = 0.2

_CGROUP: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Records:
    """The TFRecord files of one split: their number of examples, and a digest of their content."""

    files: tuple[Path, ...]
    examples: int
    digest: str


@dataclass(frozen=True)
class Kept:
    """A split behind the transform graph, row by row.

    pixels: float32 [examples, side, side, channels], in memory or mapped from a file.
    label_ids: int64 [examples].
    """

    pixels: npt.NDArray[np.float32]
    label_ids: npt.NDArray[np.int64]


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


def sample_images(records: Records, count: int, among: int = 64) -> list[bytes]:
    """Returns the smallest `count` encoded images among the first of a split, in its order."""
    first = tf.data.TFRecordDataset([str(path) for path in records.files]).take(among)
    spec = {IMAGE: tf.io.FixedLenFeature([], tf.string)}
    images = [tf.io.parse_single_example(record, spec)[IMAGE].numpy() for record in first]
    smallest = sorted(range(len(images)), key=lambda index: len(images[index]))[:count]
    return [images[index] for index in sorted(smallest)]


class Input:
    """The transform graph, ready to be mapped over batches of serialized examples.

    `layer` is TFT's, `spec` parses what it needs, `shape` is that of the pixels it gives.
    """

    def __init__(self, transform_graph: Path, image_size: int, channels: int) -> None:
        output = tft.TFTransformOutput(str(transform_graph))
        spec = output.raw_feature_spec()
        self.layer = output.transform_features_layer()
        self.spec = {name: spec[name] for name in (IMAGE, LABEL)}
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

    def _transform(self, serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns pixels (float32 [batch, *shape]) and label ids (int64 [batch]).

        Args:
          serialized: tf.Examples, string [batch].
        """
        out = self.apply(tf.io.parse_example(serialized, self.spec))
        pixels = tf.ensure_shape(out[PIXELS], (None, *self.shape))
        return pixels, tf.reshape(out[LABEL_ID], [-1])

    def read(self, *splits: Records) -> tf.data.Dataset:
        """Yields splits once, in the order of their files, in batches of DECODE_BATCH."""
        files = [str(path) for records in splits for path in records.files]
        batches = -(-sum(records.examples for records in splits) // DECODE_BATCH)
        serialized = tf.data.TFRecordDataset(files).batch(DECODE_BATCH)
        counted = serialized.apply(tf.data.experimental.assert_cardinality(batches))
        return self.mapped(counted).prefetch(tf.data.AUTOTUNE)

    def mapped(self, serialized: tf.data.Dataset) -> tf.data.Dataset:
        """Applies `transform` to each batch, several at a time, in their order."""
        return serialized.map(
            self.transform, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )

    def bytes_kept(self, *splits: Records) -> int:
        """Returns the size of these splits behind the transform graph."""
        return sum(records.examples for records in splits) * (4 * int(np.prod(self.shape)) + 8)


def choose_place(wanted: Literal["auto", "memory", "disk", "off"], need: int, disk: Path) -> Place:
    """Says where `need` bytes are kept between epochs, and notes it.

    Args:
      wanted: train.cache.
      need: bytes.
      disk: a directory on the disk that would take them.

    Raises:
      ConfigError: they do not fit where train.cache wants them.
    """
    memory, free = available_memory(), shutil.disk_usage(disk).free
    if wanted == "off" or (wanted == "auto" and need > _SHARE * max(memory, free)):
        room = f"{_gib(memory)} of memory and {_gib(free)} of disk are free"
        why = "as train.cache says" if wanted == "off" else f"{_gib(need)} would be needed, {room}"
        events.note(f"Images are decoded again in each epoch: {why}.")
        return "off"
    if wanted == "memory" or (wanted == "auto" and need <= _SHARE * memory):
        _check_room("memory", need, memory)
        events.note(f"Transformed images stay in memory: {_gib(need)} of {_gib(memory)} available.")
        return "memory"
    _check_room("disk", need, free)
    events.note(f"Transformed images stay on disk: {_gib(need)} of {_gib(free)} free.")
    return "disk"


def available_memory() -> int:
    """Returns the bytes of memory still to be had, within the container's limit if there is one."""
    available = psutil.virtual_memory().available
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no cgroup of version 2, or "max"
        return available
    return max(0, min(available, limit - used))


def keep(source: Input, splits: Mapping[str, Records], place: Place, disk: Path) -> dict[str, Kept]:
    """Runs splits through the transform graph once; one array holds them all.

    Args:
      source: the transform graph.
      splits: by name.
      place: `memory` or `disk`.
      disk: the directory for the file; its name is gone as soon as it is open, so that nothing
        is left behind however this process ends.

    Raises:
      DataRefused: an example's label is none of the classes.
    """
    total = sum(records.examples for records in splits.values())
    pixels = _room((total, *source.shape), place, disk)
    label_ids = np.empty(total, np.int64)
    done, told = 0, 0.0
    for batch, ids in source.read(*splits.values()).as_numpy_iterator():
        pixels[done : done + len(ids)] = batch
        label_ids[done : done + len(ids)] = ids
        done += len(ids)
        if done == total or time.monotonic() - told >= _PROGRESS_SECONDS:
            told = time.monotonic()
            events.progress("Trainer", done, total, "images", "reading")
    kept, start = {}, 0
    for name, records in splits.items():
        rows = slice(start, start + records.examples)
        kept[name] = Kept(pixels[rows], label_ids[rows])
        _check_labels(name, kept[name])
        start = rows.stop
    return kept


def _check_labels(name: str, kept: Kept) -> None:
    unknown = int((kept.label_ids < 0).sum())
    if unknown:
        raise DataRefused(
            f"{unknown} of {len(kept.label_ids)} images in {name} have a label that is none of "
            "the schema's classes. Run again with validation.unseen_labels=fail to see which."
        )


def _room(shape: tuple[int, ...], place: Place, disk: Path) -> npt.NDArray[np.float32]:
    if place == "memory":
        return np.empty(shape, np.float32)
    disk.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=disk, prefix="images-") as file:
        return np.memmap(file.name, np.float32, mode="w+", shape=shape)


def shuffled(kept: Kept, batch_size: int, seed: int, first_epoch: int) -> tf.data.Dataset:
    """Yields epoch after epoch without end, each a new order of all rows from (seed, epoch).

    Elements are pixels (float32 [batch, side, side, channels]) and label ids (int64 [batch]); an
    epoch's last batch is smaller where the batch size doesn't divide the rows.
    """
    rows = tf.range(len(kept.label_ids), dtype=tf.int64)

    def indices(epoch: tf.Tensor) -> tf.data.Dataset:
        order = tf.random.experimental.stateless_shuffle(rows, seed=tf.stack([seed, epoch]))
        return tf.data.Dataset.from_tensor_slices(order).batch(batch_size)

    return _gathered(kept, _epochs(first_epoch).flat_map(indices))


def ordered(kept: Kept, batch_size: int) -> tf.data.Dataset:
    """Yields each row once in the order of the files; elements are as in `shuffled`."""
    rows = tf.data.Dataset.range(len(kept.label_ids)).batch(batch_size)
    return _gathered(kept, rows)


def _gathered(kept: Kept, indices: tf.data.Dataset) -> tf.data.Dataset:
    shape = (None, *kept.pixels.shape[1:])

    def gather(rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        return kept.pixels[rows], kept.label_ids[rows]

    def batch(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        pixels, ids = tf.numpy_function(gather, [rows], (tf.float32, tf.int64))
        return tf.ensure_shape(pixels, shape), tf.ensure_shape(ids, (None,))

    return indices.map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(
        tf.data.AUTOTUNE
    )


def streamed(
    source: Input, records: Records, batch_size: int, seed: int, first_epoch: int
) -> tf.data.Dataset:
    """Yields epoch after epoch without end, decoded anew; elements are as in `shuffled`.

    Files come in an order from (seed, epoch), and their records mix within SHUFFLE_BUFFER.
    """
    names = tf.constant([str(path) for path in records.files])

    def epoch_of(epoch: tf.Tensor) -> tf.data.Dataset:
        mixed = tf.random.experimental.stateless_shuffle(names, seed=tf.stack([seed, epoch]))
        return (
            tf.data.Dataset.from_tensor_slices(mixed)
            .interleave(tf.data.TFRecordDataset, cycle_length=4)
            .shuffle(
                min(SHUFFLE_BUFFER, records.examples),
                seed=epoch + seed * 1_000_003,
                reshuffle_each_iteration=False,
            )
            .batch(batch_size)
        )

    batches = source.mapped(_epochs(first_epoch).flat_map(epoch_of))
    return batches.map(_known).prefetch(tf.data.AUTOTUNE)


def _known(pixels: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    message = "An image has a label that is none of the schema's classes."
    with tf.control_dependencies([tf.debugging.assert_non_negative(ids, message)]):
        return pixels, tf.identity(ids)


def _epochs(first: int) -> tf.data.Dataset:
    return tf.data.Dataset.range(first, np.iinfo(np.int64).max)


def _check_room(where: str, need: int, free: int) -> None:
    if need > free:
        raise ConfigError(
            f"train.cache={where} needs {_gib(need)}, and {_gib(free)} of {where} is free. "
            "Leave train.cache at auto, or make transform.image_size smaller."
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
