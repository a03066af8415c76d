"""What is known of each span: `retrain/spans.json` in the workdir.

A span is taken once, when it is complete, under its fingerprint. When its files change later, it
is taken again as a new revision: what a run has read stands under the old one for ever.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import SafelightError, UsageError
from pipeline.runs import write_json

FILE = "spans.json"
State = Literal["taken", "quarantined"]


@dataclass(frozen=True)
class Record:
    """One revision of a span.

    Attributes:
      number: the span's.
      revision: counts from 1 with each change of the span's files.
      path: where it lies.
      fingerprint: of its listing, as `ingest.scan` takes it.
      images: files that it holds.
      bytes: their size.
      taken: when, in seconds since 1970.
      state: taken, or quarantined: never trained on.
      reason: why it is in quarantine.
      trained: whether a run that ended with a verdict had it in its window.
      scan: what `ingest.scan` found, as JSON.
      released: whether an operator has looked at its labels, and took it out of quarantine.
    """

    number: int
    revision: int
    path: str
    fingerprint: str
    images: int
    bytes: int
    taken: float
    scan: dict[str, Any]
    state: State = "taken"
    reason: str = ""
    trained: bool = False
    released: bool = False

    @property
    def name(self) -> str:
        """Returns the name that the graph's nodes have."""
        return f"span-{self.number}-r{self.revision}"


@dataclass(frozen=True)
class Seen:
    """A span that is not complete yet: its last fingerprint, and since when it has it."""

    fingerprint: str
    since: float


class Book:
    """The records of all spans; every change is written at once."""

    def __init__(self, folder: Path, keep: bool = True) -> None:
        """Reads the book.

        Args:
          folder: where it lies.
          keep: whether changes are written; otherwise they are forgotten with this object.

        Raises:
          SafelightError: it is damaged.
        """
        self._path = folder / FILE
        self._keep = keep
        self._records: list[Record] = []
        self._seen: dict[str, Seen] = {}
        if self._path.is_file():
            self._load()

    def _load(self) -> None:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            self._records = [Record(**one) for one in content["spans"]]
            self._seen = {name: Seen(**one) for name, one in content["seen"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SafelightError(
                f"{self._path} is damaged ({error}); expected JSON with `spans` and `seen`. Put a "
                "copy back, or delete it: all spans are then new, and their examples come from "
                "the cache."
            ) from None

    def latest(self) -> list[Record]:
        """Returns each span's newest revision, by number."""
        newest = {one.number: one for one in sorted(self._records, key=lambda one: one.revision)}
        return [newest[number] for number in sorted(newest)]

    def usable(self) -> list[Record]:
        """Returns each span's newest revision that is not in quarantine, by number."""
        return [one for one in self.latest() if one.state == "taken"]

    def new(self) -> list[Record]:
        """Returns the usable spans that no finished run has trained on."""
        return [one for one in self.usable() if not one.trained]

    def find(self, number: int) -> Record:
        """Returns a span's newest revision.

        Raises:
          UsageError: there is no such span.
        """
        for record in self.latest():
            if record.number == number:
                return record
        raise UsageError(
            f"Span {number} is not known. There is: "
            f"{', '.join(str(one.number) for one in self.latest()) or 'none'}."
        )

    def newest_trained(self) -> float:
        """Returns the highest number of a span that has trained; below all others without one."""
        return max((one.number for one in self._records if one.trained), default=-math.inf)

    def take(self, number: int, path: Path, scan: dict[str, Any], now: float) -> Record:
        """Records a complete span; one that is known unchanged stays, at its new place if moved."""
        earlier = [one for one in self._records if one.number == number]
        if earlier and earlier[-1].fingerprint == scan["fingerprint"]:
            known = Path(earlier[-1].path)
            if path != known and (not known.is_dir() or path.is_relative_to(known)):
                self._replace(earlier[-1], path=str(path), scan=json.loads(json.dumps(scan)))
                return self.find(number)
            return earlier[-1]
        record = Record(
            number=number,
            revision=len(earlier) + 1,
            path=str(path),
            fingerprint=scan["fingerprint"],
            images=scan["files"],
            bytes=scan["bytes"],
            taken=now,
            scan=json.loads(json.dumps(scan)),  # as it is read again
        )
        self._records.append(record)
        self._seen.pop(str(number), None)
        self._save()
        return record

    def settled(self, number: int, fingerprint: str, now: float, seconds: float) -> bool:
        """Says whether the span has had this fingerprint for `seconds`, and remembers it.

        A clock that jumps back starts the wait anew.
        """
        seen = self._seen.get(str(number))
        if seen is None or seen.fingerprint != fingerprint or seen.since > now:
            self._seen[str(number)] = Seen(fingerprint, now)
            self._save()
            return seconds <= 0
        return now - seen.since >= seconds

    def quarantine(self, record: Record, reason: str) -> None:
        """Keeps a revision out of training for good, whatever had trained on it."""
        self._replace(record, state="quarantined", reason=reason)

    def release(self, number: int) -> Record:
        """Takes a span's newest revision out of quarantine; its labels are not doubted again.

        Raises:
          UsageError: there is no such span, it is in no quarantine, or it could not be read.
        """
        record = self.find(number)
        if record.state != "quarantined":
            held = [str(one.number) for one in self.latest() if one.state == "quarantined"]
            raise UsageError(
                f"Span {number} is in no quarantine: there is nothing to release. There is: "
                f"{', '.join(held) or 'none'}."
            )
        if not record.images:
            raise UsageError(
                f"Span {number} could not be read ({record.reason}). Mend its files: they are then "
                "a new revision, which is tried again without a word."
            )
        self._replace(record, state="taken", reason="", released=True)
        return self.find(number)

    def mark_trained(self, fingerprints: set[str]) -> None:
        """Records that a run with a verdict had these in its window."""
        for record in list(self._records):
            if record.fingerprint in fingerprints and not record.trained:
                self._replace(record, trained=True)

    def _replace(self, record: Record, **changes: Any) -> None:
        key = (record.number, record.revision)
        self._records = [
            replace(one, **changes) if (one.number, one.revision) == key else one
            for one in self._records
        ]
        self._save()

    def _save(self) -> None:
        if not self._keep:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "spans": [asdict(one) for one in self._records],
            "seen": {name: asdict(one) for name, one in self._seen.items()},
        }
        write_json(self._path, content)
