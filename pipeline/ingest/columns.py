"""The classes of a manifest's further columns, in an order that stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import DataRefused
from pipeline.features import CLASS
from pipeline.ingest.rows import Rows


def classes(
    columns: Sequence[str],
    known: Mapping[str, Sequence[str]],
    rows: Rows,
    kept: npt.NDArray[np.bool_],
    parts: Path,
) -> dict[str, list[str]]:
    """Returns each column's classes: the known ones in their order, then new ones by name.

    Args:
      columns: of the manifest.
      known: the champion's classes, by column.
      rows: of all pieces.
      kept: bool [rows], the images that stay.
      parts: the folder with the pieces' files.

    Raises:
      DataRefused: a column holds fewer than two classes.
    """
    if not columns:
        return {}
    present: dict[str, set[str]] = {column: set() for column in columns}
    for number, (start, end) in enumerate(zip(rows.starts, rows.starts[1:], strict=False)):
        names = [CLASS + column for column in columns]
        table = pq.read_table(parts / f"rows-{number:05d}.parquet", columns=names)
        table = table.filter(pa.array(kept[start:end]))
        for column in columns:
            present[column].update(pc.unique(table[CLASS + column]).to_pylist())
    for column, found in present.items():
        if len(found) < 2:
            only = f"one class, {next(iter(found))!r}" if found else "no class"
            raise DataRefused(
                f"The column {column!r} of the manifest holds {only}; a class head (train.heads) "
                "needs at least two. Add images of another, or leave the head out."
            )
    return {
        column: [*known.get(column, ()), *sorted(found - set(known.get(column, ())))]
        for column, found in present.items()
    }
