"""The pixels that variants are tried on: what the transform graph gives, as bytes.

Decoding and resizing stay outside of a variant. A client that decodes and resizes as the transform
graph does, and rounds to bytes, sends what is made here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from pipeline import features
from pipeline.errors import SafelightError
from pipeline.records import DECODE_BATCH, Input

Bytes = npt.NDArray[np.uint8]
Range = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None


def scaling(value_range: Range) -> tuple[list[float], list[float]]:
    """Returns what bytes are multiplied by, and what is then added, for each channel.

    Args:
      value_range: of `records.Input.value_range`.
    """
    if value_range is None:
        return [1 / 255], [0.0]
    black, white = (values.astype(np.float64) for values in value_range)
    return ((white - black) / 255).tolist(), black.tolist()


def as_bytes(pixels: npt.NDArray[np.float32], value_range: Range) -> Bytes:
    """Returns the transform graph's pixels, float32 [..., channels], as uint8 of the same shape."""
    scale, offset = scaling(value_range)
    levels = (pixels - np.asarray(offset, np.float32)) / np.asarray(scale, np.float32)
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def of_ids(source: Input, files: Sequence[str], wanted: Sequence[bytes], place: Path) -> Bytes:
    """Returns the pixels of these test images, in this order.

    Args:
      source: the transform graph.
      files: the split's TFRecords.
      wanted: the images' ids.
      place: the file (.npy) that keeps the pixels: photographs are too many for memory.

    Returns:
      uint8 [images, side, side, channels], mapped from the file.

    Raises:
      SafelightError: an image is not in the files.
    """
    rows = rows_of(wanted)
    value_range = source.value_range()
    shape = (len(wanted), *source.shape)
    pixels = np.lib.format.open_memmap(place, "w+", np.uint8, shape)
    for ids, batch in _batches(source, files):
        for index, name in enumerate(ids):
            if rows.get(name):
                pixels[rows[name].pop()] = as_bytes(batch[index], value_range)
    left = sum(map(len, rows.values()))
    if left:
        raise SafelightError(
            f"{left} of {len(wanted)} test images that the predictions name are not in the "
            "examples. Run again."
        )
    return pixels


def rows_of(wanted: Sequence[bytes]) -> dict[bytes, list[int]]:
    """Returns the rows of each id, the first one last, where `pop` takes it.

    Two images of a window may have one name; they stand in the files in the order of their rows.
    """
    rows: dict[bytes, list[int]] = {}
    for row in reversed(range(len(wanted))):
        rows.setdefault(wanted[row], []).append(row)
    return rows


def representative(source: Input, files: Sequence[str], examples: int, count: int) -> Bytes:
    """Returns training images, evenly spread, and a black and a white one, as uint8.

    With those two a full integer network's input covers all bytes: it takes pixels as they are.

    Args:
      source: the transform graph.
      files: the TFRecords of train.
      examples: how many there are in them.
      count: how many to take.
    """
    step = max(1, examples // count)
    records = tf.data.TFRecordDataset(list(files)).shard(step, 0).take(count)
    taken = [source.transform(batch)[0].numpy() for batch in records.batch(DECODE_BATCH)]
    value_range = source.value_range()
    ends = np.stack([np.full(source.shape, level, np.uint8) for level in (0, 255)])
    return np.concatenate([ends, *(as_bytes(batch, value_range) for batch in taken)])


def _batches(
    source: Input, files: Sequence[str]
) -> Iterator[tuple[list[bytes], npt.NDArray[np.float32]]]:
    """Yields ids and pixels, batch by batch."""
    spec = {features.ID: tf.io.FixedLenFeature([], tf.string)}

    def parsed(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        ids = tf.io.parse_example(serialized, spec)[features.ID]
        return ids, source.transform(serialized)[0]

    options = tf.data.Options()
    # This process computes on one thread, so that latencies can be compared; reading need not.
    options.threading.private_threadpool_size = len(os.sched_getaffinity(0))
    batches = tf.data.TFRecordDataset(list(files)).batch(DECODE_BATCH)
    mapped = batches.map(parsed, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    for ids, pixels in mapped.with_options(options).as_numpy_iterator():
        yield ids.tolist(), pixels
