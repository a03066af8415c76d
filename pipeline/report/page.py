"""A run's report: one self-contained HTML file, whatever the run came to."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.report import (
    calibration,
    champion,
    data,
    drift,
    explanations,
    flipped,
    heads,
    index,
    judged,
    mistakes,
    older,
    outcome,
    provenance,
    render,
    results,
    retraining,
    robustness,
    samples,
    search,
    serving,
    slices,
    timing,
    training,
    variants,
)
from pipeline.report.collect import Record
from pipeline.runs import RunDir
from pipeline.workdir import Workdir

_log = logging.getLogger("safelight")

# In the order of the page. A section whose data is not there is None, or empty, and left out.
_SECTIONS: dict[str, Callable[[Record], Any]] = {
    "results": results.build,
    "champion": champion.build,
    "flipped": flipped.build,
    "worst": judged.slices,
    "confused": judged.confused,
    "older": older.build,
    "retraining": retraining.build,
    "data": data.build,
    "drift": drift.build,
    "validation": data.validation,
    "samples": samples.build,
    "search": search.build,
    "training": training.build,
    "heads": heads.build,
    "mistakes": mistakes.build,
    "explanations": explanations.build,
    "slices": slices.build,
    "robustness": robustness.build,
    "calibration": calibration.build,
    "serving": serving.build,
    "variants": variants.build,
    "timing": timing.build,
    "provenance": provenance.build,
}


def write(workdir: Workdir, run: RunDir) -> Path:
    """Writes runs/<id>/report.html and the workdir's index.html, and returns the report's path.

    The same workdir gives the same bytes: nothing else is read, neither the clock nor the network.

    Raises:
      SafelightError: the run's own record, run.json, can't be read.
    """
    page = render.render("report.html.j2", sections(Record(workdir, run)))
    path = render.replace(run.report, page)
    index.write(workdir)
    return path


def sections(record: Record) -> dict[str, Any]:
    """Returns what the template is given: each section's data, and which could not be made."""
    broken: list[str] = []
    made: dict[str, Any] = {}
    for name, build in _SECTIONS.items():
        try:
            made[name] = build(record)
        except Exception as error:  # noqa: BLE001 - see below
            # A report is read when something went wrong: one damaged artifact, or an error in one
            # section, must not take the others with it. It is said on the page.
            _log.warning("report: %s\n%s", name, traceback.format_exc())
            made[name] = None
            broken.append(f"{name}: {type(error).__name__}: {error}")
    return {
        "run_id": record.run.root.name,
        "request": record.request,
        "outcome": outcome.build(record),
        "index": f"../../{record.workdir.index.name}",
        "unreadable": record.unreadable + broken,
        **made,
    }
