"""From the parts of a split to its shards, without the records that were taken out."""

from __future__ import annotations

import bisect
import shutil
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from pipeline import events
from pipeline.ingest import piece, plan, records
from pipeline.ingest.rows import Rows


def write(
    rows: Rows,
    kept: npt.NDArray[np.bool_],
    parts: Path,
    examples: Path,
    splits: Sequence[str],
) -> None:
    """Joins the parts of each of `splits` into shards, leaving out what was removed."""
    part_numbers = rows.table["part"].to_numpy()
    for split in splits:
        code = plan.SPLIT_CODES[split]
        sources: list[tuple[Path, npt.NDArray[np.bool_]]] = []
        for number, (start, end) in enumerate(zip(rows.starts, rows.starts[1:], strict=False)):
            here = rows.index.splits[start:end] == code
            for part in np.unique(part_numbers[start:end][here]):
                mine = here & (part_numbers[start:end] == part)
                path = parts / piece.part_name(code, number, int(part))
                sources.append((path, kept[start:end][mine]))
        _write_split(split, sources, examples / f"Split-{split}")


def read(rows: Rows, positions: Sequence[int], parts: Path) -> Iterator[tuple[int, bytes]]:
    """Yields (position, record) of some rows, from the parts as they were first written."""
    wanted: dict[Path, dict[int, int]] = {}
    numbers, splits = rows.table["part"].to_numpy(), rows.index.splits
    for position in positions:
        number = bisect.bisect_right(rows.starts, position) - 1
        split, part = int(splits[position]), int(numbers[position])
        before = slice(rows.starts[number], position)
        place = int(np.sum((splits[before] == split) & (numbers[before] == part)))
        path = parts / piece.part_name(split, number, part)
        wanted.setdefault(path, {})[place] = position
    for path, places in wanted.items():
        with open(path, "rb") as file:
            for place, frame in enumerate(_frames(file)):
                if place in places:
                    yield places[place], frame[records.HEADER_BYTES : -records.FOOTER_BYTES]


def _write_split(
    split: str, sources: list[tuple[Path, npt.NDArray[np.bool_]]], folder: Path
) -> None:
    for place, (path, keep) in enumerate(sources):
        if not keep.all():
            sources[place] = (_without(path, keep), keep)
    sources = [(path, keep) for path, keep in sources if keep.any()]
    runs = list(plan.groups_of_shards([path.stat().st_size for path, _ in sources]))
    folder.mkdir(parents=True)
    for number, run in enumerate(runs):
        target = folder / f"data_tfrecord-{number:05d}-of-{len(runs):05d}"
        first = sources[run[0]][0]
        if len(run) > 1:
            with open(first, "ab") as out:
                for other in run[1:]:
                    with open(sources[other][0], "rb") as file:
                        shutil.copyfileobj(file, out, 1 << 20)
                    sources[other][0].unlink()
        first.rename(target)
        events.progress("ImageExampleGen", number + 1, len(runs), "shards", split)


def _without(path: Path, keep: npt.NDArray[np.bool_]) -> Path:
    """Copies the records that are kept, framing and all; returns the copy's path."""
    copy = path.with_name(path.name + ".kept")
    with open(path, "rb") as file, open(copy, "wb") as out:
        for frame, wanted in zip(_frames(file), keep, strict=True):
            if wanted:
                out.write(frame)
    path.unlink()
    return copy


def _frames(file: BinaryIO) -> Iterator[bytes]:
    while header := file.read(records.HEADER_BYTES):
        size = struct.unpack("<Q", header[:8])[0]
        yield header + file.read(size + records.FOOTER_BYTES)
