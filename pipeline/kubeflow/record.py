"""A run's record on the workdir's volume, written by steps in pods of their own.

    runs/<time>-<server's run id, 8 characters>/run.json       by `prepare`
                                 steps/<step>.json              how a step ended
                                 steps/<step>.events.jsonl      what it told meanwhile
                                 artifacts/<node>/<output>/     copies, for the report
                                 result.json, report.html, …    by the exit task

Each step writes files of its own: appending to one file from several nodes of a cluster would tear
lines. The server's logs have what the steps print.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline import events, runs
from pipeline.errors import SafelightError
from pipeline.features import TRAIN
from pipeline.kubeflow import names
from pipeline.runs import RunDir
from pipeline.workdir import Workdir

_SHORT = 8
_TRAINED_ON = f"Split-{TRAIN}"


@dataclass(frozen=True)
class StepRecord:
    """How a step ended; `properties` are those of a node's last output."""

    step: str
    state: str
    seconds: float
    exit_code: int = 0
    message: str = ""
    reasons: list[str] = field(default_factory=list)
    properties: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """One run's folder; `open_record` finds it."""

    run: RunDir
    limit_bytes: int

    @property
    def steps(self) -> Path:
        return self.run.root / "steps"

    @property
    def copies(self) -> Path:
        return self.run.root / "artifacts"

    def events(self, step: str) -> Path:
        """Returns the file that a step's events go to."""
        self.steps.mkdir(exist_ok=True)
        return self.steps / f"{step}.events.jsonl"

    def write(self, record: StepRecord) -> None:
        """Keeps how a step ended; a second try replaces the first."""
        self.steps.mkdir(exist_ok=True)
        runs.write_json(self.steps / f"{record.step}.json", asdict(record))

    def read(self, step: str) -> StepRecord | None:
        """Returns how a step ended, or None where it has not run."""
        path = self.steps / f"{step}.json"
        return StepRecord(**json.loads(path.read_text("utf-8"))) if path.is_file() else None

    def keep(self, node: str, key: str, source: Path) -> None:
        """Copies an artifact for the report, unless it is there already or too large.

        Of examples that are too large the training images are left out: what looks at a champion's
        own images later (label noise, drift of its features) takes those that it was not fitted to.
        """
        target = self.copies / node / key
        if target.exists() or not source.is_dir():
            return
        left_out: tuple[str, ...] = ()
        whole = _size(source)
        if whole > self.limit_bytes:
            left_out = (_TRAINED_ON,)
            if whole - _size(source / _TRAINED_ON) > self.limit_bytes:
                events.note(
                    f"{node}'s {key} is over {self.limit_bytes / 1e6:,.0f} MB "
                    "(kubeflow.record_megabytes): no copy of it is kept beside the run's record"
                )
                return
        target.parent.mkdir(parents=True, exist_ok=True)
        incoming = target.with_name(f".{key}.{os.getpid()}")
        leave = shutil.ignore_patterns(*left_out)
        shutil.copytree(source, incoming, ignore=leave, copy_function=shutil.copyfile)
        try:
            incoming.rename(target)
        except OSError:
            # Another step kept it in the meantime.
            shutil.rmtree(incoming)

    def kept(self) -> dict[str, dict[str, str]]:
        """Returns {node: {output key: path}} of the copies."""
        found: dict[str, dict[str, str]] = {}
        for path in sorted(self.copies.glob("*/[!.]*")):
            found.setdefault(path.parent.name, {})[path.name] = str(path)
        return found

    def all_events(self) -> Iterator[Mapping[str, Any]]:
        """Yields the events of all steps in the order of their time."""
        lines = []
        for path in sorted(self.steps.glob("*.events.jsonl")):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    lines.append(json.loads(line))
                except ValueError:
                    continue
        return iter(sorted(lines, key=lambda event: float(event.get("t", 0))))


def run_id() -> str:
    """Returns the server's id of this run.

    Raises:
      SafelightError: the environment does not say.
    """
    found = os.environ.get(names.RUN_ID, "")
    if not found:
        raise SafelightError(
            f"The environment variable {names.RUN_ID} is not set. It comes from the platform "
            "document of the package: submit the whole file that `safelight compile` wrote."
        )
    return found


def open_record(workdir: Workdir, megabytes: int, create: bool = False) -> Record:
    """Returns this run's record.

    Args:
      workdir: on a volume.
      megabytes: the largest artifact to keep a copy of.
      create: name a new folder if there is none; `prepare` alone does.

    Raises:
      SafelightError: there is none.
    """
    short = run_id()[:_SHORT]
    found = sorted(workdir.runs.glob(f"*-{short}"))
    limit = megabytes * 1_000_000
    if found:
        return Record(RunDir(found[-1]), limit)
    if not create:
        raise SafelightError(
            f"There is no record of run {short} in {workdir.runs}: its first step, "
            f"{names.PREPARE}, did not come to write one. See that step's log."
        )
    stamp = runs.new_run_id().rpartition("-")[0]
    return Record(RunDir(workdir.runs / f"{stamp}-{short}"), limit)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
