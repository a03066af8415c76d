"""A change of code re-runs the nodes that stand on it, and no others."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import made
from tests.e2e.command import STAGES, environment

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_change_of_code_reruns_what_depends_on_it_and_no_more(tmp_path):
    sources = tmp_path / "sources"
    for package in ("pipeline", "components", "schemas"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, sources / package, ignore=ignored)
    data = made.class_folders(tmp_path / "colours", dict.fromkeys(made.HUES, 60))

    def rerun() -> set[str]:
        """Runs the copied sources; nothing is good enough to be pushed, so none is champion."""
        command = "from pipeline.cli import main; main()"
        options = ["--profile", "smoke", "--set", "evaluate.min_accuracy=1.0", "--json"]
        done = subprocess.run(
            [sys.executable, "-c", command, "run", data, "--workdir", tmp_path / "work", *options],
            env={**environment(), "PYTHONPATH": str(sources)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 3, done.stderr
        stages = json.loads(done.stdout.splitlines()[-1])["stages"]
        return {stage["name"] for stage in stages if stage["state"] == "complete"}

    def touch(module: str) -> None:
        with open(sources / module, "a", encoding="utf-8") as file:
            file.write("\n# A change.\n")

    assert rerun() == set(STAGES)
    # Only the registry can say that a push still holds: without one, Pusher always looks.
    assert rerun() == {"Pusher"}
    touch("pipeline/blessing/verdict.py")
    assert rerun() == {"BlessingGate", "Pusher"}
    touch("pipeline/transform.py")
    assert rerun() == set(STAGES[STAGES.index("Transform") :])
    touch("pipeline/console.py")
    assert rerun() == {"Pusher"}
