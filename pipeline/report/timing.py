"""Time and memory by stage."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.report.collect import Record


@dataclass(frozen=True)
class StageRow:
    """A stage; `peak_mb` is the most memory that the worker had held by its end.

    `start` and `share` place its bar: shares of the whole time.
    """

    name: str
    state: str
    seconds: float
    peak_mb: float | None
    start: float
    share: float


@dataclass(frozen=True)
class Timing:
    """The stages in order, the imports before them, and the sum."""

    stages: list[StageRow]
    total: float


def build(record: Record) -> Timing | None:
    """Returns the timing from the events, or None if no stage is recorded."""
    rows: list[tuple[str, str, float, float | None]] = []
    for event in record.of_kind("startup"):
        rows.append(("start-up", "complete", float(event["seconds"]), event.get("peak_mb")))
    running: str | None = None
    for event in record.of_kind("stage"):
        if event["state"] == "start":
            running = event["name"]
        else:
            rows.append(
                (event["name"], event["state"], float(event["seconds"]), event.get("peak_mb"))
            )
            running = None
    if running is not None:
        rows.append((running, "open", 0.0, None))
    if not rows:
        return None
    total = sum(seconds for _, _, seconds, _ in rows)
    stages, before = [], 0.0
    for name, state, seconds, peak in rows:
        share = seconds / (total or 1.0)
        stages.append(StageRow(name, state, seconds, peak, before, share))
        before += share
    return Timing(stages, total)
