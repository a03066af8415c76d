"""`safelight run` as the benchmarks of training use it: its settings, and what came of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

SAFELIGHT = str(Path(sys.executable).with_name("safelight"))


def run(data: Path, workdir: Path, settings: Sequence[str]) -> tuple[float, dict[str, Any]]:
    """Runs the pipeline to its end, blessed or not; returns its seconds and its result."""
    command = [SAFELIGHT, "run", str(data), "--workdir", str(workdir), "--json"]
    for setting in settings:
        command += ["--set", setting]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.monotonic() - began
    if done.returncode not in (0, 3):
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return seconds, json.loads(done.stdout.splitlines()[-1])


def artifact(workdir: Path, result: dict[str, Any], node: str, name: str) -> Path:
    """Returns the directory of an output of a run's node."""
    artifacts = json.loads((workdir / "runs" / result["run_id"] / "artifacts.json").read_text())
    return Path(artifacts[node][name])


def outcome(workdir: Path, result: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Returns what a run reached and cost."""
    model = artifact(workdir, result, "Trainer", "model") / "Format-Serving" / "assets.extra"
    history_file = artifact(workdir, result, "Trainer", "model_run") / "history.json"
    verdict = artifact(workdir, result, "BlessingGate", "blessing") / "verdict.json"
    history = json.loads(history_file.read_text())
    metrics = json.loads(verdict.read_text())
    return {
        "accuracy": metrics["metrics"]["accuracy"],
        "test_examples": metrics["test_examples"],
        "parameters": json.loads((model / "model.json").read_text())["parameters"],
        "epochs": len(history["epochs"]),
        "best_epoch": history["best_epoch"],
        "seconds": round(seconds, 1),
        "fit_seconds": round(history["seconds"], 1),
        "images_per_second": history["images_per_second"],
    }


def copy_classes(data: Path, folder: Path, classes: Iterable[str], per_class: int = 0) -> Path:
    """Links `data`'s train/ and test/ of these classes into `folder`, and returns it.

    Args:
      data: has train/<class>/ and test/<class>/.
      folder: is made.
      classes: names of folders.
      per_class: of train, at most so many of each class, the first by name; 0 for all.
    """
    for split in ("train", "test"):
        for name in classes:
            source, target = data / split / name, folder / split / name
            target.mkdir(parents=True)
            files = sorted(source.iterdir())
            for path in files[: per_class or None] if split == "train" else files:
                shutil.copy(path, target)
    return folder


def classes_of(data: Path) -> list[str]:
    """Returns the names of the class folders below data/train, sorted."""
    return sorted(path.name for path in (data / "train").iterdir() if path.is_dir())
