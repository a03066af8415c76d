"""What a run tells while it works: one JSON object a line, appended to `runs/<id>/events.jsonl`.

The worker, its components and the training child write; the terminal's progress display, the
run's result and the report read. Without a sink (a step in a container, say) an event becomes a
line of the log.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_log = logging.getLogger("safelight")
_sink: Path | None = None
_whole: dict[str, Any] = {}


def configure(path: Path | None) -> None:
    """Sends this process's events to `path` from now on (None: to the log)."""
    global _sink
    _sink = path


def sink() -> Path | None:
    """Returns where events go, for a child process to be told."""
    return _sink


def emit(kind: str, **fields: Any) -> None:
    """Writes one event; `fields` must be JSON-serializable.

    Kinds: `stage` (name, state start|complete|cached|failed, seconds, peak_mb), `progress`
    (stage, done, total, unit, note), `note` (text) and `warning` (text).
    """
    line = json.dumps({"t": round(time.time(), 3), "kind": kind, **fields})
    if _sink is None:
        _log.info("%s", line)
        return
    # One write of a line under 4 KiB to a file opened for appending is not torn by other writers.
    with open(_sink, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def note(text: str) -> None:
    """Tells the person something worth knowing (a choice made for them, say)."""
    emit("note", text=text)


def warn(text: str) -> None:
    """Tells the person something that they may want to change."""
    emit("warning", text=text)


def progress(stage: str, done: int, total: int | None, unit: str, note: str = "") -> None:
    """Says how far a stage has come; `total` None when it isn't known."""
    told = {"stage": stage, "done": done, "total": total, "unit": unit, **_whole}
    emit("progress", **told, note=note)


def as_part_of(stage: str, done: int, total: int, unit: str) -> None:
    """From now on, progress told in this process is that of a step of `stage`, and its note.

    A trial of Tuner is trained by Trainer's code: what that tells is about one of many.
    """
    _whole.update(stage=stage, done=done, total=total, unit=unit)


def read(path: Path, offset: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (offset behind the line, event) for each whole line from `offset` on.

    A line that a full disk cut short, and another went on with, is passed over.
    """
    if not path.exists():
        return
    with open(path, "rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                event = json.loads(line)
            except ValueError:
                continue
            yield offset, event
