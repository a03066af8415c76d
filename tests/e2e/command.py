"""Runs `safelight` as a person does: the installed command, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import signals

COMMAND = str(Path(sys.executable).with_name("safelight"))
STAGES = [
    "ImageExampleGen",
    "ImageSchemaGen",
    "StatisticsGen",
    "ExampleValidator",
    "ValidationGate",
    "Transform",
    "Trainer",
    "Evaluator",
    "Predictor",
    "ServingCheck",
    "BlessingGate",
    "Pusher",
]


@dataclass(frozen=True)
class Ended:
    """How a command ended, what it printed, and the JSON object of its last line."""

    code: int
    stdout: str
    stderr: str

    @property
    def result(self) -> dict[str, Any]:
        return json.loads(self.stdout.splitlines()[-1])

    def states(self) -> dict[str, str]:
        return {stage["name"]: stage["state"] for stage in self.result["stages"]}

    def stages_in(self, state: str) -> set[str]:
        return {name for name, reached in self.states().items() if reached == state}


def environment() -> dict[str, str]:
    return {**os.environ, "COLUMNS": "200", "CUDA_VISIBLE_DEVICES": ""}


def safelight(*arguments: object, timeout: float = 900) -> Ended:
    """Runs the command to its end."""
    done = subprocess.run(
        [COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(),
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def start(*arguments: object) -> subprocess.Popen[str]:
    """Starts the command, deaf to no signal; the caller ends it."""
    return subprocess.Popen(
        [COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        # A shell's background job ignores Ctrl-C, and so would all that it starts.
        preexec_fn=signals.heeded,
    )
