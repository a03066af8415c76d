"""`safelight report`: makes a run's report again, from the workdir alone."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline import runs
from pipeline.errors import UsageError, did_you_mean
from pipeline.report.page import write
from pipeline.runs import RunDir
from pipeline.workdir import Workdir, open_workdir


def command(workdir: Path, run: str | None = None, as_json: bool = False) -> Path:
    """Writes the report of `run` (the newest by default) and the index, and prints the path.

    Args:
      workdir: where the runs are.
      run: a run's id, or the beginning of one.
      as_json: print `{"run_id", "report", "index"}` instead.

    Raises:
      UsageError: no workdir, no run, no such run, or more than one that begins so.
    """
    place = open_workdir(workdir, create=False)
    chosen = choose(place, run)
    path = write(place, chosen)
    if as_json:
        told = {"run_id": chosen.root.name, "report": str(path), "index": str(place.index)}
        print(json.dumps(told))
    else:
        print(path)
    return path


def choose(workdir: Workdir, run: str | None) -> RunDir:
    """Returns the run of this id or beginning; the newest for None."""
    known = {found.root.name: found for found in runs.all_runs(workdir.runs)}
    if not known:
        raise UsageError(
            f"The workdir {workdir.root} has no run to report on. "
            f"Start one with: safelight run DATA --workdir {workdir.root}"
        )
    if run is None:
        return known[max(known)]
    matching = [run] if run in known else [name for name in known if run and name.startswith(run)]
    if not matching:
        raise UsageError(
            f"The workdir {workdir.root} has no run {run!r}.{did_you_mean(run, known)}"
        )
    if len(matching) > 1:
        raise UsageError(
            f"{run!r} is the beginning of {len(matching)} runs; expected one: "
            f"{', '.join(sorted(matching)[:5])}. Give more of the id."
        )
    return known[matching[0]]
