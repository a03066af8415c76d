"""What the forms of data have in common: images to be read, and problems known without reading."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from pipeline import features
from pipeline.errors import DataRefused

# What people call the splits, and what they are here.
SPLIT_NAMES = {
    "train": features.TRAIN,
    "training": features.TRAIN,
    "val": features.EVAL,
    "valid": features.EVAL,
    "validation": features.EVAL,
    "dev": features.EVAL,
    "eval": features.EVAL,
    "test": features.TEST,
    "testing": features.TEST,
}

# Reasons of which a single image is enough to refuse the data; only a record can have them.
MULTI_LABEL, LINE_BREAK = "multi_label", "line_break"

# Features of a tf.Example that a manifest's own columns become.
TARGET, CLASS, SLICE = features.TARGET, features.CLASS, features.SLICE


class Entry(NamedTuple):
    """One image that the data names; a plain tuple, because there may be millions.

    Attributes:
      path: relative to the root, as the file system spells it.
      size: of the file or the record, in bytes.
      mtime_ns: of the file.
      label: the class, or None where only the record itself says (TFRecords).
      split: train, eval or test as the data gives it, or None.
      group: what must not be torn apart, or None.
      extra: (feature, value) pairs from a manifest: numeric targets and slices.
      offset: where the record begins in a TFRecord file, or -1 for a file of its own.
    """

    path: bytes
    size: int
    mtime_ns: int
    label: str | None
    split: str | None = None
    group: str | None = None
    extra: tuple[tuple[str, float | str], ...] = ()
    offset: int = -1

    @property
    def id(self) -> bytes:
        """What names the image in every later stage."""
        return self.path if self.offset < 0 else b"%s#%d" % (self.path, self.offset)


class Problem(NamedTuple):
    """One thing that is kept out, with a reason: a row of the quarantine."""

    path: bytes
    reason: str
    detail: str
    label: str | None


@dataclass
class Ignored:
    """What is no image and was never meant to be one: named up to a bound, and counted."""

    names: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, path: bytes) -> None:
        """Counts a file or folder, and keeps its name while there are few."""
        self.count += 1
        if len(self.names) < 20:
            self.names.append(shown(path))


@dataclass(frozen=True)
class Corrected:
    """What a table of corrections changed: images by what became of them.

    `fingerprint` has 16 hexadecimal digits, of what the table decides.
    """

    file: str
    relabelled: int
    removed: int
    fingerprint: str


@dataclass(frozen=True)
class Listing:
    """Everything that the data names.

    Attributes:
      form: folders, splits, manifest or tfrecords.
      root: the folder that the paths are relative to.
      entries: in the order of their paths.
      problems: known without reading a pixel.
      ignored: stray files.
      given: the splits that the data itself gives, or empty.
      corrected: what ingest.corrections changed, where it is set.
    """

    form: str
    root: Path
    entries: list[Entry]
    problems: list[Problem]
    ignored: Ignored
    given: frozenset[str] = frozenset()
    corrected: Corrected | None = None


def shown(path: bytes) -> str:
    """Returns a path for people: what is not UTF-8 or not printable is escaped."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def path_hash(entry_id: bytes) -> bytes:
    """Returns the 8 bytes that order images: the same on every machine, mixing the classes."""
    return blake2b(entry_id, digest_size=8).digest()


def class_name(raw: bytes) -> str:
    """Returns the class that a folder's name means: NFC, and what is not UTF-8 escaped.

    Raises:
      DataRefused: the name has a line break, which TFX's vocabulary files can't hold.
    """
    name = unicodedata.normalize("NFC", raw.decode("utf-8", "backslashreplace"))
    return checked_class(name)


def checked_class(name: str) -> str:
    """Returns `name`, or raises DataRefused if no class can be called that."""
    if "\n" in name or "\r" in name:
        raise DataRefused(
            f"The class name {name!r} has a line break in it; expected a name of one line. "
            "Rename the class."
        )
    return name


def absolute(root: Path, path: bytes) -> bytes:
    """Returns the file's whole path as bytes: it need not be valid UTF-8."""
    return os.path.join(os.fsencode(root), path)


class _HasSize(Protocol):
    @property
    def size(self) -> int:
        """Bytes."""


Item = TypeVar("Item", bound=_HasSize)


def cut(items: Sequence[Item], most: int, most_bytes: int) -> Iterator[Sequence[Item]]:
    """Cuts items into runs of at most `most` items and about `most_bytes` bytes."""
    start = total = 0
    for index, item in enumerate(items):
        if index > start and (total >= most_bytes or index - start >= most):
            yield items[start:index]
            start, total = index, 0
        total += item.size
    if start < len(items):
        yield items[start:]
