"""A run's record: what was asked, what it was given, and how it ended.

runs/<run id>/run.json       the request: data, configuration, lineage, inputs
runs/<run id>/events.jsonl   what happened, as it happened
runs/<run id>/log.txt        everything that TensorFlow, Beam and TFX printed
runs/<run id>/artifacts.json where each node's outputs are
runs/<run id>/result.json    the outcome; what `safelight run --json` prints
runs/<run id>/refused/       what a node that refused the data had found (pipeline/refused.py)
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import SafelightError, first_line

Outcome = Literal["pushed", "unchanged", "not_blessed", "invalid_data", "failed"]

EXIT_CODES: dict[Outcome, int] = {
    "pushed": 0,
    "unchanged": 0,
    "not_blessed": 3,
    "invalid_data": 4,
    "failed": 1,
}


@dataclass(frozen=True)
class Request:
    """What a run was asked and given; everything the worker needs.

    `lineage` has the fingerprints `data`, `config` and `code`; `inputs` has `known_classes` (the
    class order to keep), `champion` (its version or None), `champion_uri` ("" without one), and
    `published`: whether a run of this very lineage is what is served. `spans` is the window, where
    the data is one: for each span `name`, `path`, `fingerprint`, `golden` and `judged`.
    """

    run_id: str
    created: str
    data: str
    config: dict[str, Any]
    origins: dict[str, str]
    chosen: list[str]
    scan: dict[str, Any]
    lineage: dict[str, str]
    inputs: dict[str, Any]
    versions: dict[str, str]
    spans: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Stage:
    """How long a node took, and whether the cache answered."""

    name: str
    seconds: float
    state: Literal["complete", "cached", "failed"]


@dataclass(frozen=True)
class Result:
    """How a run ended; its JSON is the last line of `safelight run --json`.

    `exports` says where the version's variants were published: {variant: directory}.
    """

    run_id: str
    outcome: Outcome
    reasons: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    examples: dict[str, int] = field(default_factory=dict)
    quarantined: int = 0
    pushed_to: str | None = None
    version: int | None = None
    report: str | None = None
    exports: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Returns the object on one line."""
        return json.dumps(asdict(self))

    @property
    def exit_code(self) -> int:
        """Returns the exit code of a command that ends with this outcome."""
        return EXIT_CODES[self.outcome]


@dataclass(frozen=True)
class RunDir:
    """Paths of one run below `runs/`."""

    root: Path

    @property
    def request(self) -> Path:
        return self.root / "run.json"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def log(self) -> Path:
        return self.root / "log.txt"

    @property
    def artifacts(self) -> Path:
        return self.root / "artifacts.json"

    @property
    def result(self) -> Path:
        return self.root / "result.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def refused(self, node: str, output: str) -> Path:
        """Returns where a node that refuses the data leaves what it found."""
        return self.root / "refused" / node / output

    def write_request(self, request: Request) -> None:
        """Makes the directory and writes run.json."""
        self.root.mkdir(parents=True)
        write_json(self.request, asdict(request))

    def read_request(self) -> Request:
        """Returns what run.json holds.

        Raises:
          SafelightError: it can't be read; so of the other files.
        """
        with _whole(self.request, "a run's request"):
            return Request(**json.loads(self.request.read_text()))

    def write_result(self, result: Result) -> None:
        """Writes result.json."""
        write_json(self.result, asdict(result))

    def read_result(self) -> Result | None:
        """Returns the outcome, or None where the run was killed before it wrote one."""
        if not self.result.is_file():
            return None
        with _whole(self.result, "a run's result"):
            values = json.loads(self.result.read_text())
            values["stages"] = [Stage(**stage) for stage in values["stages"]]
            return Result(**values)

    def read_artifacts(self) -> dict[str, dict[str, str]]:
        """Returns {node: {output key: URI}} of the nodes that ended."""
        if not self.artifacts.is_file():
            return {}
        with _whole(self.artifacts, "the outputs of a run's nodes"):
            found: dict[str, dict[str, str]] = json.loads(self.artifacts.read_text())
            return {node: dict(outputs) for node, outputs in found.items()}


@contextmanager
def _whole(path: Path, what: str) -> Iterator[None]:
    """Around the reading of a record: one that somebody damaged is told by its name."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SafelightError(
            f"{path} can't be read: expected the JSON of {what}; received {first_line(error)} "
            f"Restore the file, or remove {path.parent}."
        ) from None


def new_run_id() -> str:
    """Returns a name that sorts by time and is not used twice."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


def all_runs(runs: Path) -> Iterator[RunDir]:
    """Yields the runs of a workdir, oldest first."""
    for root in sorted(runs.iterdir() if runs.is_dir() else []):
        if (root / "run.json").is_file():
            yield RunDir(root)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON beside `path`, then renames: a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.new")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
