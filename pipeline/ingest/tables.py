"""The Parquet files of the ingest report: images kept, and what was found twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import features
from pipeline.ingest import decide, near, piece
from pipeline.ingest.rows import Rows

MOST_PAIRS = 1000


def write_images(
    extra: tuple[str, ...],
    rows: Rows,
    kept: npt.NDArray[np.bool_],
    parts: Path,
    report: Path,
) -> None:
    """Writes images.parquet piece by piece: id, split, label, sha256, group and the facts."""
    names = ["id", "split", "label", "sha256", "group", *(name for name, _ in piece.FACTS)]
    schema = piece.rows_schema(extra)
    fields = [schema.field(name) for name in (*names, *extra)]
    fields[1], fields[3] = pa.field("split", pa.string()), pa.field("sha256", pa.string())
    wanted = pa.schema(fields)
    with pq.ParquetWriter(report / "images.parquet", wanted) as writer:
        for number, (start, end) in enumerate(zip(rows.starts, rows.starts[1:], strict=False)):
            columns = [field.name for field in wanted]
            source = pq.ParquetFile(parts / f"rows-{number:05d}.parquet")
            position = start
            # A piece of bad files alone has no rows, which newer pyarrow refuses to read.
            batches = (
                source.iter_batches(piece.ROWS_AT_ONCE, columns=columns) if end > start else ()
            )
            for batch in batches:
                mask = pa.array(kept[position : position + batch.num_rows])
                position += batch.num_rows
                writer.write_table(_for_people(pa.Table.from_batches([batch]).filter(mask), wanted))
            assert position == end


def _for_people(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Spells out the split's code and the hash."""
    names = features.SPLITS_WITH_CALIB
    split = pa.array([names[code] for code in table["split"].to_pylist()], pa.string())
    sha256 = pa.array([value.hex() for value in table["sha256"].to_pylist()], pa.string())
    spelled = {"split": split, "sha256": sha256}
    return pa.table([spelled.get(name, table[name]) for name in schema.names], schema=schema)


def write_pairs(
    rows: Rows, decisions: decide.Decisions, alike: near.Pairs | None, report: Path
) -> None:
    """Writes duplicates.parquet: what was dropped, or only reported, and what it equals."""
    index = rows.index
    lines: list[tuple[Any, ...]] = []
    for removed, kept in sorted(decisions.pairs, key=lambda pair: index.ids(pair[0])):
        kind = decide.KINDS[decisions.codes[removed]]
        lines.append(_pair(index, kind, removed, kept, True, 0, 0.0))
    for pair in alike.first(MOST_PAIRS) if alike else ():
        dropped = decisions.codes[pair.nearer] == decide.NEAR_DUPLICATE
        lines.append(
            _pair(
                index,
                "near_duplicate",
                pair.nearer,
                pair.further,
                bool(dropped),
                pair.distance,
                pair.difference,
            )
        )
    schema = pa.schema(
        [
            ("kind", pa.string()),
            ("id", pa.binary()),
            ("split", pa.string()),
            ("label", pa.string()),
            ("other_id", pa.binary()),
            ("other_split", pa.string()),
            ("other_label", pa.string()),
            ("dropped", pa.bool_()),
            ("distance", pa.int32()),
            ("difference", pa.float64()),
        ]
    )
    columns = list(zip(*lines, strict=True)) if lines else [()] * len(schema)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
    pq.write_table(pa.table(arrays, schema=schema), report / "duplicates.parquet")


def _pair(
    index: decide.Index,
    kind: str,
    one: int,
    other: int,
    dropped: bool,
    distance: int,
    difference: float,
) -> tuple[Any, ...]:
    return (
        kind,
        index.ids(one),
        features.SPLITS_WITH_CALIB[index.splits[one]],
        index.label_names[index.labels[one]],
        index.ids(other),
        features.SPLITS_WITH_CALIB[index.splits[other]],
        index.label_names[index.labels[other]],
        dropped,
        distance,
        difference,
    )
