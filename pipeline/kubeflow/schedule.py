"""`safelight schedule`: recurring runs on the cluster: create, list, pause, resume, delete."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.markup import escape
from rich.table import Table

from pipeline import config as configuration
from pipeline import console
from pipeline.config import Config
from pipeline.errors import UsageError, did_you_mean
from pipeline.kubeflow import submit
from pipeline.kubeflow.api import Server

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_SHORTEST_SECONDS: Final = 60
# Seconds, minutes, hours, day of month, month, day of week: six fields, as Kubeflow has them.
_CRON_FIELDS: Final = 6


def create(
    profile: str | None,
    overrides: Sequence[str],
    data: str,
    *,
    name: str,
    cron: str | None = None,
    every: str | None = None,
    package: Path | None = None,
    run_overrides: str = "",
) -> int:
    """Makes a recurring run; returns the exit code.

    Args:
      profile: as of every command.
      overrides: `section.key=value` each.
      data: a path on a volume, or a bucket's folder.
      name: of the schedule; unique in the experiment.
      cron: six fields (seconds first), or five, to which second 0 is added; in UTC.
      every: an interval: 30m, 6h, 1d, …
      package: schedule this file instead of compiling one.
      run_overrides: the parameter `overrides` of each run.

    Raises:
      UsageError: neither or both of cron and every, or one that is not understood, or a name
        that is taken.
    """
    if (cron is None) == (every is None):
        raise UsageError("Say when: either --cron '0 3 * * *' or --every 6h.")
    expression = None if cron is None else six_fields(cron)
    seconds = None if every is None else interval(every)
    config = configuration.load(profile, overrides).config
    submit.check_run(config, data, run_overrides)
    text = submit.package_text(config, package)
    server = Server(config.kubeflow)
    if any(one.display_name == name for one in server.schedules()):
        raise UsageError(
            f"There is a schedule {name!r} already. Delete it first, or choose another name."
        )
    given = submit.parameters(data, "", run_overrides)
    made = server.schedule(server.upload(text), name, given, expression, seconds)
    console.stderr.print(
        f"Scheduled [bold]{escape(name)}[/] ({made}): one run at a time, none for missed times."
    )
    return 0


def show(profile: str | None, overrides: Sequence[str], as_json: bool = False) -> int:
    """Lists the schedules of the experiment; returns the exit code."""
    rows = [_row(one) for one in _server(profile, overrides)[1].schedules()]
    if as_json:
        sys.stdout.write(json.dumps(rows) + "\n")
        return 0
    table = Table("name", "when", "state", "id", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(escape(str(row[key])) for key in ("name", "when", "state", "id")))
    console.stdout.print(table if rows else "There is no schedule yet.")
    return 0


def pause(profile: str | None, overrides: Sequence[str], name: str) -> int:
    """Pauses a schedule by its name; returns the exit code."""
    server = _server(profile, overrides)[1]
    server.pause(_find(server, name))
    console.stderr.print(
        f"Paused [bold]{escape(name)}[/]. Go on with: safelight schedule resume {escape(name)}"
    )
    return 0


def resume(profile: str | None, overrides: Sequence[str], name: str) -> int:
    """Lets a paused schedule go on; returns the exit code."""
    server = _server(profile, overrides)[1]
    server.resume(_find(server, name))
    console.stderr.print(f"[bold]{escape(name)}[/] starts runs again.")
    return 0


def delete(profile: str | None, overrides: Sequence[str], name: str) -> int:
    """Deletes a schedule by its name; its runs stay. Returns the exit code."""
    server = _server(profile, overrides)[1]
    server.delete(_find(server, name))
    console.stderr.print(f"Deleted the schedule [bold]{escape(name)}[/]; its runs stay.")
    return 0


def six_fields(cron: str) -> str:
    """Returns the expression as Kubeflow takes it, with seconds.

    Raises:
      UsageError: it has neither five nor six fields, or other characters than cron's.
    """
    fields = cron.split()
    if len(fields) == _CRON_FIELDS - 1:
        fields = ["0", *fields]
    legal = all(re.fullmatch(r"[\d*/,\-?A-Za-z]+", field) for field in fields)
    if len(fields) != _CRON_FIELDS or not legal:
        raise UsageError(
            f"--cron {cron!r} is not understood; expected five fields (minute, hour, day, month, "
            "weekday), as in '0 3 * * *' for every night at three, or six with seconds first."
        )
    return " ".join(fields)


def interval(every: str) -> int:
    """Returns the seconds of an interval such as 30m, 6h or 1d.

    Raises:
      UsageError: it is not understood, or shorter than a minute.
    """
    match = re.fullmatch(r"(\d+)([smhdw])", every.strip())
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if seconds < _SHORTEST_SECONDS:
        raise UsageError(
            f"--every {every!r} is not understood; expected a number with s, m, h, d or w, of at "
            "least a minute, as in 6h."
        )
    return seconds


def _server(profile: str | None, overrides: Sequence[str]) -> tuple[Config, Server]:
    config = configuration.load(profile, overrides).config
    return config, Server(config.kubeflow)


def _find(server: Server, name: str) -> str:
    known = {str(one.display_name): str(one.recurring_run_id) for one in server.schedules()}
    if name not in known:
        hint = did_you_mean(name, known) if known else " There is none yet."
        raise UsageError(f"There is no schedule {name!r}.{hint}")
    return known[name]


def _row(schedule: Any) -> dict[str, str]:
    trigger = schedule.trigger
    if trigger.cron_schedule is not None:
        when = str(trigger.cron_schedule.cron)
    else:
        when = f"every {trigger.periodic_schedule.interval_second} s"
    return {
        "name": str(schedule.display_name),
        "when": when,
        "state": str(schedule.status or schedule.mode).lower(),
        "id": str(schedule.recurring_run_id),
    }
