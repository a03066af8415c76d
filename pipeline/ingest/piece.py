"""One piece of ingest's work: decode its images and write their records, facts and problems.

In the folder of parts, the piece with number N leaves
`<split>-N-<part>` (TFRecords), `rows-N.parquet` (a row for each record, in the order in which they
were written), `thumbs-N.bin` (THUMB_BYTES a row, if near duplicates are looked for) and
`bad-N.parquet` (what is quarantined).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import features
from pipeline.ingest import plan, splits
from pipeline.ingest.child import Bad, Good
from pipeline.ingest.entries import TARGET, Entry
from pipeline.ingest.pool import Pool, chunks

ROWS_AT_ONCE = 4096
# Pictures of bad files that a piece keeps, so that a folder of nothing else stays small.
DRAWN_PER_REASON = 100

FACTS: tuple[tuple[str, pa.DataType], ...] = (
    ("height", pa.int32()),
    ("width", pa.int32()),
    ("channels", pa.int32()),
    ("byte_size", pa.int64()),
    *((name, pa.float32()) for name in features.FLOAT_FACTS),
    ("channel_mean", pa.list_(pa.float32())),
    ("channel_std", pa.list_(pa.float32())),
    ("format", pa.string()),
)
BAD = pa.schema(
    [
        ("path", pa.binary()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("label", pa.string()),
        ("thumbnail", pa.binary()),
    ]
)


def rows_schema(extra: tuple[str, ...]) -> pa.Schema:
    """Returns the columns of `rows-N.parquet`; `extra` names a manifest's targets and slices."""
    return pa.schema(
        [
            ("id", pa.binary()),
            ("split", pa.int8()),
            ("part", pa.int32()),
            ("label", pa.string()),
            ("group", pa.string()),
            ("sha256", pa.binary(32)),
            ("phash", pa.uint64()),
            ("converted", pa.string()),
            *FACTS,
            *((name, pa.float64() if name.startswith(TARGET) else pa.string()) for name in extra),
        ]
    )


class RecordWriter(Protocol):
    """What `tf.io.TFRecordWriter` does; TensorFlow itself is not imported here."""

    def write(self, record: bytes) -> None:
        """Appends a record."""

    def close(self) -> None:
        """Flushes and closes the file."""


def write(
    parts: Path,
    number: int,
    pool: Pool,
    rule: splits.Rule,
    extra: tuple[str, ...],
    open_writer: Callable[[str], RecordWriter],
    tick: Callable[[int], None],
) -> None:
    """Writes one piece, in the order of its plan.

    Args:
      parts: the folder of plans and parts.
      number: which piece.
      pool: decodes.
      rule: tells the split.
      extra: names of a manifest's targets and slices.
      open_writer: opens a TFRecord file for writing, by path.
      tick: is told how many images more are done.
    """
    entries = plan.load(parts, number)
    with _Output(parts, number, extra, open_writer) as output:
        done = iter(entries)
        for results in pool.map(chunks(entries)):
            for result in results:
                entry = next(done)
                if isinstance(result, Bad):
                    output.bad(entry, result)
                else:
                    key = result.sha256 if result.group is None else splits.group_key(result.group)
                    output.good(entry, result, rule.split_of(entry.split, key))
            tick(len(results))


class _Output:
    """The files of one piece; closed whatever happens."""

    def __init__(
        self,
        parts: Path,
        number: int,
        extra: tuple[str, ...],
        open_writer: Callable[[str], RecordWriter],
    ) -> None:
        self._parts = parts
        self._number = number
        self._open_writer = open_writer
        self._schema = rows_schema(extra)
        self._rows: list[tuple[Any, ...]] = []
        self._bad: list[tuple[Any, ...]] = []
        self._drawn: Counter[str] = Counter()
        self._writers: dict[str, RecordWriter] = {}
        self._written: dict[str, int] = {}
        self._part: dict[str, int] = {}
        self._table = pq.ParquetWriter(parts / f"rows-{number:05d}.parquet", self._schema)
        self._bads = pq.ParquetWriter(parts / f"bad-{number:05d}.parquet", BAD)
        self._thumbs = (parts / f"thumbs-{number:05d}.bin").open("wb")

    def __enter__(self) -> _Output:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._flush()
        finally:
            for writer in self._writers.values():
                writer.close()
            self._table.close()
            self._bads.close()
            self._thumbs.close()

    def good(self, entry: Entry, image: Good, split: str) -> None:
        """Writes a record and remembers its row."""
        size = len(image.record) + 16
        if split not in self._writers or self._written[split] + size > plan.SHARD_MOST:
            self._next_part(split)
        self._writers[split].write(image.record)
        self._written[split] += size
        self._thumbs.write(image.thumb)
        self._rows.append(
            (
                entry.id,
                plan.SPLIT_CODES[split],
                self._part[split],
                image.label,
                image.group,
                bytes(image.sha256),
                image.phash,
                image.converted,
                image.height,
                image.width,
                image.channels,
                image.byte_size,
                *image.scalars,
                image.channel_mean,
                image.channel_std,
                image.format,
                *(value for _, value in entry.extra),
            )
        )
        if len(self._rows) >= ROWS_AT_ONCE:
            self._flush()

    def bad(self, entry: Entry, problem: Bad) -> None:
        """Remembers what is quarantined."""
        picture = problem.thumbnail
        self._drawn[problem.reason] += picture is not None
        if self._drawn[problem.reason] > DRAWN_PER_REASON:
            picture = None
        self._bad.append((entry.id, problem.reason, problem.detail, problem.label, picture))

    def _next_part(self, split: str) -> None:
        if split in self._writers:
            self._writers[split].close()
        self._part[split] = self._part.get(split, -1) + 1
        self._written[split] = 0
        name = part_name(plan.SPLIT_CODES[split], self._number, self._part[split])
        self._writers[split] = self._open_writer(str(self._parts / name))

    def _flush(self) -> None:
        for rows, schema, writer in (
            (self._rows, self._schema, self._table),
            (self._bad, BAD, self._bads),
        ):
            if rows:
                columns = [
                    pa.array(column, field.type)
                    for column, field in zip(zip(*rows, strict=True), schema, strict=True)
                ]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))
                rows.clear()


def part_name(split: int, number: int, part: int) -> str:
    """Returns the name of a piece's TFRecord file."""
    return f"{features.SPLITS_WITH_CALIB[split]}-{number:05d}-{part:03d}"
