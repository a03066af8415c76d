"""The columns of predictions.parquet that the heads beside the label add.

A class head has `<name>` (the truth), `<name>_predicted` (strings) and `<name>_probabilities`
(list of float32); a regression head `<name>` and `<name>_predicted` (float32). A truth that the
examples don't tell is null. The schema metadata's `heads` describes them, as model.json does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import heads
from pipeline.heads import Head

if TYPE_CHECKING:
    import tensorflow as tf

METADATA = "heads"

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Classes:
    """What a class head is about, image by image.

    Attributes:
      classes: names, in the order of the probabilities.
      labels: what the data says, names [images]; None where it doesn't.
      predicted: what the model says, names [images].
      probabilities: float32 [images, classes].
    """

    classes: tuple[str, ...]
    labels: list[str | None]
    predicted: list[str]
    probabilities: Floats

    def correct(self) -> npt.NDArray[np.bool_]:
        """Returns bool [images]: whether the model agrees with the data."""
        pairs = zip(self.labels, self.predicted, strict=True)
        return np.fromiter((label == name for label, name in pairs), np.bool_, len(self.labels))


@dataclass(frozen=True)
class Values:
    """What a regression head is about, image by image.

    Attributes:
      truth: what the data says, float32 [images]; NaN where it doesn't.
      predicted: what the model says, float32 [images].
    """

    truth: Floats
    predicted: Floats

    def errors(self) -> npt.NDArray[np.float64]:
        """Returns float64 [images], the absolute errors."""
        return np.abs(self.predicted.astype(np.float64) - self.truth.astype(np.float64))


HeadColumns = Classes | Values


def fields(answered: Sequence[Head]) -> list[tuple[str, pa.DataType]]:
    """Returns names and types of the columns of the heads beside the label."""
    found: list[tuple[str, pa.DataType]] = []
    for head in answered:
        kind = pa.string() if head.kind == "class" else pa.float32()
        found += [(head.name, kind), (predicted(head), kind)]
        if head.kind == "class":
            found.append((head.probabilities, pa.list_(pa.float32())))
    return found


def metadata(answered: Sequence[Head]) -> dict[str, str]:
    """Returns what the schema's metadata says of the heads; nothing without any."""
    if not answered:
        return {}
    return {METADATA: json.dumps([head.facts() for head in answered])}


def predicted(head: Head) -> str:
    """Returns the name of the column with a head's answers."""
    return f"{head.name}_predicted"


def spec(answered: Sequence[Head]) -> dict[str, tf.io.FixedLenFeature]:
    """Returns how the heads' truths are parsed from tf.Examples; one that isn't there is empty."""
    import tensorflow as tf

    return {
        head.feature: tf.io.FixedLenFeature([], tf.string, "")
        if head.kind == "class"
        else tf.io.FixedLenFeature([], tf.float32, float("nan"))
        for head in answered
    }


def arrays(truth: npt.NDArray[Any], columns: HeadColumns) -> Iterator[pa.Array]:
    """Yields the arrays of one head's columns.

    Args:
      truth: as `spec` parses it: bytes or float32 [images].
      columns: what the model says; its truths are not looked at.
    """
    if isinstance(columns, Values):
        values = truth.astype(np.float32)
        yield pa.array(values, pa.float32(), mask=np.isnan(values))
        yield pa.array(columns.predicted, pa.float32())
        return
    names = [name.decode("utf-8", "backslashreplace") or None for name in truth.tolist()]
    yield pa.array(names, pa.string())
    yield pa.array(columns.predicted, pa.string())
    yield lists(columns.probabilities)


def lists(probabilities: Floats) -> pa.ListArray:
    """Returns float32 [rows, width] as one list a row."""
    rows, width = probabilities.shape
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * width)
    return pa.ListArray.from_arrays(offsets, pa.array(probabilities.reshape(-1)))


def matrix(column: pa.ChunkedArray, width: int) -> Floats:
    """Returns a column of lists as float32 [rows, width]."""
    flat = column.combine_chunks().values.to_numpy(zero_copy_only=False)
    return np.asarray(flat, np.float32).reshape(len(column), width)


def read(table: pa.Table) -> dict[str, HeadColumns]:
    """Returns what a table of predictions says of each head beside the label, by name."""
    told: Mapping[bytes, bytes] = table.schema.metadata or {}
    found: dict[str, HeadColumns] = {}
    for head in heads.parsed(json.loads(told.get(METADATA.encode(), b"[]"))):
        truth, said = table.column(head.name), table.column(predicted(head))
        if head.kind == "class":
            found[head.name] = Classes(
                classes=head.classes,
                labels=truth.to_pylist(),
                predicted=said.to_pylist(),
                probabilities=matrix(table.column(head.probabilities), len(head.classes)),
            )
        else:
            found[head.name] = Values(_floats(truth), _floats(said))
    return found


def _floats(column: pa.ChunkedArray) -> Floats:
    return np.asarray(column.to_numpy(), np.float32)
