"""Reads single images back from an examples artifact, without TensorFlow.

images.parquet has its rows in the order of the records: a row's number within its split leads to
its record by the framing alone (12 bytes a record), however large the images are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.features import ID, IMAGE, LABEL
from pipeline.ingest import wire
from pipeline.ingest.records import FOOTER_BYTES, HEADER, HEADER_BYTES


@dataclass(frozen=True)
class StoredImage:
    """One image as ingest stored it; `encoded` is the file's bytes, or those of its PNG."""

    id: bytes
    label: str
    encoded: bytes


def read(examples: Path, split: str, rows: Iterable[int]) -> dict[int, StoredImage]:
    """Returns the images at these places of a split, counted from 0, as far as there are such."""
    return dict(each(examples, split, rows))


def each(examples: Path, split: str, rows: Iterable[int]) -> Iterator[tuple[int, StoredImage]]:
    """Yields (place, image) as `read` has them: one by one, since photographs take megabytes."""
    wanted = sorted(set(rows))
    first = 0
    for path in sorted((examples / f"Split-{split}").glob("data_tfrecord-*")):
        if not wanted or wanted[-1] < first:
            break
        count = 0
        for place, record in _pick(path, [row - first for row in wanted if row >= first]):
            count = place + 1
            if record is not None:
                yield first + place, _image(record)
        first += count


def _pick(path: Path, places: Sequence[int]) -> Iterator[tuple[int, bytes | None]]:
    """Yields (place, data) for each record of a file; the data only of those at `places`."""
    chosen = set(places)
    with open(path, "rb") as file:
        place = 0
        while len(header := file.read(HEADER_BYTES)) == HEADER_BYTES:
            size, _ = HEADER.unpack(header)
            record = file.read(size) if place in chosen else None
            if record is not None and len(record) < size:
                return
            file.seek(FOOTER_BYTES if record is not None else size + FOOTER_BYTES, 1)
            yield place, record
            place += 1


def _image(record: bytes) -> StoredImage:
    values = wire.unpack(record)
    return StoredImage(
        id=_first(values, ID),
        label=_first(values, LABEL).decode("utf-8", errors="backslashreplace"),
        encoded=_first(values, IMAGE),
    )


def _first(values: dict[str, list[bytes] | list[int] | list[float]], name: str) -> bytes:
    value = values[name][0]
    if not isinstance(value, bytes):
        raise wire.WireError(f"the feature {name!r} is no bytes")
    return value
