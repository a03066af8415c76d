"""Safelight against a plain Keras script on the same images: both sides in one run.

    python -m benchmarks.speed DATA [--epochs 10]

DATA has train/<class>/ and test/<class>/ (CIFAR-10 as JPEGs, say). Prints two tables: the whole job
and its stages, and the limits with what was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

SAFELIGHT = str(Path(sys.executable).with_name("safelight"))


def timed(*command: str) -> tuple[float, str]:
    """Runs a command to its end; returns its seconds and its last line."""
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.monotonic() - began
    if done.returncode not in (0, 3):
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    lines = done.stdout.splitlines()
    return seconds, lines[-1] if lines else ""


def run_safelight(data: Path, workdir: Path, *more: str) -> tuple[float, dict[str, Any]]:
    seconds, line = timed(SAFELIGHT, "run", str(data), "--workdir", str(workdir), "--json", *more)
    return seconds, json.loads(line)


def training(workdir: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Returns history.json of a run."""
    artifacts = json.loads((workdir / "runs" / result["run_id"] / "artifacts.json").read_text())
    loaded: dict[str, Any] = json.loads(
        (Path(artifacts["Trainer"]["model_run"]) / "history.json").read_text()
    )
    return loaded


def few(data: Path, folder: Path, count: int) -> Path:
    """Copies `count` training images, evenly by class, into class folders."""
    classes = sorted(path for path in (data / "train").iterdir() if path.is_dir())
    for source in classes:
        (folder / source.name).mkdir(parents=True)
        for path in sorted(source.iterdir())[: count // len(classes)]:
            shutil.copy(path, folder / source.name)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with tempfile.TemporaryDirectory(prefix="safelight-speed-") as folder:
        measure(arguments.data.resolve(), Path(folder), arguments.epochs)


def measure(data: Path, folder: Path, epochs: int) -> None:
    """Runs both sides and prints the tables."""
    console = Console(width=110)
    _, line = timed(
        sys.executable, "-m", "benchmarks.plain_keras", str(data), "--epochs", str(epochs)
    )
    plain = json.loads(line)
    console.print(f"plain Keras script: {plain['seconds']:.1f} s, accuracy {plain['accuracy']:.4f}")
    options = (
        "--set",
        "train.preset=cifar10-cnn",
        "--set",
        f"train.epochs={epochs}",
        "--set",
        "train.patience=0",
    )
    workdir = folder / "work"
    seconds, result = run_safelight(data, workdir, *options)
    history = training(workdir, result)
    cached, again = run_safelight(data, workdir, *options)
    if again["outcome"] != "unchanged" and again["outcome"] != result["outcome"]:
        sys.exit(f"the second run was not cached: {again}")
    small, _ = run_safelight(few(data, folder / "few", 500), folder / "small", *options)
    imports, _ = timed(sys.executable, "-c", "import tfx.v1")

    stages = Table("stage", "seconds", "share", title="Safelight, by stage")
    stages.columns[1].justify = stages.columns[2].justify = "right"
    known = sum(stage["seconds"] for stage in result["stages"])
    rows = [(stage["name"], stage["seconds"]) for stage in result["stages"]]
    rows.append(("start-up and the rest", seconds - known))
    for name, took in rows:
        stages.add_row(name, f"{took:.1f}", f"{took / seconds:.0%}")
    console.print(stages)

    trainer = next(stage["seconds"] for stage in result["stages"] if stage["name"] == "Trainer")
    limits = [
        ("whole run / plain script", seconds / plain["seconds"], "<=", 1.25),
        (
            "training throughput / plain script's",
            history["images_per_second"] / plain["images_per_second"],
            ">=",
            0.95,
        ),
        (
            "accuracy, difference in points",
            100 * (result["metrics"]["accuracy"] - plain["accuracy"]),
            ">=",
            -1.0,
        ),
        ("all stages but Trainer, seconds", known - trainer, "<=", 60.0),
        ("cached re-run / import of TFX", cached / imports, "<=", 1.5),
        ("run on 500 images, seconds", small, "<=", 60.0),
    ]
    table = Table(
        "measured",
        "value",
        "limit",
        "",
        title=f"Both sides, {plain['images']:,} images to train on, {epochs} epochs",
    )
    for name, value, sense, limit in limits:
        held = value <= limit if sense == "<=" else value >= limit
        table.add_row(name, f"{value:.2f}", f"{sense} {limit:g}", "held" if held else "NOT held")
    console.print(table)
    console.print(
        f"Safelight {seconds:.1f} s ({history['images_per_second']:.0f} images/s in training, "
        f"accuracy {result['metrics']['accuracy']:.4f}); plain {plain['seconds']:.1f} s "
        f"({plain['images_per_second']:.0f} images/s, accuracy {plain['accuracy']:.4f}); "
        f"cached re-run {cached:.1f} s; import of TFX {imports:.1f} s."
    )


if __name__ == "__main__":
    main()
