"""Which spans a run trains on: resolved to an explicit list before the run begins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline import fingerprint
from pipeline.config import Retrain
from pipeline.errors import UsageError
from pipeline.ingest.scan import Scan
from pipeline.retrain.book import Book, Record

GOLDEN = "golden"


@dataclass(frozen=True)
class Member:
    """A span of a window, as a run's request and the graph have it.

    `golden`: all its images judge, and none trains. `judged`: its test images judge.
    """

    name: str
    path: str
    fingerprint: str
    golden: bool = False
    judged: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON-serializable values."""
        return asdict(self)


def resolve(usable: Sequence[Record], options: Retrain) -> list[Record]:
    """Returns the spans that the options choose from the usable ones, by number.

    Raises:
      UsageError: the list names a span that is not there or is in quarantine.
    """
    if options.window != "list":
        return _within(usable, options)
    known = {record.number: record for record in usable}
    missing = [number for number in options.spans if number not in known]
    if missing:
        raise UsageError(
            f"retrain.spans names {', '.join(map(str, missing))}, which is not complete, in "
            f"quarantine or not there. There is: {', '.join(map(str, known)) or 'none'}."
        )
    return _within(usable, options)


def new(book: Book, options: Retrain) -> list[Record]:
    """Returns the spans without a training that one can still be for, by number.

    A span that the list doesn't name never trains. One that a rolling window has passed, as newer
    ones trained, doesn't either. Counted as new, each would make every round train again on the
    same spans.
    """
    within = {one.name for one in _within(book.usable(), options)}
    passed = math.inf if options.window == "list" else book.newest_trained()
    return [one for one in book.new() if one.name in within or one.number > passed]


def _within(usable: Sequence[Record], options: Retrain) -> list[Record]:
    if options.window == "rolling":
        return list(usable[-options.rolling :])
    return [one for one in usable if options.window == "all" or one.number in options.spans]


def members(window: Sequence[Record], golden: Scan | None) -> list[Member]:
    """Returns the window as a run is given it: the newest span and the golden set judge."""
    newest = max(record.number for record in window)
    found = [
        Member(one.name, one.path, one.fingerprint, judged=one.number == newest) for one in window
    ]
    if golden is not None:
        found.append(Member(GOLDEN, golden.data, golden.fingerprint, golden=True))
    return found


def scan_of(root: str, window: Sequence[Record], golden: Scan | None) -> Scan:
    """Returns one scan for the whole window, whose fingerprint is that of the explicit list."""
    scans = [Scan.from_dict(record.scan) for record in window]
    return joined(root, scans, golden, [one.to_dict() for one in members(window, golden)])


def joined(
    root: str,
    scans: Sequence[Scan],
    golden: Scan | None,
    listed: Sequence[Mapping[str, Any]],
) -> Scan:
    """Returns one scan for a window.

    Args:
      root: the folder that the spans lie in.
      scans: of the spans that train, the newest last.
      golden: of the golden set, if there is one.
      listed: the window, as a run's request has it; its fingerprint is the window's.
    """
    everything = [*scans, *([golden] if golden else [])]
    newest = scans[-1]
    per_class: dict[str, int] = {}
    for one in scans:
        for label, count in one.per_class.items():
            per_class[label] = per_class.get(label, 0) + count
    values = newest.to_dict() | {
        "data": root,
        "classes": sorted({name for one in scans for name in one.classes or ()}) or None,
        "per_class": dict(sorted(per_class.items())),
        "files": sum(one.files for one in everything),
        "bytes": sum(one.bytes for one in everything),
        "fingerprint": fingerprint.of_value([dict(one) for one in listed]),
    }
    return Scan.from_dict(values)
