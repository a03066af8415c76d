"""The exit task: what the run came to, and its report, whatever happened before."""

from __future__ import annotations

import html
import json
import shutil
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import events, runs
from pipeline.kubeflow import names
from pipeline.kubeflow.artifacts import ExecutorInput, write_output
from pipeline.kubeflow.record import Record, StepRecord
from pipeline.runs import Outcome, Result, Stage
from pipeline.workdir import Workdir

_OUTCOMES: Mapping[int, Outcome] = {3: "not_blessed", 4: "invalid_data"}
_SUCCEEDED = ("SUCCEEDED", "COMPLETE")


def run(given: ExecutorInput, workdir: Workdir, record: Record, nodes: Sequence[str]) -> Result:
    """Writes result.json and the report, and gives the report to the server's pages.

    Args:
      given: with the group's final status, and the place of the report.
      workdir: of the run.
      record: of the run.
      nodes: ids of the graph's nodes, in order.
    """
    status = given.parameters.get(names.STATUS) or {}
    _find_refused(record)
    kept = record.kept()
    runs.write_json(record.run.artifacts, kept)
    _write_events(record)
    result = conclude(record, nodes, str(status.get("state", "")))
    record.run.write_result(result)
    return _report(given, workdir, record, result)


def _report(given: ExecutorInput, workdir: Workdir, record: Record, result: Result) -> Result:
    """Makes the report and returns the result with it; a run is worth no less without one."""
    from pipeline.report import page

    try:
        report = page.write(workdir, record.run)
        result = replace(result, report=str(report))
        record.run.write_result(result)
        shutil.copyfile(report, _place(given))
        write_output(given, {names.HTML: {"outcome": result.outcome}})
    except Exception as error:  # noqa: BLE001 - the run has ended, and its result is written
        traceback.print_exc()
        said = f"The report could not be made: {error}"
        events.warn(said)
        # Its page on the server then says why there is none, if at least that can be written.
        with suppress(OSError):
            _place(given).write_text(f"<p>{html.escape(said)}</p>\n", encoding="utf-8")
            write_output(given, {names.HTML: {"outcome": result.outcome}})
    return result


def conclude(record: Record, nodes: Sequence[str], state: str) -> Result:
    """Returns what the run came to, from the records of its steps.

    Args:
      record: of the run.
      nodes: ids of the graph's nodes, in order.
      state: the server's word for how the steps before ended.
    """
    steps = {node: record.read(node) for node in (names.PREPARE, *nodes)}
    summary = _read(record, "ImageExampleGen", "ingest_report", "summary.json")
    verdict = _read(record, "BlessingGate", "blessing", "verdict.json")
    outcome, reasons, pushed = _outcome(steps, verdict, state, record.run.root.name)
    return Result(
        run_id=record.run.root.name,
        outcome=outcome,
        reasons=reasons,
        metrics=verdict.get("metrics", {}),
        stages=_stages(steps, nodes),
        examples=summary.get("examples", {}),
        quarantined=summary.get("quarantined", 0),
        pushed_to=pushed.get("pushed_destination"),
        version=int(pushed["pushed_version"]) if "pushed_version" in pushed else None,
        exports=_read(record, "VariantPusher", "exports", "exports.json").get("exports", {}),
    )


def _find_refused(record: Record) -> None:
    """Moves what a step kept before it refused the data to where the report looks for it."""
    left, expected = record.steps / "refused", record.run.root / "refused"
    if left.is_dir() and not expected.exists():
        left.rename(expected)


def _outcome(
    steps: Mapping[str, StepRecord | None], verdict: Mapping[str, Any], state: str, run_id: str
) -> tuple[Outcome, list[str], Mapping[str, Any]]:
    failed = [step for step in steps.values() if step is not None and step.state == "failed"]
    pusher = steps.get("Pusher")
    pushed = {} if pusher is None else pusher.properties
    new = pushed.get("published_by") == run_id
    if failed:
        first = failed[0]
        outcome = _OUTCOMES.get(first.exit_code, "failed")
        # What failed may stand behind the push, or beside it: its model is served all the same.
        return outcome, first.reasons or [first.message], pushed if new else {}
    if "pushed_version" in pushed:
        version = pushed["pushed_version"]
        reasons = [] if new else [f"Nothing has changed since version {version} was pushed."]
        return ("pushed" if new else "unchanged"), reasons, pushed
    if verdict and not verdict["blessed"]:
        return "not_blessed", list(verdict["reasons"]), {}
    ended = "was left out" if state in _SUCCEEDED else "ended without a word"
    reason = (
        f"A step {ended} (the server says {state or 'nothing'}): out of memory, evicted, out of "
        "time, or its image could not be pulled. The run's page on the server shows which."
    )
    return "failed", [reason], {}


def _stages(steps: Mapping[str, StepRecord | None], nodes: Sequence[str]) -> list[Stage]:
    """Returns the nodes that came to run; one without a record before one that has was cached."""
    last = max((place for place, node in enumerate(nodes) if steps[node] is not None), default=-1)
    stages = []
    for node in nodes[: last + 1]:
        step = steps[node]
        if step is None:
            stages.append(Stage(node, 0.0, "cached"))
        else:
            state = "complete" if step.state == "complete" else "failed"
            stages.append(Stage(node, step.seconds, state))  # type: ignore[arg-type]
    return stages


def _write_events(record: Record) -> None:
    with open(record.run.events, "w", encoding="utf-8") as file:
        for event in record.all_events():
            file.write(json.dumps(event) + "\n")


def _read(record: Record, node: str, key: str, name: str) -> dict[str, Any]:
    path = record.copies / node / key / name
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return loaded


def _place(given: ExecutorInput) -> Path:
    path = given.outputs[names.HTML].path
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
