"""What a person sees: progress while a run works, and what happened when it ends.

Progress goes to standard error; standard output is for what was asked for.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from pipeline.runs import Outcome, Result, RunDir

# Without `emoji`, Rich would draw a picture where a path or a class has `:smile:` in it.
stderr = Console(stderr=True, highlight=False, emoji=False)
stdout = Console(highlight=False, emoji=False)

_QUIET_SECONDS = 10.0
_MARKS = {"complete": "[green]done[/]", "cached": "[cyan]cached[/]", "failed": "[red]failed[/]"}
_HEADLINES: dict[Outcome, str] = {
    "pushed": "[bold green]Pushed[/]",
    "unchanged": "[bold cyan]Unchanged[/]",
    "not_blessed": "[bold yellow]Not blessed[/]",
    "invalid_data": "[bold red]Data refused[/]",
    "failed": "[bold red]Failed[/]",
}

_UNFINISHED = "works still, or was killed: run it again to go on"


@contextmanager
def native_silence() -> Iterator[None]:
    """Around the import of TensorFlow: what its native code prints goes nowhere.

    It does so before it has a logger, and no option asks it not to.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    shown = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(shown, 2)
        os.close(shown)


class Display:
    """Shows a run's events: a live line a stage on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console = stderr) -> None:
        self._console = console
        self._live = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description:<18}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[count]:<22}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._paces: dict[str, tuple[float, int]] = {}
        self._spoke = 0.0

    def __enter__(self) -> Display:
        self._live.start()
        self._begin("start-up", "importing TensorFlow and TFX")
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, event: dict[str, Any]) -> None:
        """Shows one event of `pipeline.events`."""
        kind = event["kind"]
        if kind == "startup":
            self._end("start-up", "complete", event["seconds"])
        elif kind == "stage" and event["state"] == "start":
            self._begin(event["name"])
        elif kind == "stage":
            self._end(event["name"], event["state"], event["seconds"])
        elif kind == "progress":
            self._advance(event)
        elif kind == "note":
            self._console.print(f"  {escape(event['text'])}", style="dim")
        elif kind == "warning":
            self._console.print(f"  [yellow]warning:[/] {escape(event['text'])}")

    def _begin(self, name: str, note: str = "") -> None:
        self._tasks[name] = self._live.add_task(name, total=None, count="", note=escape(note))

    def _end(self, name: str, state: str, seconds: float) -> None:
        task = self._tasks.get(name)
        if task is not None:
            self._live.update(task, total=1, completed=1, note=_MARKS[state])
            self._live.stop_task(task)
        if not self._console.is_terminal:
            self._console.print(f"{name:<18} {_MARKS[state]} {seconds:.1f} s")

    def _advance(self, event: dict[str, Any]) -> None:
        total = event["total"]
        pace = self._paces.setdefault(event["stage"], (event["t"], event["done"]))
        left = _time_left(event, *pace)
        count = f"{event['done']:,}" + (f"/{total:,}" if total else "") + f" {event['unit']}"
        note = " ".join(part for part in (event["note"], left) if part)
        task = self._tasks.get(event["stage"])
        if task is not None:
            self._live.update(
                task, completed=event["done"], total=total, count=count, note=escape(note)
            )
        if not self._console.is_terminal and time.monotonic() - self._spoke > _QUIET_SECONDS:
            self._spoke = time.monotonic()
            self._console.print(f"{event['stage']:<18} {count} {escape(note)}")


def _time_left(event: dict[str, Any], began: float, done_then: int) -> str:
    """Returns an estimate from the pace since the stage's first progress event."""
    worked, done = event["t"] - began, event["done"] - done_then
    if not event["total"] or done <= 0 or worked < 2:
        return ""
    left = worked / done * (event["total"] - event["done"])
    return f"{int(left // 60)}:{int(left % 60):02d} left"


def show_result(result: Result, run: RunDir, workdir: Path) -> None:
    """Says what happened: outcome, stages, metrics against thresholds, what to do next."""
    stderr.print()
    _show_stages(result)
    _show_checks(run)
    headline = _HEADLINES[result.outcome]
    counts = ", ".join(f"{count:,} {split}" for split, count in result.examples.items())
    aside = f"; {result.quarantined:,} quarantined" if result.quarantined else ""
    stderr.print(f"{headline}  run {result.run_id}" + (f"  ({counts}{aside})" if counts else ""))
    for reason in result.reasons:
        stderr.print(f"  {escape(reason)}")
    if result.pushed_to:
        stderr.print(f"  model    {escape(result.pushed_to)}")
    if result.report:
        stderr.print(f"  report   {escape(result.report)}")
    stderr.print(f"  log      {escape(str(run.log))}")
    if result.pushed_to:
        place = escape(shlex.quote(str(workdir)))
        stderr.print(f"  try      safelight predict IMAGE --workdir {place}", soft_wrap=True)


def _show_stages(result: Result) -> None:
    if not result.stages:
        return
    table = Table("stage", "state", "seconds", box=None, pad_edge=False, header_style="bold")
    table.columns[2].justify = "right"
    for stage in result.stages:
        table.add_row(stage.name, _MARKS[stage.state], f"{stage.seconds:.1f}")
    stderr.print(table)
    stderr.print()


def _show_checks(run: RunDir) -> None:
    uri = run.read_artifacts().get("BlessingGate", {}).get("blessing")
    if uri is None:
        return
    verdict = json.loads((Path(uri) / "verdict.json").read_text())
    table = Table(
        "check", "value", "bound", "threshold", "", box=None, pad_edge=False, header_style="bold"
    )
    for check in verdict["checks"]:
        value, bound = check["value"], check["bound"]
        # The side of the bound that the true value lies on: one alone decides each check.
        side = "" if None in (value, bound) or bound == value else "≥ " if bound < value else "≤ "
        mark = "[green]passed[/]" if check["passed"] else "[red]failed[/]"
        table.add_row(
            check["name"], _number(value), side + _number(bound), _number(check["threshold"]), mark
        )
    stderr.print(table)
    stderr.print()


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)


def show_history(ended: Sequence[Result], unfinished: Sequence[str]) -> None:
    """Prints a line a run, oldest first; the name says when it began (UTC).

    Args:
      ended: the runs that came to an end.
      unfinished: the ids of those without a result.
    """
    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    for name, width in (("run", 20), ("outcome", 12), ("accuracy", 8), ("version", 7)):
        table.add_column(name, no_wrap=True, width=width)
    table.add_column("reason", no_wrap=True, overflow="ellipsis", ratio=1)
    rows = [(name, "[dim]Unfinished[/]", "", "", _UNFINISHED) for name in unfinished]
    for result in ended:
        accuracy = result.metrics.get("accuracy")
        told = (
            _HEADLINES[result.outcome],
            "" if accuracy is None else f"{accuracy:.4f}",
            "" if result.version is None else str(result.version),
            escape(result.reasons[0]) if result.reasons else "",
        )
        rows.append((result.run_id, *told))
    for row in sorted(rows):
        table.add_row(*row)
    stdout.print(table)
