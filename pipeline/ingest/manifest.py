"""A manifest: CSV, TSV or JSON lines that name each image's path, label, and more.

Paths are relative to the manifest. Columns are found by their usual names, or named in the
configuration; `ingest.targets` (numbers), `ingest.class_columns` (classes beside the label) and
`ingest.slices` (words) are carried into the Examples as `target_<name>`, `class_<name>` and
`slice_<name>`.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Ingest
from pipeline.config.slices import FACTS
from pipeline.errors import DataRefused, bounded, did_you_mean
from pipeline.ingest import manifest_rows
from pipeline.ingest.entries import (
    CLASS,
    SLICE,
    SPLIT_NAMES,
    TARGET,
    Entry,
    Ignored,
    Listing,
    Problem,
    class_name,
    shown,
)
from pipeline.ingest.manifest_rows import cell
from pipeline.ingest.splits import given_splits

_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
_NAMES = ("manifest", "metadata", "labels")
_PATH = ("path", "file", "filename", "file_name", "filepath", "image", "image_path")
_LABEL = ("label", "class", "category", "class_name")
_SPLIT = ("split", "set", "subset")
_GROUP = ("group", "group_id")
_SEPARATORS = "|;,"
_LARGEST = 3.4e38


def is_manifest(name: str) -> bool:
    """Says whether a file's name is one that a manifest may have."""
    return name.lower().endswith(_SUFFIXES)


def default_manifest(root: Path) -> Path | None:
    """Returns `manifest.csv`, `manifest.jsonl` or the like in `root`; None if there is none.

    `metadata.*` and `labels.*` count only where they have a column of paths and one of labels.

    Raises:
      DataRefused: there are two.
    """
    found = [root / name for name in _candidates(root)]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataRefused(
            f"{root} has {len(found)} manifests ({names}). Name one with "
            "--set ingest.manifest=FILE."
        )
    return found[0] if found else None


def _candidates(root: Path) -> list[str]:
    names = sorted(
        entry.name
        for entry in os.scandir(root)
        if is_manifest(entry.name)
        and entry.name.rsplit(".", 1)[0].lower() in _NAMES
        and os.path.isfile(entry)
    )
    manifests = [name for name in names if name.lower().startswith("manifest.")]
    return manifests or [name for name in names if _has_columns(root / name)]


def _has_columns(path: Path) -> bool:
    try:
        _, row = next(manifest_rows.rows(path))
    except StopIteration:
        return False
    except DataRefused:
        row = None
    # Damage to its first row makes it no less a manifest: it is then refused, or the row is.
    names = {str(name).strip().lower() for name in row or manifest_rows.header(path)}
    return bool(names & set(_PATH)) and bool(names & set(_LABEL))


@dataclass(frozen=True)
class _Columns:
    path: str
    label: str
    split: str | None
    group: str | None


