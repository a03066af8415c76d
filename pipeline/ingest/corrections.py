"""Corrections: a table that says of single images that their label is wrong, applied to a listing.

`safelight audit-labels` writes such a table, and a person fills in its column `action`: `relabel`
gives an image its `suggested_label`, `remove` leaves it out, `keep` or nothing changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pipeline.config import Ingest
from pipeline.errors import ConfigError, DataRefused, bounded, did_you_mean
from pipeline.ingest import manifest_rows
from pipeline.ingest.entries import Corrected, Entry, Listing, Problem, class_name, shown

RELABEL, REMOVE, KEEP = "relabel", "remove", "keep"
ACTIONS: Final = (RELABEL, REMOVE, KEEP)
# What the quarantine calls an image that a person has left out.
REMOVED: Final = "removed-by-correction"

PATH, LABEL, SUGGESTED, ACTION = "path", "label", "suggested_label", "action"


@dataclass(frozen=True)
class Correction:
    """One decision: the label that an image gets, or None where it is left out."""

    label: str | None
    line: int


def apply(listing: Listing, options: Ingest) -> Listing:
    """Returns the listing as `ingest.corrections` wants it; unchanged where that is not set.

    Raises:
      ConfigError: there is no such file.
      DataRefused: it can't be read, or names an image or a class that DATA has not.
    """
    if not options.corrections:
        return listing
    file = find(options.corrections, listing.root)
    decided = read(file)
    _check(decided, listing, file)
    entries: list[Entry] = []
    problems = list(listing.problems)
    relabelled = removed = 0
    for entry in listing.entries:
        found = decided.get(entry.id)
        if found is None:
            entries.append(entry)
        elif found.label is None:
            detail = f"{file.name}, line {found.line}: action {REMOVE}"
            problems.append(Problem(entry.id, REMOVED, detail, entry.label))
            removed += 1
        else:
            entries.append(entry._replace(label=found.label))
            relabelled += found.label != entry.label
    applied = Corrected(file.name, relabelled, removed, _fingerprint(decided))
    return replace(listing, entries=entries, problems=problems, corrected=applied)


def read(file: Path) -> dict[bytes, Correction]:
    """Returns the decisions of a table by the images' ids; rows without one are left out.

    Raises:
      DataRefused: a column is missing, an action is none, or an image stands in two rows.
    """
    decided: dict[bytes, Correction] = {}
    for line, row in rows(file):
        correction = _correction(file, line, row)
        if correction is None:
            continue
        name = _text(row[PATH]).encode("utf-8", "surrogateescape")
        if name in decided:
            raise DataRefused(
                f"{file} decides twice about {shown(name)} (lines {decided[name].line} and "
                f"{line}). Keep one of the rows."
            )
        decided[name] = correction
    return decided


def rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields (line, columns) of every row.

    Raises:
      DataRefused: it is no CSV, or a row has more columns than the header.
    """
    for line, row in manifest_rows.rows(file):
        if row is None:
            raise DataRefused(
                f"{file}, line {line}: the row has another number of columns than the header. "
                "Put a text with commas in it between double quotes."
            )
        yield line, row


def _correction(file: Path, line: int, row: Mapping[str, Any]) -> Correction | None:
    for column in (PATH, ACTION):
        if column not in row:
            raise DataRefused(
                f"The corrections {file} have no column {column!r}; they have "
                f"{bounded(list(row), 12)}. `safelight audit-labels` writes such a table."
            )
    action = _text(row[ACTION]).strip().lower()
    if action in ("", KEEP):
        return None
    if action not in ACTIONS:
        raise DataRefused(
            f"{file}, line {line}: unknown action {action!r}; expected one of "
            f"{', '.join(ACTIONS)}, or nothing.{did_you_mean(action, ACTIONS)}"
        )
    if action == REMOVE:
        return Correction(None, line)
    label = _text(row.get(SUGGESTED)).strip()
    if not label:
        raise DataRefused(
            f"{file}, line {line}: action {RELABEL} needs a class in the column {SUGGESTED!r}."
        )
    return Correction(class_name(label.encode("utf-8", "surrogateescape")), line)


def _check(decided: Mapping[bytes, Correction], listing: Listing, file: Path) -> None:
    known = {entry.id for entry in listing.entries}
    known.update(problem.path for problem in listing.problems)
    unknown = [name for name in decided if name not in known]
    if unknown:
        places = [f"{shown(name)} (line {decided[name].line})" for name in unknown]
        raise DataRefused(
            f"{file} names {len(unknown)} of {len(decided)} images that are not in "
            f"{listing.root}: {bounded(places)}. Expected paths relative to DATA, as "
            "`safelight audit-labels` writes them. Take these rows out, or name the data that the "
            "audit was made of."
        )
    classes = {entry.label for entry in listing.entries if entry.label is not None}
    if not classes:  # of TFRecords, whose records alone say it
        return
    for one in decided.values():
        if one.label is not None and one.label not in classes:
            raise DataRefused(
                f"{file}, line {one.line}: {one.label!r} is no class of the data."
                f"{did_you_mean(one.label, classes)}"
            )


def find(name: str, root: Path) -> Path:
    """Returns the file that `ingest.corrections` names: from here, or below DATA.

    Raises:
      ConfigError: there is none.
    """
    folder = root if root.is_dir() else root.parent
    for path in (Path(name).expanduser().absolute(), folder / name):
        if path.is_file():
            return path
    raise ConfigError(
        f"ingest.corrections {name!r} does not exist; expected a CSV file, looked for in "
        f"{Path.cwd()} and in {folder}. Make one with `safelight audit-labels`, or leave it out."
    )


def _fingerprint(decided: Mapping[bytes, Correction]) -> str:
    """Returns 16 hexadecimal digits for what was decided, whatever the rows' order."""
    digest = hashlib.sha256()
    for name, one in sorted(decided.items()):
        digest.update(b"%d\0%s\0" % (len(name), name))
        digest.update(repr(one.label).encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()[:16]


def _text(cell: object) -> str:
    return "" if cell is None else str(cell)
