"""The ledger for people: the newest decisions below `safelight history`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from pipeline import console
from pipeline.retrain.ledger import Ledger

_MOST = 20


def show_ledger(folder: Path) -> None:
    """Prints the newest lines of the ledger in `folder`, oldest first; nothing without one."""
    lines = list(Ledger(folder).read())[-_MOST:]
    if not lines:
        return
    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    table.add_column("when (UTC)", no_wrap=True, width=19)
    table.add_column("what", no_wrap=True, width=12)
    table.add_column("why", overflow="fold", ratio=1)
    for line in lines:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(line["t"]))
        table.add_row(when, *map(escape, described(line)))
    console.stdout.print()
    console.stdout.print(table)


def described(line: dict[str, Any]) -> tuple[str, str]:
    """Returns what a line of the ledger says: a word or two, and the reason."""
    kind = line["kind"]
    if kind == "decision":
        fired = [one["message"] for one in line["findings"] if one["fired"]]
        looked_at = [one["message"] for one in line["findings"]]
        said = " ".join([line["held"], *(fired or looked_at), *line["notes"]]).strip()
        return ("held back" if line["held"] else "retrain" if line["due"] else "not due"), said
    if kind == "outcome":
        version = f"version {line['version']}" if line.get("version") else ""
        return line["outcome"], " ".join([version, *line.get("reasons", [])[:1]]).strip()
    if kind == "quarantine":
        return kind, f"span {line['span']}, revision {line['revision']}: {line['reason']}"
    if kind == "release":
        return kind, f"span {line['span']} by {line['by']}: {line['why']}"
    if kind in ("rollback", "pin", "unpin"):
        return kind, f"version {line['version']} by {line['by']}: {line['why']}"
    return kind, str(line.get("run_id") or line.get("reason", ""))
