"""TFRecord files, found and indexed by their framing: a record is an image that has an offset.

Each record is `length (8 bytes), CRC of the length, data, CRC of the data`, the CRCs being masked
CRC-32C, as TensorFlow's `record_writer.h` says. Indexing reads 12 bytes of each record.
"""

from __future__ import annotations

import gzip
import importlib
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import BinaryIO

from pipeline.ingest import walk
from pipeline.ingest.entries import SPLIT_NAMES, Entry, Ignored, Listing, Problem, absolute
from pipeline.ingest.splits import given_splits

HEADER = struct.Struct("<QI")
HEADER_BYTES = 12
FOOTER_BYTES = 4

_NAME = re.compile(rb"(\.tfrec(ord)?s?([.-].*)?|-\d{5}-of-\d{5}(\.gz)?)$", re.IGNORECASE)
_POLYNOMIAL = 0x82F63B78


def is_records(name: str | bytes) -> bool:
    """Says whether a file is called as TFRecords are: x.tfrecord, train-00000-of-00010, x.gz."""
    raw = name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name
    return _NAME.search(raw.rsplit(b"/", 1)[-1]) is not None


def holds_records(root: Path) -> bool:
    """Says whether `root`, or a folder in it, holds a file that is called as TFRecords are."""
    places = [root, *(root / name for name in walk.folders(root))]
    return any(is_records(name) for place in places for name in _names(place))


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:  # the walk quarantines it
        return []


def read(root: Path, ignored: Ignored, follow_links: bool = False) -> Listing:
    """Lists the records of one file, or of every TFRecord file below a folder.

    A file's split is the one that its name begins with (`validation-00000-of-00128`), or its
    folder's name. `follow_links` says whether a symbolic link may lead outside the folder.
    """
    if root.is_file():
        state = root.stat()
        name = root.name.encode("utf-8", "surrogateescape")
        root, found = root.parent, [walk.File(name, state.st_size, state.st_mtime_ns)]
        problems: list[Problem] = []
    else:
        found, problems = walk.files(root, follow_links, ignored, lambda path: not is_records(path))
    entries: list[Entry] = []
    for file in found:
        split = _split_of(file.path)
        try:
            for offset, size in index(absolute(root, file.path)):
                entries.append(Entry(file.path, size, file.mtime_ns, None, split, None, (), offset))
        except (OSError, EOFError, zlib.error, FramingError) as error:
            reason = "truncated" if "end" in str(error).lower() else "unreadable"
            problems.append(Problem(file.path, reason, f"TFRecord: {error}", None))
    given = given_splits(entry.split for entry in entries)
    return Listing("tfrecords", root, entries, problems, ignored, given)


class FramingError(Exception):
    """What follows the last good record is no record."""


def index(path: bytes) -> Iterator[tuple[int, int]]:
    """Yields (offset, bytes of data) of each record; offsets of a .gz count unpacked bytes.

    Raises:
      FramingError: the file is damaged from here on, or ends within a record.
      OSError, EOFError, zlib.error: from reading or unpacking.
    """
    with opened(path) as file:
        offset = 0
        while header := file.read(HEADER_BYTES):
            if len(header) < HEADER_BYTES:
                raise FramingError(f"the file ends within a record's header at byte {offset}")
            size, checksum = HEADER.unpack(header)
            if masked(crc32c(header[:8])) != checksum:
                raise FramingError(f"no record begins at byte {offset}: its checksum is wrong")
            # Reading the last byte, where seeking would run past the end without a word.
            file.seek(offset + HEADER_BYTES + size + FOOTER_BYTES - 1)
            if not file.read(1):
                raise FramingError(f"the file ends within the record at byte {offset}")
            yield offset, size
            offset += HEADER_BYTES + size + FOOTER_BYTES


def opened(path: bytes) -> BinaryIO | gzip.GzipFile:
    """Opens a TFRecord file, unpacking gzip (which its first bytes tell, not its name)."""
    return gzip.open(path, "rb") if is_packed(path) else open(path, "rb")


def unpack_all(found: Listing, folder: Path) -> None:
    """Unpacks compressed TFRecords below `folder`: their records are read in any order."""
    if found.form != "tfrecords":
        return
    for path in sorted({entry.path for entry in found.entries}):
        source = absolute(found.root, path)
        if is_packed(source):
            target = folder / os.fsdecode(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            unpack(source, os.fsencode(target))


def unpack(path: bytes, target: bytes) -> None:
    """Unpacks a gzip file; one that ends too early is unpacked as far as it goes."""
    with gzip.open(path, "rb") as file, open(target, "wb") as out:
        try:
            while block := file.read(1 << 20):
                out.write(block)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            return  # the listing has put the damage into the quarantine


def is_packed(path: bytes) -> bool:
    """Says whether a file is gzip-compressed."""
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _split_of(path: bytes) -> str | None:
    folders, _, name = path.rpartition(b"/")
    first = re.split(rb"[^a-z]", name.lower(), maxsplit=1)[0]
    for word in (first, folders.rpartition(b"/")[2].lower()):
        split = SPLIT_NAMES.get(word.decode("ascii", "replace"))
        if split is not None:
            return split
    return None


def _table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = _table()


def crc32c(data: bytes) -> int:
    """Returns the CRC-32C (Castagnoli) of a few bytes; a table's speed is enough for headers."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def fast_crc32c(data: bytes) -> int | None:
    """Returns the CRC-32C of an image's worth of data; None where nothing fast is installed."""
    value = _fast()
    return None if value is None else value(data)


@cache
def _fast() -> Callable[[bytes], int] | None:
    """Both lanes bring google-crc32c along, by way of TFX; without it data goes unchecked."""
    try:
        return importlib.import_module("google_crc32c").value
    except ImportError:
        return None


def masked(crc: int) -> int:
    """Returns TensorFlow's masking of a CRC, which keeps a CRC of CRCs from being weak."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
