"""The rows of a table of text, CSV, TSV or JSON lines, and what a cell was written as."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import DataRefused

_LONE = re.compile("[\ud800-\udc7f\udd00-\udfff]")


def rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | None]]:
    """Yields (line, columns) of each row; None for a line that can't be parsed.

    Raises:
      DataRefused: the file is no CSV from some line on.
    """
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        yield from _json_rows(path)
        return
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        head = file.readline()
        file.seek(0)
        delimiter = max("\t;,", key=head.count)
        reader = csv.DictReader(file, delimiter=delimiter)
        try:
            for row in reader:
                # More fields than columns land under None, fewer leave None behind.
                yield reader.line_num, None if None in row else row
        except csv.Error as error:
            raise DataRefused(
                f"The manifest {path} is no CSV from line {reader.line_num} on: {error}. "
                "Expected UTF-8 text with a header row."
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
