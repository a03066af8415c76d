"""The worker: a child process that imports TFX, builds the graph and runs it node by node.

    python -m pipeline.runners.worker WORKDIR RUN_DIR

Its standard output and error are the run's log; what people should see goes through
`pipeline.events`. It ends with result.json written, whatever happened.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NoReturn

from pipeline import events, lifetime, registry, runs, spares
from pipeline.config import Config
from pipeline.errors import DataRefused, NotBlessed, SafelightError, known_cause, of_disk
from pipeline.runners import metadata
from pipeline.runs import Outcome, Request, Result, RunDir, Stage
from pipeline.trainer import train
from pipeline.workdir import Workdir

_FULL: Final = ("No space left on device", "database or disk is full")


class Interrupted(SafelightError):
    """The run was asked to stop."""


def main() -> None:
    """Runs one request; the exit code is the outcome's."""
    workdir, run = Workdir(Path(sys.argv[1])), RunDir(Path(sys.argv[2]))
    # TFX's executors hand the program's own arguments to Beam: there is nothing here for it.
    del sys.argv[1:]
    events.configure(run.events)
    logging.basicConfig(level=logging.INFO)
    signal.signal(signal.SIGTERM, _stop)
    lifetime.end_with_parent(by=signal.SIGTERM)
    # TensorFlow Transform chooses Keras 2 where nothing is said.
    os.environ["TF_USE_LEGACY_KERAS"] = "0"
    execution = Execution(workdir, run)
    result = execution.run_all()
    run.write_result(result)
    _report(workdir, run, result)
    sys.exit(result.exit_code)


class Execution:
    """One pass over the graph's nodes, and what is known of it so far."""

    def __init__(self, workdir: Workdir, run: RunDir) -> None:
        self.workdir = workdir
        self.run = run
        self.request: Request = run.read_request()
        self.stages: list[Stage] = []
        self.artifacts: dict[str, dict[str, str]] = {}
        self.pushed: dict[str, str] = {}

    def run_all(self) -> Result:
        """Returns the result; an error becomes a failed one, its traceback goes to the log."""
        try:
            self._run_nodes()
        except Exception as error:  # noqa: BLE001 - whatever it is, the run ends with a result
            traceback.print_exc()
            known = known_cause(error) or of_disk(error)
            # What failed may stand behind the push: its model is served all the same.
            pushed = self.pushed if self._pushed_now() else self._published()
            return self._result(_outcome(known), _reasons(known, error), pushed)
        return self._finished()

    def _run_nodes(self) -> None:
        # Here TensorFlow and TFX are imported: seconds that the person is told about.
        started = time.monotonic()
        config = Config.model_validate(self.request.config)
        metadata.check(config.metadata.url, self.workdir.metadata)
        # Importing takes one core. Where this very model is what is served, none is trained.
        if config.tune.algorithm == "off" and not self.request.inputs["published"]:
            train.ahead(config.train)
        with spares.uncollected():
            from pipeline.runners.nodes import NodeRunner

        runner = NodeRunner(config, self.request, self.workdir)
        events.emit("startup", seconds=round(time.monotonic() - started, 2))
        for name in runner.names:
            self._run_node(runner, name)

    def _run_node(self, runner: Any, name: str) -> None:
        events.emit("stage", name=name, state="start")
        started = time.monotonic()
        try:
            done = runner.run(name)
        except BaseException:
            self._ended(name, "failed", time.monotonic() - started)
            raise
        self.artifacts[name] = done.uris
        runs.write_json(self.run.artifacts, self.artifacts)
        if name == "Pusher":
            self.pushed = done.properties
        self._ended(name, "cached" if done.cached else "complete", time.monotonic() - started)
        if not done.cached:
            _start_ahead(name, runner.config)

    def _ended(self, name: str, state: Any, seconds: float) -> None:
        stage = Stage(name=name, seconds=round(seconds, 2), state=state)
        self.stages.append(stage)
        events.emit(
            "stage", name=name, state=state, seconds=stage.seconds, peak_mb=_peak_memory_mb()
        )

    def _finished(self) -> Result:
        verdict = self._read("BlessingGate", "blessing", "verdict.json")
        if not verdict.get("blessed"):
            return self._result("not_blessed", verdict.get("reasons", []), {})
        version = self.pushed["pushed_version"]
        new = self._pushed_now()
        return self._result(
            "pushed" if new else "unchanged",
            [] if new else [f"Nothing has changed since version {version} was pushed."],
            self.pushed,
        )

    def _pushed_now(self) -> bool:
        return self.pushed.get("published_by") == self.request.run_id

    def _published(self) -> dict[str, str]:
        """Returns what Pusher would have told, had it not been stopped behind its push."""
        serving = self.workdir.serving(self.request.config["push"]["model_name"])
        entry = registry.read(serving).pushed_by(self.request.run_id)
        if entry is None:
            return {}
        place = str(serving / str(entry.version))
        return {"pushed_version": str(entry.version), "pushed_destination": place}

    def _result(self, outcome: Outcome, reasons: list[str], pushed: Mapping[str, str]) -> Result:
        summary = self._read("ImageExampleGen", "ingest_report", "summary.json")
        verdict = self._read("BlessingGate", "blessing", "verdict.json")
        return Result(
            run_id=self.request.run_id,
            outcome=outcome,
            reasons=reasons,
            metrics=verdict.get("metrics", {}),
            stages=self.stages,
            examples=summary.get("examples", {}),
            quarantined=summary.get("quarantined", 0),
            pushed_to=pushed.get("pushed_destination"),
            version=int(pushed["pushed_version"]) if "pushed_version" in pushed else None,
            exports=self._read("VariantPusher", "exports", "exports.json").get("exports", {}),
        )

    def _read(self, node: str, output: str, name: str) -> dict[str, Any]:
        uri = self.artifacts.get(node, {}).get(output)
        if uri is None:
            return {}
        loaded: dict[str, Any] = json.loads((Path(uri) / name).read_text())
        return loaded


