"""`safelight why`: what became of a run, and what decided it, in the terminal.

It says what the run's report says, from the same record and with the same first sentence.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from pipeline.console import stdout
from pipeline.report import formats, measures, older, outcome
from pipeline.report.collect import Record
from pipeline.report.command import choose
from pipeline.report.older import Older
from pipeline.report.outcome import Outcome
from pipeline.workdir import open_workdir

_FLIPPED = 10
_SLICES = 5
_PAIRS = 5
_LOG_LINES = 12
_COLOURS = {"pushed": "green", "unchanged": "cyan", "not_blessed": "yellow"}


def command(workdir: Path, run: str | None = None, as_json: bool = False) -> dict[str, Any]:
    """Prints why a run (the newest by default) ended as it did.

    Args:
      workdir: where the runs are.
      run: a run's id, or the beginning of one.
      as_json: print one JSON object instead: `run_id`, `outcome`, `answer` (one sentence),
        `reasons`, `failed` (the gate's or validation's failed checks), `champion`, `flipped`,
        `slices`, `confused` and `forgetting` as verdict.json has them, and `report`.

    Returns:
      That object.

    Raises:
      UsageError: no workdir, no run, no such run (the nearest is named), or several that begin so.
    """
    place = open_workdir(workdir, create=False)
    record = Record(place, choose(place, run))
    told = explain(record)
    if as_json:
        sys.stdout.write(json.dumps(told, ensure_ascii=False) + "\n")
    else:
        _show(record, outcome.build(record), told)
    return told


def answer(workdir: Path, run: str | None = None) -> str:
    """Returns what became of a run, and what decided it, in one sentence."""
    place = open_workdir(workdir, create=False)
    return outcome.sentence(Record(place, choose(place, run)))


def explain(record: Record) -> dict[str, Any]:
    """Returns what `--json` prints."""
    built = outcome.build(record)
    verdict = record.verdict or {}
    failed = [check for check in verdict.get("checks", ()) if not check["passed"]]
    return {
        "run_id": record.run.root.name,
        "outcome": built.kind,
        "answer": built.lead,
        "reasons": built.reasons,
        "failed": failed or [check for check in _validation(record) if check["state"] == "fail"],
        "champion": verdict.get("champion"),
        "flipped": verdict.get("flipped"),
        "slices": verdict.get("slices", []),
        "confused": verdict.get("confused", []),
        "forgetting": verdict.get("forgetting", []),
        "report": str(record.run.report) if record.run.report.is_file() else None,
    }


def _validation(record: Record) -> list[dict[str, Any]]:
    """Returns the checks of validation.json."""
    checks: list[dict[str, Any]] = (record.json("validation") or {}).get("checks", [])
    return checks


def _show(record: Record, built: Outcome, told: dict[str, Any]) -> None:
    colour = _COLOURS.get(built.kind, "red")
    stdout.print(f"[bold {colour}]{built.label}[/]  run {told['run_id']}")
    stdout.print(escape(built.lead))
    if built.kind == "invalid_data":
        _show_findings(told["failed"], built.reasons)
    elif built.kind == "not_blessed":
        _show_checks(built)
    else:
        _show_reasons(built.reasons)
    _show_comparison(told["champion"])
    _show_flipped(told["flipped"])
    _show_slices(told["slices"])
    _show_confused(told["confused"])
    _show_older(older.build(record))
    if built.kind == "failed":
        for line in built.log[-_LOG_LINES:]:
            stdout.print(f"  {escape(line)}", style="dim")
    if built.advice:
        stdout.print(f"\n{escape(built.advice)}")
    stdout.print(f"\nreport  {escape(told['report'] or 'none was written')}")
    stdout.print(f"log     {escape(str(record.run.log))}")


def _show_reasons(reasons: list[str]) -> None:
    for reason in reasons:
        stdout.print(f"  {escape(reason)}")


def _show_checks(built: Outcome) -> None:
    """Prints the failed checks: what was found, how sure that is, and what was asked."""
    failed = [check for check in built.checks if not check.passed]
    if not failed:
        _show_reasons(built.reasons)
        return
    table = _table("Failed checks", "check", "value", "bound", "interval", "asked")
    for check in failed:
        table.add_row(
            escape(check.title),
            escape(check.write(check.value)),
            escape(check.write_bound()),
            escape(check.write_interval()),
            escape(check.write(check.threshold)),
        )
    stdout.print(table)
    for check in failed:
        stdout.print(f"  {escape(check.message)}")


def _show_findings(failed: list[dict[str, Any]], reasons: list[str]) -> None:
    """Prints what validation refused; where ingest did, its reasons."""
    if not failed:
        _show_reasons(reasons)
        return
    table = _table("Refused", "check", "feature", "split", "found", "expected")
    for check in failed:
        keys = ("name", "feature", "split", "found", "expected")
        table.add_row(*(escape(str(check.get(key, ""))) for key in keys))
    stdout.print(table)
    _show_reasons([check["message"] for check in failed])


def _show_comparison(champion: dict[str, Any] | None) -> None:
    metrics = (champion or {}).get("metrics")
    if not champion or not metrics:
        return
    title = f"Against version {champion['version']}: {champion['verdict']}"
    if champion.get("images_needed"):
        title += f", about {champion['images_needed']:,} more images needed"
    columns = ("metric", "model", "champion", "difference", "at least", "at most", "verdict")
    table = _table(title, *columns)
    for name, row in metrics.items():
        change = measures.change(name, row)
        title = f"{name} (decides)" if name == champion.get("metric") else name
        title += ", less is better" if name in measures.LOSSES else ""
        table.add_row(
            title,
            *(change.write(value) for value in (change.after, change.before)),
            *(change.write_difference(end) for end in (change.difference, change.low, change.high)),
            change.verdict,
        )
    stdout.print(table)


def _show_flipped(flipped: dict[str, Any] | None) -> None:
    if not flipped or not flipped["images"]:
        return
    title = f"Answers that flipped: {flipped['lost']:,} lost, {flipped['gained']:,} gained"
    table = _table(title, "image", "is", "was called", "now called", "confidence")
    for row in flipped["images"][:_FLIPPED]:
        named = (escape(str(row[key])) for key in ("id", "label", "was", "is"))
        table.add_row(*named, formats.percent(row["confidence"]))
    stdout.print(table)


def _show_slices(slices: list[dict[str, Any]]) -> None:
    if not slices:
        return
    table = _table("Worst slices", "feature", "bucket", "images", "accuracy", "interval", "before")
    for row in slices[:_SLICES]:
        table.add_row(
            escape(row["feature"]),
            escape(row["bucket"]),
            formats.count(row["examples"]),
            formats.percent(row["accuracy"]),
            formats.interval(row["lower"], row["upper"]),
            formats.percent(row["champion"]),
        )
    stdout.print(table)


def _show_confused(confused: list[dict[str, Any]]) -> None:
    if not confused:
        return
    table = _table("Confused most often", "is", "called", "images", "by the champion")
    for row in confused[:_PAIRS]:
        before = formats.count(row["champion_count"])
        table.add_row(escape(row["truth"]), escape(row["predicted"]), f"{row['count']:,}", before)
    stdout.print(table)


def _show_older(found: Older | None) -> None:
    if found is None:
        return
    held = found.allowed is not None
    columns = ("span", "images", "accuracy", "champion", "points", *(("floor", "") if held else ()))
    table = _table("Older spans: what was forgotten", *columns)
    for span in found.spans:
        row = [escape(span.name), formats.count(span.images), formats.percent(span.accuracy)]
        row += [formats.percent(span.champion), formats.points(span.difference)]
        if held:
            row += [formats.percent(span.floor), "passed" if span.passed else "failed"]
        table.add_row(*row)
    stdout.print(table)


def _table(title: str, *columns: str) -> Table:
    return Table(
        *columns,
        title=f"\n{escape(title)}",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        header_style="dim",
    )