class _Row(Exception):
    """A row that is kept out: (reason, detail)."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


def read(path: Path, options: Ingest, ignored: Ignored) -> Listing:
    """Lists the images that a manifest names.

    Raises:
      DataRefused: the manifest has no rows, lacks a column, names an unknown split, or gives an
        image several labels.
    """
    reader = _Reader(path, options)
    for line, row in manifest_rows.rows(path):
        reader.take(line, row)
    if reader.columns is None:
        unread = len(reader.problems)
        why = f"no row that can be parsed (of {unread})" if unread else "no row"
        raise DataRefused(f"The manifest {path} has {why}; expected one for each image.")
    reader.refuse_multi_label()
    reader.refuse_unknown_slices()
    reader.entries.sort(key=lambda entry: entry.path)
    given = given_splits(entry.split for entry in reader.entries)
    return Listing("manifest", path.parent, reader.entries, reader.problems, ignored, given)


class _Reader:
    def __init__(self, path: Path, options: Ingest) -> None:
        self.entries: list[Entry] = []
        self.problems: list[Problem] = []
        self.columns: _Columns | None = None
        self._said: set[str] = set()
        self._manifest = path
        self._options = options
        self._root = os.fsencode(path.parent)
        self._below_root = self._root.rstrip(b"/") + b"/"
        self._real_root = os.path.realpath(self._root)
        self._real_folders: dict[bytes, bytes] = {}

    def take(self, line: int, row: Mapping[str, Any] | None) -> None:
        """Makes a row an entry or a problem."""
        where = b"%s:%d" % (os.fsencode(self._manifest.name), line)
        if row is None:
            self.problems.append(Problem(where, "unreadable", "the line can't be parsed", None))
            return
        if self._options.slices:
            self._said.update(map(str, row))
        if self.columns is None:
            self.columns = self._find_columns(row)
        path = cell(row.get(self.columns.path)).strip()
        label = None
        try:
            if not path:
                raise _Row("missing", "the row names no file")
            label = self._label(row, line)
            self.entries.append(self._entry(path, label, row, line))
        except _Row as bad:
            self.problems.append(Problem(path or where, bad.reason, bad.detail, label))

    def refuse_multi_label(self) -> None:
        """Raises DataRefused where labels are lists in disguise, or files stand under several."""
        labels = {str(entry.label) for entry in self.entries}
        for separator in _SEPARATORS:
            for label in sorted(labels):
                parts = [part.strip() for part in label.split(separator)]
                if len(parts) > 1 and all(part in labels for part in parts):
                    raise DataRefused(_multi_label(f"{self._manifest} has the label {label!r}"))
        by_path: dict[bytes, set[str]] = {}
        for entry in self.entries:
            by_path.setdefault(entry.path, set()).add(str(entry.label))
        several = [path for path, names in by_path.items() if len(names) > 1]
        if len(several) > self._options.error_budget * len(by_path):
            names = ", ".join(sorted(by_path[several[0]]))
            raise DataRefused(
                _multi_label(
                    f"{self._manifest} names {len(several)} of {len(by_path)} images under several "
                    f"labels ({shown(several[0])}: {names})"
                )
            )

    def refuse_unknown_slices(self) -> None:
        """Raises DataRefused where no row of JSON lines has a column that is sliced by."""
        missing = [name for name in self._options.slices if name not in self._said]
        if missing and self.entries:
            raise DataRefused(self._no_column(missing[0], dict.fromkeys(self._said)))

    def _no_column(self, name: str, row: Mapping[str, Any]) -> str:
        known = map(str, (*row, *FACTS) if name in self._options.slices else row)
        return (
            f"The manifest {self._manifest} has no column {name!r}, which train.heads, "
            "ingest.targets, ingest.class_columns, ingest.slices or evaluate.slices names."
            f"{did_you_mean(name, known)}"
        )

    def _find_columns(self, row: Mapping[str, Any]) -> _Columns:
        options = self._options
        missing = [
            name
            for name in (*options.targets, *options.class_columns, *options.slices)
            if name not in row and not self._is_json()
        ]
        if missing:
            raise DataRefused(self._no_column(missing[0], row))
        path = self._column(row, "path_column", options.path_column, _PATH)
        label = self._column(row, "label_column", options.label_column, _LABEL)
        assert path is not None and label is not None
        split = self._column(row, "split_column", options.split_column, _SPLIT, needed=False)
        group = self._column(row, "group_column", options.group_column, _GROUP, needed=False)
        further = (*options.targets, *options.class_columns, *options.slices)
        self._refuse_ambiguous({path, label, split, group, *further})
        return _Columns(path, label, split, group)

    def _refuse_ambiguous(self, used: Collection[str | None]) -> None:
        """Raises DataRefused where a CSV has two columns of one name: which is meant?"""
        names = [] if self._is_json() else manifest_rows.header(self._manifest)
        for name in names:
            if name in used and names.count(name) > 1:
                raise DataRefused(
                    f"The manifest {self._manifest} has {names.count(name)} columns called "
                    f"{name!r}; expected one. Rename or remove the others."
                )

    def _column(
        self,
        row: Mapping[str, Any],
        key: str,
        wanted: str,
        usual: tuple[str, ...],
        needed: bool = True,
    ) -> str | None:
        lower = {str(name).strip().lower(): str(name) for name in row}
        if wanted:
            if wanted in row:
                return wanted
            if self._is_json() and not needed:
                return wanted
            raise DataRefused(
                f"The manifest {self._manifest} has no column {wanted!r} (ingest.{key})."
                f"{did_you_mean(wanted, map(str, row))}"
            )
        for name in usual:
            if name in lower:
                return lower[name]
        if self._is_json() and not needed:
            return usual[0]
        if not needed:
            return None
        if key == "label_column" and "labels" in lower:
            raise DataRefused(_multi_label(f"{self._manifest} has a column 'labels'"))
        raise DataRefused(
            f"The manifest {self._manifest} has the columns {bounded(list(lower), 12)}; expected "
            f"one of {', '.join(usual)}. Name yours with --set ingest.{key}=NAME."
        )

    def _is_json(self) -> bool:
        return self._manifest.suffix.lower() in (".jsonl", ".ndjson")

    def _label(self, row: Mapping[str, Any], line: int) -> str:
        assert self.columns is not None
        value = row.get(self.columns.label)
        if isinstance(value, list):
            if len(value) != 1:
                raise DataRefused(
                    _multi_label(f"{self._manifest}, line {line}, has {len(value)} labels")
                )
            value = value[0]
        if isinstance(value, dict | list):
            raise _Row("no_label", "the label is a structure; expected a word or a number")
        text = cell(value).strip()
        if not text:
            raise _Row("no_label", "the label is empty")
        return class_name(text)

    def _entry(self, path: bytes, label: str, row: Mapping[str, Any], line: int) -> Entry:
        assert self.columns is not None
        relative, state = self._file(path)
        group = cell(row.get(self.columns.group)).strip() if self.columns.group else b""
        return Entry(
            relative,
            state.st_size,
            state.st_mtime_ns,
            label,
            self._split(row, line),
            group.decode("utf-8", "backslashreplace") or None,
            tuple(self._extra(row)),
        )

    def _split(self, row: Mapping[str, Any], line: int) -> str | None:
        assert self.columns is not None
        text = cell(row.get(self.columns.split)).strip() if self.columns.split else b""
        if not text:
            return None
        split = SPLIT_NAMES.get(text.decode("utf-8", "replace").casefold())
        if split is None:
            raise DataRefused(
                f"{self._manifest}, line {line}: unknown split {shown(text)!r}; expected one of "
                f"{', '.join(SPLIT_NAMES)}, or nothing."
            )
        return split

    def _extra(self, row: Mapping[str, Any]) -> Iterator[tuple[str, float | str]]:
        for name in self._options.targets:
            yield TARGET + name, _number(name, row.get(name))
        for name in self._options.class_columns:
            yield CLASS + name, _class(name, row.get(name))
        for name in self._options.slices:
            value = cell(row.get(name)).strip().decode("utf-8", "backslashreplace")
            yield SLICE + name, value or "missing"

    def _file(self, path: bytes) -> tuple[bytes, os.stat_result]:
        """Returns the path relative to the root and the file's state, or raises _Row."""
        if b"\0" in path:
            raise _Row("missing", "the path has a zero byte in it")
        whole = os.path.normpath(os.path.join(self._root, path))
        folder, name = os.path.split(whole)
        if folder not in self._real_folders:
            self._real_folders[folder] = os.path.realpath(folder)
        real = os.path.join(self._real_folders[folder], name)
        try:
            if os.path.islink(real):
                real = os.path.realpath(real)
            inside = real.startswith(self._real_root.rstrip(b"/") + b"/")
            if not inside and not self._options.follow_links:
                raise _Row(
                    "outside",
                    "the path leaves the manifest's folder; ingest.follow_links=true allows it",
                )
            state = os.stat(real)
        except FileNotFoundError:
            raise _Row("missing", "there is no such file") from None
        except OSError as error:
            raise _Row("unreadable", error.strerror or str(error)) from None
        if not stat.S_ISREG(state.st_mode):
            raise _Row("unreadable", "a folder or a device; expected a regular file")
        if whole.startswith(self._below_root):  # relpath costs as much as all else together
            return whole[len(self._below_root) :], state
        return os.path.relpath(whole, self._root), state


def _number(name: str, value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    # What the Examples hold is a float32.
    if isinstance(value, bool) or not abs(number) <= _LARGEST:
        raise _Row("bad_target", f"{name} is {value!r}; expected a number")
    return number


def _class(name: str, value: object) -> str:
    text = b"" if isinstance(value, dict | list) else cell(value).strip()
    if not text:
        raise _Row("bad_target", f"{name} is {value!r}; expected a class")
    return class_name(text)


def _multi_label(what: str) -> str:
    return (
        f"{what}: this is multi-label data, which Safelight does not train on. "
        "Expected one label for each image."
    )