def _start_ahead(done: str, config: Config) -> None:
    """Starts what a later node will need: its imports then take the core that Beam leaves idle.

    A node that ran makes those behind it run too; one from the cache says nothing of them.
    """
    from pipeline.blessing import serving_child

    if done == "Trainer":
        serving_child.ahead()
    elif done == "Tuner":
        train.ahead(config.train)


def _outcome(known: SafelightError | None) -> Outcome:
    if isinstance(known, DataRefused):
        return "invalid_data"
    # The registry refuses a blessed model too: what is served is pinned, or this was rolled back.
    return "not_blessed" if isinstance(known, NotBlessed) else "failed"


def _report(workdir: Workdir, run: RunDir, result: Result) -> None:
    """Makes the run's report, and records where it is; a run is worth no less without one."""
    from pipeline import report

    try:
        path = report.write(workdir, run)
    except Exception as error:  # noqa: BLE001 - the run has ended, and its result is written
        traceback.print_exc()
        events.warn(f"The report could not be made: {error}")
        return
    run.write_result(replace(result, report=str(path)))


def _reasons(known: SafelightError | None, error: BaseException) -> list[str]:
    if known is not None:
        return [str(known), *known.reasons]
    said = f"{type(error).__name__}: {error}".strip()
    # TensorFlow and SQLite have errors of their own for what Python calls OSError.
    if any(sign in said for sign in _FULL):
        said += ". The disk is full: free some space, and run the same command again."
    return [said]


def _peak_memory_mb() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) // 1024
    return 0


def _stop(signum: int, frame: object) -> NoReturn:
    # A service manager tells all processes, and the parent's end tells this one again: what is
    # cleaned up and written now is not to be stopped.
    signal.signal(signum, lambda *_: None)
    # An Exception, so that TFX removes the half-written outputs of the node that was running.
    raise Interrupted("The run was stopped. Run the same command again to go on from here.")


if __name__ == "__main__":
    main()
