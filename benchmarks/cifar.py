"""CIFAR-10 by a plain Keras script, by the same network in Safelight, and by cifar10-fast.

    python -m benchmarks.cifar DATA [--seeds 3] [--results FILE] [--limit N] [--epochs E]

DATA has train/<class>/ and test/<class>/ (CIFAR-10 as JPEGs, say). For each seed: S2 as
benchmarks/plain_keras.py fits it, the preset cifar10-cnn (S2) and the preset cifar10-fast, these by
`safelight run`, each for its own epochs. Prints accuracy on test by seed, the mean, seconds of
fitting and of the whole. S2 has to lie within a point of the script, cifar10-fast within S2's wall
time.

The whole takes hours: --results keeps what is done, a line of JSON each, and goes on behind it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.runs import classes_of, copy_classes, outcome, run

PLAIN = "plain Keras"
WAYS = (PLAIN, "cifar10-cnn", "cifar10-fast")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=0, help="training images a class; 0: all")
    parser.add_argument("--epochs", type=int, default=0, help="0: each way's own")
    parser.add_argument("--results", type=Path, help="keeps what is done, and goes on behind it")
    arguments = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with tempfile.TemporaryDirectory(prefix="safelight-cifar-") as scratch:
        folder, data = Path(scratch), arguments.data.resolve()
        results = arguments.results or folder / "results.jsonl"
        if arguments.limit:
            data = copy_classes(data, folder / "data", classes_of(data), arguments.limit)
        for seed in range(1, arguments.seeds + 1):
            for way in WAYS:
                if not any((one["way"], one["seed"]) == (way, seed) for one in read(results)):
                    workdir = folder / way / str(seed)
                    found = measure(data, workdir, way, seed, arguments.epochs)
                    with results.open("a") as file:
                        file.write(json.dumps({"way": way, "seed": seed, **found}) + "\n")
        show(read(results))


def read(results: Path) -> list[dict[str, Any]]:
    """Returns what is done."""
    if not results.is_file():
        return []
    return [json.loads(line) for line in results.read_text().splitlines()]


def measure(data: Path, workdir: Path, way: str, seed: int, epochs: int) -> dict[str, Any]:
    """Trains once; `epochs` 0 stands for the way's own."""
    if way == PLAIN:
        return plain(data, seed, epochs or 10)
    settings = [f"train.preset={way}", f"train.seed={seed}", "train.patience=0"]
    if epochs:
        settings.append(f"train.epochs={epochs}")
    seconds, result = run(data, workdir, settings)
    return outcome(workdir, result, seconds)


def plain(data: Path, seed: int, epochs: int) -> dict[str, Any]:
    """Runs the peer's script."""
    command = [sys.executable, "-m", "benchmarks.plain_keras", str(data)]
    command += ["--epochs", str(epochs), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return {**json.loads(done.stdout.splitlines()[-1]), "epochs": epochs}


def show(results: list[dict[str, Any]]) -> None:
    table = Table("way", "parameters", "epochs", "accuracy", "mean", "fitting", "whole")
    for way in WAYS:
        runs = [one for one in results if one["way"] == way]
        accuracies = [one["accuracy"] for one in runs]
        table.add_row(
            way,
            f"{runs[0]['parameters']:,}",
            str(runs[0]["epochs"]),
            " ".join(f"{accuracy:.4f}" for accuracy in accuracies),
            f"{statistics.mean(accuracies):.4f}",
            f"{statistics.mean(one['fit_seconds'] for one in runs):.0f} s",
            f"{statistics.mean(one['seconds'] for one in runs):.0f} s",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
