"""Which checkpoints `safelight gc` frees: those that no run is going to go on from.

A folder below checkpoints/ belongs to the settings, the data and the code of a training or a
search (trainer/checkpoints.py), and goes when the model has been exported. What stays was left by
runs that were killed or failed: the same command goes on from it, and nothing else does. The run
that wrote a folder last is the newest that had begun by then, for a workdir is held by one run at
a time.
"""

from __future__ import annotations

import calendar
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.runs import RunDir
from pipeline.workdir import Workdir

# A cluster's nodes may not see this machine's lock: a run there may still be training.
_FRESH_SECONDS: Final = 24 * 3600
_CREATED: Final = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True)
class _Run:
    """A run: when it began (seconds since 1970), and whether it failed or has no end."""

    name: str
    begun: float
    unfinished: bool


def abandoned(workdir: Workdir, everything: Sequence[RunDir], keep: int) -> list[Path]:
    """Returns the folders that can go.

    Others stay: those that were written within a day, those of the newest `keep` runs and of the
    latest run that failed or has no end, and those that are older than every run recorded here.

    Args:
      workdir: its checkpoints are looked at.
      everything: its runs, the oldest first.
      keep: how many of the newest runs can still be gone on with.

    Raises:
      SafelightError: a run's record can't be read.
    """
    now = time.time()
    read = [_read(run) for run in everything]
    kept = {one.name for one in read[-keep:]}
    kept |= {one.name for one in [it for it in read if it.unfinished][-1:]}
    going = []
    for folder in _folders(workdir.checkpoints):
        written = _written(folder)
        before = [one for one in read if one.begun <= written]
        fresh = now - written <= _FRESH_SECONDS
        if not fresh and before and max(before, key=lambda one: one.begun).name not in kept:
            going.append(folder)
    return going


def _folders(root: Path) -> list[Path]:
    found = root.iterdir() if root.is_dir() else ()
    return sorted(path for path in found if path.is_dir() and not path.name.startswith("."))


def _read(run: RunDir) -> _Run:
    begun = calendar.timegm(time.strptime(run.read_request().created, _CREATED))
    result = run.read_result()
    return _Run(run.root.name, begun, result is None or result.outcome == "failed")


def _written(folder: Path) -> float:
    """Returns when anything in a folder was written last, seconds since 1970."""
    newest = folder.stat().st_mtime
    for parent, _, files in os.walk(folder):
        newest = max(newest, *(Path(parent, name).stat().st_mtime for name in files), 0.0)
    return newest
