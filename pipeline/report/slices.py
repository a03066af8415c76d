"""Accuracy by what the images are like: is the model worse on the dark, the blurred, the small?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from pipeline.features import TEST
from pipeline.report import formats, shares
from pipeline.report.collect import Record
from pipeline.report.shares import Share

_BUCKETS = 4

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Slice:
    """The images with a fact in a range; `worse`: the interval lies below the overall accuracy."""

    name: str
    accuracy: Share
    worse: bool


@dataclass(frozen=True)
class Slicing:
    """The test images, cut by one fact."""

    name: str
    about: str
    slices: list[Slice]

    @property
    def axis(self) -> float:
        """Where the drawing of accuracies begins."""
        return shares.axis(it.accuracy for it in self.slices)


def build(record: Record) -> list[Slicing]:
    """Returns the slicings that have at least two slices.

    None without facts or predictions, and none where the gate itself has judged slices.
    """
    if (record.verdict or {}).get("slices"):
        return []
    predictions = record.predictions
    columns = ["id", "split", "width", "height", "brightness", "sharpness", "format", "channels"]
    table = record.table("images", columns)
    if predictions is None or table is None:
        return []
    table = table.filter(pa.compute.equal(table["split"], TEST))
    place = {_key(name): row for row, name in enumerate(table["id"].to_pylist())}
    rows = np.array([place.get(_key(name), -1) for name in predictions.ids], dtype=np.int64)
    known = rows >= 0
    if not known.any():
        return []
    table, correct = table.take(rows[known]), predictions.correct[known]
    overall = float(correct.mean())
    return [slicing for slicing in _slicings(table, correct, overall) if len(slicing.slices) > 1]


def _slicings(table: pa.Table, correct: npt.NDArray[np.bool_], overall: float) -> list[Slicing]:
    held = table.column_names
    found = []
    if "brightness" in held:
        about = "mean grey value, 0 (black) to 1 (white)"
        found.append(
            Slicing("Brightness", about, _ranges(_floats(table, "brightness"), correct, overall))
        )
    if "sharpness" in held:
        about = "how much neighbouring pixels differ; the first slice holds the most blurred"
        found.append(
            Slicing("Sharpness", about, _ranges(_floats(table, "sharpness"), correct, overall))
        )
    if "width" in held and "height" in held:
        longer = np.maximum(_floats(table, "width"), _floats(table, "height"))
        about = "the longer side in pixels, before resizing"
        found.append(Slicing("Size", about, _ranges(longer, correct, overall, formats.count)))
    for column, about in (("format", "as stored"), ("channels", "1 grey, 3 colour")):
        if column in held:
            values = np.array([_named(value) for value in table[column].to_pylist()], dtype=object)
            found.append(Slicing(column.capitalize(), about, _kinds(values, correct, overall)))
    return found


def _ranges(
    values: Floats,
    correct: npt.NDArray[np.bool_],
    overall: float,
    write: Callable[[float], str] = formats.short,
) -> list[Slice]:
    """Cuts at the quartiles; values that are mostly equal make fewer slices."""
    inner = np.quantile(values, np.arange(1, _BUCKETS) / _BUCKETS)
    edges = np.unique(inner[(inner > values.min()) & (inner <= values.max())])
    bucket = np.searchsorted(edges, values, side="right")
    found = []
    for number in range(len(edges) + 1):
        inside = bucket == number
        if inside.any():
            low, high = write(values[inside].min()), write(values[inside].max())
            name = low if low == high else f"{low} – {high}"
            found.append(_slice(name, correct[inside], overall))
    return found


def _kinds(
    values: npt.NDArray[np.object_], correct: npt.NDArray[np.bool_], overall: float
) -> list[Slice]:
    names = sorted(set(values))
    return [_slice(name, correct[values == name], overall) for name in names]


def _slice(name: str, correct: npt.NDArray[np.bool_], overall: float) -> Slice:
    accuracy = shares.of(int(correct.sum()), len(correct))
    assert accuracy is not None
    return Slice(name, accuracy, worse=accuracy.high < overall)


def _floats(table: pa.Table, column: str) -> Floats:
    return np.asarray(table[column].to_numpy(), dtype=np.float64)


def _named(value: str | bytes | int) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _key(name: str | bytes) -> bytes:
    return name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")
