"""How the data has moved: against the champion's, and between the splits.

Classes are compared by the largest difference of a class's share (L-infinity), facts by the
Jensen-Shannon divergence of their histograms (Lin, IEEE Transactions on Information Theory 37,
1991) to base 2: 0 for the same spread, 1 where no value is shared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
from markupsafe import Markup

from pipeline import registry
from pipeline.divergence import jensen_shannon
from pipeline.errors import SafelightError
from pipeline.features import TEST, TRAIN
from pipeline.report import diagrams, formats
from pipeline.report.collect import Record
from pipeline.runs import RunDir

_BINS = 20
_CLASSES = 8
_FACTS = {
    "brightness": "Brightness",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
    "aspect_ratio": "Aspect ratio",
    "width": "Width",
    "height": "Height",
    "byte_size": "File size",
}
_COLUMNS = ("split", "label", *_FACTS)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ClassMove:
    """A class's share of the champion's data, and of this run's."""

    name: str
    before: float
    now: float


@dataclass(frozen=True)
class FactMove:
    """How far a fact has moved from the champion's data, and how far test lies from train."""

    name: str
    champion: float | None
    splits: float | None
    chart: Markup


@dataclass(frozen=True)
class Drift:
    """What is shown of it; `same` says that the champion was trained on this very data.

    `labels` and `splits` are L-infinity distances of the classes' shares.
    """

    version: int | None
    same: bool
    labels: float | None
    splits: float | None
    classes: list[ClassMove]
    facts: list[FactMove]

    @property
    def compared(self) -> bool:
        """Whether there is the champion's data to compare with."""
        return self.labels is not None


def build(record: Record) -> Drift | None:
    """Returns what has moved, or None where ingest left no facts."""
    table = record.table("images", _COLUMNS)
    if table is None or table.num_rows == 0 or "label" not in table.column_names:
        return None
    version, same, before = _champion(record)
    return Drift(
        version=version,
        same=same,
        labels=_distance(_shares(before), _shares(table)) if before is not None else None,
        splits=_distance(_shares(_of(table, TRAIN)), _shares(_of(table, TEST))),
        classes=_classes(_shares(before), _shares(table)) if before is not None else [],
        facts=_facts(table, before),
    )


def _champion(record: Record) -> tuple[int | None, bool, pa.Table | None]:
    """Returns the champion's version, whether its data is this run's, and else its facts."""
    version = record.request.inputs.get("champion")
    if version is None:
        return None, False, None
    model = record.request.config["push"]["model_name"]
    try:
        entries = registry.read(record.workdir.serving(model)).entries
    except SafelightError:
        return version, False, None
    entry = next((it for it in entries if it.version == version), None)
    if entry is None or not entry.run_id:
        return version, False, None
    if entry.data == record.request.lineage.get("data"):
        return version, True, None
    try:
        theirs = Record(record.workdir, RunDir(record.workdir.runs / entry.run_id))
    except SafelightError:
        return version, False, None
    before = theirs.table("images", _COLUMNS)
    usable = before is not None and before.num_rows and "label" in before.column_names
    return version, False, before if usable else None


def _of(table: pa.Table, split: str) -> pa.Table:
    return table.filter(pa.compute.equal(table["split"], split))


def _shares(table: pa.Table) -> dict[str, float]:
    """Returns each class's share of the images."""
    counted = table["label"].value_counts().to_pylist()
    return {str(row["values"]): row["counts"] / table.num_rows for row in counted}


def _distance(one: Mapping[str, float], other: Mapping[str, float]) -> float | None:
    """Returns the largest difference of a share; None where there is no image on a side."""
    if not one or not other:
        return None
    return max(abs(one.get(name, 0.0) - other.get(name, 0.0)) for name in {**one, **other})


def _classes(before: Mapping[str, float], now: Mapping[str, float]) -> list[ClassMove]:
    """Returns the classes that moved most."""
    moves = [
        ClassMove(name, before.get(name, 0.0), now.get(name, 0.0)) for name in {**before, **now}
    ]
    moved = [move for move in moves if move.now != move.before]
    return sorted(moved, key=lambda move: (-abs(move.now - move.before), move.name))[:_CLASSES]


def _facts(table: pa.Table, before: pa.Table | None) -> list[FactMove]:
    found = []
    for column, name in _FACTS.items():
        if column not in table.column_names:
            continue
        now = _floats(table, column)
        earlier = (
            _floats(before, column)
            if before is not None and column in before.column_names
            else np.empty(0)
        )
        splits = [_floats(_of(table, split), column) for split in (TRAIN, TEST)]
        edges = _edges(np.concatenate([now, earlier]))
        if edges is None:
            continue
        found.append(
            FactMove(
                name=name,
                champion=_moved(earlier, now, edges),
                splits=_moved(splits[0], splits[1], edges),
                chart=_chart(name, earlier, now, edges),
            )
        )
    return found


def _floats(table: pa.Table, column: str) -> Floats:
    values = table[column].to_numpy().astype(np.float64)
    return values[np.isfinite(values)]


def _edges(values: Floats) -> Floats | None:
    """Returns even bins between the extreme thousandths; None where all values are one."""
    if not len(values):
        return None
    low, high = np.quantile(values, (0.001, 0.999))
    return np.linspace(low, high, _BINS + 1) if high > low else None


def _histogram(values: Floats, edges: Floats) -> Floats:
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return counts / max(1, len(values))


def _moved(one: Floats, other: Floats, edges: Floats) -> float | None:
    if not len(one) or not len(other):
        return None
    return jensen_shannon(_histogram(one, edges), _histogram(other, edges))


def _chart(name: str, before: Floats, now: Floats, edges: Floats) -> Markup:
    """Draws both spreads; nothing without the champion's."""
    if not len(before):
        return Markup("")
    named: Sequence[tuple[str, Sequence[float]]] = [
        ("champion's data", _histogram(before, edges).tolist()),
        ("this data", _histogram(now, edges).tolist()),
    ]
    medians = [formats.short(float(np.median(values))) for values in (before, now)]
    title = f"{name}: half of the champion's images lie below {medians[0]}, of these {medians[1]}"
    return diagrams.spreads(title, edges.tolist(), named, formats.short)
