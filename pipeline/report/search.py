"""The search before training: every trial, and which one's values were taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pipeline.report import figures, formats
from pipeline.report.collect import Record
from pipeline.report.drawing import Format
from pipeline.report.figures import Series

_SHOWN = 30


@dataclass(frozen=True)
class Search:
    """What the section shows; `trials` are tuner_results.json's rows, the best first."""

    algorithm: str
    objective: str
    keys: list[str]
    trials: list[dict[str, Any]]
    failed: int
    seconds: float
    chart: Markup
    write: Format

    @property
    def shown(self) -> list[dict[str, Any]]:
        """The trials that are shown at once."""
        return self.trials[:_SHOWN]

    @property
    def others(self) -> list[dict[str, Any]]:
        """Those that are folded away."""
        return self.trials[_SHOWN:]


def build(record: Record) -> Search | None:
    """Returns the search, or None if there was none."""
    trials = record.rows("trials")
    if not trials:
        return None
    tune = record.request.config["tune"]
    upward = tune["objective"] == "eval_accuracy"
    write = formats.percent_tick if upward else formats.short
    ranked = sorted(trials, key=lambda row: _rank(row, upward))
    return Search(
        algorithm=tune["algorithm"],
        objective=tune["objective"].replace("_", " "),
        keys=list(dict.fromkeys(key for row in trials for key in row["values"])),
        trials=ranked,
        failed=sum(row["state"] == "failed" for row in trials),
        seconds=sum(row["seconds"] for row in trials),
        chart=_chart(trials, upward, write, tune["objective"].replace("_", " ")),
        write=write,
    )


def _rank(row: dict[str, Any], upward: bool) -> tuple[bool, bool, float, int]:
    """Orders the best first, then by score, and what has none last."""
    score = row["score"]
    value = 0.0 if score is None else -score if upward else score
    return not row["best"], score is None, value, row["trial"]


def _chart(trials: list[dict[str, Any]], upward: bool, write: Format, objective: str) -> Markup:
    """Draws each trial's score, and the best until then."""
    if len(trials) < 2:
        return Markup("")
    rows = sorted(trials, key=lambda row: row["trial"])
    best: list[float | None] = []
    for row in rows:
        so_far = [it for it in (*best[-1:], row["score"]) if it is not None]
        best.append((max(so_far) if upward else min(so_far)) if so_far else None)
    scores = [row["score"] for row in rows]
    series = [Series("trial", scores, dots=True), Series("best", best)]
    told = f"the best reached {write(best[-1])}" if best[-1] is not None else "none has a score"
    return figures.line_chart(
        f"{objective.capitalize()} of {len(rows)} trials in their order: {told}",
        [float(row["trial"]) for row in rows],
        [line for line in series if any(value is not None for value in line.y)],
        write,
        "trial",
    )
