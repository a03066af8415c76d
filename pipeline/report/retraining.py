"""What was decided about retraining, and why: the ledger of `safelight retrain`.

`retrain/ledger.jsonl` in the workdir has a JSON object a line, each with `t` (seconds since 1970)
and `kind`; docs/retraining.md lists them. It is read leniently: a torn line is passed over.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.collect import Record, without_secrets
from pipeline.workdir import Workdir

_LINES = 100
_BADGES = {
    "retrain": "info",
    "held back": "warn",
    "quarantine": "warn",
    "unread": "warn",
    "monitor": "warn",
    "rollback": "bad",
    "pushed": "ok",
    "not blessed": "warn",
    "invalid data": "bad",
    "failed": "bad",
}


@dataclass(frozen=True)
class Line:
    """A line of the ledger for people; `reasons` hold every figure that was looked at."""

    when: str
    what: str
    reasons: list[str]
    run_id: str = ""

    @property
    def badge(self) -> str:
        """The colour of `what`."""
        return _BADGES.get(self.what, "")


@dataclass(frozen=True)
class Trigger:
    """What one trigger said when the training was decided on."""

    name: str
    value: float | None
    bound: float | None
    fired: bool
    message: str


@dataclass(frozen=True)
class Retraining:
    """Why this run was started, and the decisions since the training before it."""

    when: str
    triggers: list[Trigger]
    notes: list[str]
    window: list[str]
    before: list[Line]


def build(record: Record) -> Retraining | None:
    """Returns what led to the run, or None if `safelight retrain` did not start it."""
    entries = _entries(record.workdir)
    run_id = record.run.root.name
    began = next(
        (n for n, it in enumerate(entries) if it["kind"] == "attempt" and it["run_id"] == run_id),
        None,
    )
    if began is None:
        return None
    earlier = entries[:began]
    decided = next((it for it in reversed(earlier) if it["kind"] == "decision"), None)
    if decided is None:
        return None
    return Retraining(
        when=_when(decided),
        triggers=[_trigger(finding) for finding in decided.get("findings", [])],
        notes=[without_secrets(note) for note in decided.get("notes", [])],
        window=[str(name) for name in decided.get("window", [])],
        before=_since_the_last(earlier, decided),
    )


def lines(workdir: Workdir) -> list[Line]:
    """Returns the newest lines of the ledger, the newest first; none without a ledger."""
    entries = _entries(workdir)[-_LINES:]
    return [_line(entry) for entry in reversed(entries) if entry["kind"] != "attempt"]


def _entries(workdir: Workdir) -> list[dict[str, Any]]:
    path = workdir.root / "retrain" / "ledger.jsonl"
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and "kind" in entry and "t" in entry:
            found.append(entry)
    return found


def _since_the_last(earlier: Sequence[dict[str, Any]], decided: Mapping[str, Any]) -> list[Line]:
    """Returns what stands between the training before and the decision, the newest first."""
    found = []
    for entry in reversed(earlier):
        if entry["kind"] == "attempt":
            break
        if entry is not decided:
            found.append(_line(entry))
    return found


def _line(entry: Mapping[str, Any]) -> Line:
    what, reasons = _said(entry)
    run_id = str(entry.get("run_id", ""))
    return Line(_when(entry), what, [without_secrets(it) for it in reasons if it], run_id)


def _said(entry: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Returns a line in a word or two, and the sentences behind it."""
    kind = entry["kind"]
    if kind == "decision":
        looked_at = [str(one["message"]) for one in entry.get("findings", [])]
        held = str(entry.get("held") or "")
        word = "held back" if held else "retrain" if entry.get("due") else "not due"
        return word, [held, *looked_at, *map(str, entry.get("notes", []))]
    if kind == "outcome":
        version = f"Version {entry['version']}." if entry.get("version") else ""
        return str(entry["outcome"]).replace("_", " "), [version, *entry.get("reasons", [])]
    if kind == "quarantine":
        return kind, [f"Span {entry['span']}, revision {entry['revision']}: {entry['reason']}"]
    if kind == "unread":
        return kind, [f"Span {entry['span']}: {entry['reason']}"]
    if "version" in entry and "by" in entry:
        return kind, [f"Version {entry['version']} by {entry['by']}: {entry['why']}"]
    return kind, [str(entry.get("reason", ""))]


def _trigger(finding: Mapping[str, Any]) -> Trigger:
    return Trigger(
        name=str(finding["trigger"]).replace("_", " "),
        value=finding.get("value"),
        bound=finding.get("bound"),
        fired=bool(finding["fired"]),
        message=str(finding["message"]),
    )


def _when(entry: Mapping[str, Any]) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(entry["t"]))
