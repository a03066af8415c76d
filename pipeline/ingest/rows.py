"""The rows that the pieces left behind, read back for the decisions that need all of them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.ingest import decide, perceptual


@dataclass
class Rows:
    """The rows of all pieces, as columns; the images' facts stay on disk.

    Attributes:
      table: id, split, part, label, group, phash and converted.
      starts: the first row of each piece, and the number of rows.
      index: the same, as the decisions want it.
    """

    table: pa.Table
    starts: list[int]
    index: decide.Index


def load(parts: Path, pieces: int) -> Rows:
    """Reads what the decisions look at from all of `rows-N.parquet`, in the order of the pieces."""
    wanted = ["id", "split", "part", "label", "group", "sha256", "phash", "converted"]
    tables = [
        pq.read_table(parts / f"rows-{number:05d}.parquet", columns=wanted)
        for number in range(pieces)
    ]
    starts = np.cumsum([0, *(table.num_rows for table in tables)]).tolist()
    table = pa.concat_tables(tables).combine_chunks()
    sha256 = b"".join(value.as_buffer() for value in table["sha256"]) if table.num_rows else b""
    label, label_names = _codes(table["label"])
    group, group_names = _codes(table["group"])
    ids = table["id"]
    index = decide.Index(
        sha256=np.frombuffer(sha256, np.uint64).reshape(-1, 4),
        labels=label,
        splits=table["split"].to_numpy().astype(np.int8),
        groups=group,
        ids=lambda position: ids[int(position)].as_py(),
        label_names=label_names,
        group_names=group_names,
    )
    return Rows(table.drop(["sha256"]), starts, index)


def _codes(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int32], list[str]]:
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    return codes, encoded.dictionary.to_pylist()


def thumbs(parts: Path, rows: Rows) -> npt.NDArray[np.uint8]:
    """Returns all thumbnails, uint8 [rows, bytes], mapped from one file on disk."""
    whole = parts / "thumbs.bin"
    with open(whole, "wb") as out:
        for number in range(len(rows.starts) - 1):
            source = parts / f"thumbs-{number:05d}.bin"
            with open(source, "rb") as file:
                shutil.copyfileobj(file, out, 1 << 20)
            source.unlink()
    return np.memmap(whole, np.uint8, "r").reshape(-1, perceptual.THUMB_BYTES)
