"""Every decision, yes or no, with its reasons and numbers: `retrain/ledger.jsonl` in the workdir.

    {"t": seconds since 1970, "kind": "decision", "due", "held", "findings", "notes", "window"}
    {"t", "kind": "attempt", "run_id"}     a training begins; on a cluster also `server_run` and
                                           `spans`, the fingerprints of its window
    {"t", "kind": "outcome", "run_id", "outcome", "version", "reasons",
     "forgetting": as in verdict.json}
    {"t", "kind": "quarantine", "span", "revision", "reason"}
    {"t", "kind": "release", "span", "revision", "by", "why"}
    {"t", "kind": "unread", "span", "reason"}         a span that could not be read this time
    {"t", "kind": "monitor", "version", "reason"}     an alarm of `safelight monitor`
    {"t", "kind": "rollback"|"pin"|"unpin", "version", "by", "why"}

Lines are appended and never changed. A line cut short by a power failure is passed over. What a
daemon decides every minute in the same words stands there once an hour.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.retrain.budget import Attempt

FILE = "ledger.jsonl"
_FAILED = frozenset({"failed"})
_SAME_SECONDS = 3600.0


class Ledger:
    """The decisions of one workdir."""

    def __init__(self, folder: Path, keep: bool = True) -> None:
        """Names the file; without `keep`, `add` writes nothing."""
        self._path = folder / FILE
        self._keep = keep
        self._decided: tuple[float, dict[str, Any]] = (0.0, {})

    def add(self, now: float, kind: str, **fields: Any) -> None:
        """Appends a line, and waits until the disk holds it."""
        if not self._keep:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"t": round(now, 3), "kind": kind, **fields}, ensure_ascii=False)
        with open(self._path, "ab+") as file:
            # A line that a dying process left half-written stays by itself.
            if file.seek(0, os.SEEK_END) and not self._ends_whole(file):
                file.write(b"\n")
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def decide(self, now: float, decision: Mapping[str, Any]) -> None:
        """Appends a decision, unless this object has written the same within the hour.

        What a training follows is always written, and so is what comes after a clock that jumped
        back. A figure that moved without a word of its message moving is the same.
        """
        at, before = self._decided
        said = {**decision, "findings": [one["message"] for one in decision["findings"]]}
        if said == before and 0 <= now - at < _SAME_SECONDS and (said["held"] or not said["due"]):
            return
        self.add(now, "decision", **decision)
        self._decided = now, said

    def read(self) -> Iterator[dict[str, Any]]:
        """Yields the lines, oldest first."""
        if not self._path.is_file():
            return
        with open(self._path, "rb") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                if isinstance(entry, dict) and "kind" in entry and "t" in entry:
                    yield entry

    def attempts(self) -> list[Attempt]:
        """Returns the trainings in the order in which they began; one without an end failed.

        None is later than a line behind it: where the clock jumped back, it is of that moment.
        """
        outcomes: dict[str, str] = {}
        found: list[Attempt] = []
        now = math.inf
        for entry in reversed(list(self.read())):
            now = min(now, entry["t"])
            if entry["kind"] == "attempt":
                failed = outcomes.get(entry["run_id"], "failed") in _FAILED
                found.append(Attempt(now, failed))
            elif entry["kind"] == "outcome":
                outcomes.setdefault(entry["run_id"], entry["outcome"])
        return found[::-1]

    def last(self, kind: str) -> dict[str, Any] | None:
        """Returns the newest line of a kind, or None."""
        found = None
        for entry in self.read():
            if entry["kind"] == kind:
                found = entry
        return found

    @staticmethod
    def _ends_whole(file: Any) -> bool:
        file.seek(-1, os.SEEK_END)
        return bool(file.read(1) == b"\n")
