"""Spans of data below one folder: which there are, and which are complete.

A span's place is a pattern as in TFX, `span-{SPAN}` or `{YYYY}-{MM}-{DD}/v{VERSION}` say. Of
several versions on the disk the highest counts. A date is numbered by its days since 1970, as TFX
numbers it.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UsageError, bounded

SUCCESS = "_SUCCESS"
_FIELDS = ("SPAN", "VERSION", "YYYY", "MM", "DD")
_DIGITS = {"YYYY": r"\d{4}", "MM": r"\d{2}", "DD": r"\d{2}"}


@dataclass(frozen=True)
class Span:
    """A folder of data: its number, its version (0 where the pattern has none) and its path."""

    number: int
    version: int
    path: Path

    @property
    def name(self) -> str:
        """Returns what the span is called in records and among the graph's nodes."""
        return f"span-{self.number}" + (f"-v{self.version}" if self.version else "")


def find(root: Path, pattern: str) -> list[Span]:
    """Returns the spans below `root`, by number, each in its highest version.

    Raises:
      UsageError: `root` is no folder, or two folders are the same span and version.
    """
    if not root.is_dir():
        raise UsageError(f"The folder of spans {root} is not there. Make it, or name another.")
    matcher = _matchers(pattern)
    found: dict[int, Span] = {}
    for path, fields in _walk(root, matcher, {}):
        span = _span(path, fields)
        if span is None:
            continue
        known = found.get(span.number)
        if known is not None and known.version == span.version:
            raise UsageError(
                f"{known.path} and {path} are both span {span.number}. Keep one of them."
            )
        if known is None or known.version < span.version:
            found[span.number] = span
    return [found[number] for number in sorted(found)]


def fits(path: Path, root: Path, pattern: str) -> bool:
    """Says whether a span at `path` is one of `root` by this pattern, also if it is gone."""
    matcher = _matchers(pattern)
    names = path.parts[-len(matcher) :]
    if not all(part.fullmatch(name) for part, name in zip(matcher, names, strict=False)):
        return False
    base = Path(*path.parts[: -len(matcher)])
    return base.resolve() == root.resolve()  # the folder may have two names


def none_found(root: Path, pattern: str) -> str:
    """Returns what to say of a folder in which no span was found."""
    with os.scandir(root) as entries:
        others = sorted(entry.name for entry in entries if entry.is_dir())
    found = f"{bounded(others)} there do not match" if others else "there is no folder yet"
    return f"No folder in {root} is a span by retrain.pattern {pattern}: {found}."


def marked(span: Span) -> bool:
    """Says whether whoever writes the span has said that it is complete."""
    return (span.path / SUCCESS).is_file()


def last_change(span: Span) -> float:
    """Returns when the newest of the span's files and folders changed, in seconds since 1970.

    The time of the inode's change: unlike the modification time, a copy can't bring it along.

    Raises:
      FileNotFoundError: the span was deleted meanwhile.
    """
    newest = span.path.stat().st_ctime
    for folder, _, files in os.walk(span.path):
        for name in ("", *files):
            newest = max(newest, Path(folder, name).lstat().st_ctime)
    return newest


def _walk(
    folder: Path, matcher: list[re.Pattern[str]], fields: dict[str, str]
) -> Iterator[tuple[Path, dict[str, str]]]:
    if not matcher:
        yield folder, fields
        return
    for path in sorted(folder.iterdir()):
        match = matcher[0].fullmatch(path.name)
        if match and path.is_dir():
            yield from _walk(path, matcher[1:], {**fields, **match.groupdict()})


def _matchers(pattern: str) -> list[re.Pattern[str]]:
    return [_matcher(part) for part in pattern.strip("/").split("/")]


def _matcher(part: str) -> re.Pattern[str]:
    text = re.escape(part)
    for name in _FIELDS:
        text = text.replace(
            re.escape(f"{{{name}}}"), rf"(?P<{name}>{_DIGITS.get(name, r'[0-9]+')})"
        )
    try:
        return re.compile(text, re.ASCII)
    except re.error:
        raise UsageError(
            f"retrain.pattern has a field twice in {part!r}; expected each of "
            f"{', '.join(f'{{{name}}}' for name in _FIELDS)} once at most."
        ) from None


def _span(path: Path, fields: dict[str, str]) -> Span | None:
    version = int(fields.get("VERSION", 0))
    if "SPAN" in fields:
        return Span(int(fields["SPAN"]), version, path)
    try:
        day = datetime.date(*(int(fields[name]) for name in ("YYYY", "MM", "DD")))
    except (KeyError, ValueError):
        return None  # no date: 2026-02-30
    return Span((day - datetime.date(1970, 1, 1)).days, version, path)
