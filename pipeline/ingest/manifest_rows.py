"""The rows of a table of text, CSV, TSV or JSON lines, and what a cell was written as."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pipeline.errors import DataRefused

_LONE = re.compile("[\ud800-\udc7f\udd00-\udfff]")


def rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | None]]:
    """Yields (line, columns) of each row; None for one that can't be parsed.

    The line is the one that the row begins on.

    Raises:
      DataRefused: the file is no CSV from some line on.
    """
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        yield from _json_rows(path)
        return
    found = _csv_rows(path)
    _, names = next(found, (1, []))
    for line, row in found:
        # A cell that the row lacks is None.
        yield line, dict(zip_longest(names, row)) if len(row) <= len(names) else None


def header(path: Path) -> list[str]:
    """Returns the columns of a CSV, whatever the rows below are; none where there is no header."""
    try:
        _, names = next(_csv_rows(path), (1, []))
    except DataRefused:
        return []
    return names


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields (line, cells) of the header and of each row; blank lines are passed over."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        head = next((line for line in file if line.strip("\r\n")), "")
        file.seek(0)
        delimiter = max("\t;,", key=head.count)
        # Were it not strict, a cell whose quotes nothing closes would take in all rows behind it.
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        began = 1
        try:
            for row in reader:
                if row:
                    yield began, row
                began = reader.line_num + 1
        except csv.Error as error:
            raise DataRefused(
                f"{path} is no CSV from line {began} on: {error}. Expected UTF-8 text with a "
                "header row; a cell that begins with a double quote must end with one."
            ) from None


def _json_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | None]]:
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            yield number, row if isinstance(row, dict) else None


def cell(value: object) -> bytes:
    """Returns a cell as the bytes that it was written with."""
    if value is None:
        return b""
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).encode("utf-8", "surrogatepass" if _paired(value) else "surrogateescape")


def _paired(value: object) -> bool:
    """Says whether a text has surrogates that are no escaped bytes (JSON's \\ud800, say)."""
    return _LONE.search(str(value)) is not None
