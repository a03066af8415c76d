"""The preset cifar10-fast against cifar10-cnn (S2) on the same images, by accuracy and time.

    python -m benchmarks.cifar_fast DATA [--seeds 3] [--limit N] [--epochs E]

DATA has train/<class>/ and test/<class>/ (CIFAR-10 as JPEGs, say). Runs both through `safelight
run`, each preset for its own epochs, and prints a table: accuracy on test by seed, mean, seconds of
fitting, and the wall time of the whole run. cifar10-fast has to stay within S2's wall time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.runs import classes_of, copy_classes, outcome, run

PRESETS = ("cifar10-cnn", "cifar10-fast")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=0, help="training images a class; 0: all")
    parser.add_argument("--epochs", type=int, default=0, help="0: each preset's own")
    arguments = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with tempfile.TemporaryDirectory(prefix="safelight-cifar-") as scratch:
        folder, data = Path(scratch), arguments.data.resolve()
        if arguments.limit:
            data = copy_classes(data, folder / "data", classes_of(data), arguments.limit)
        found = {
            name: [
                measure(data, folder / name / str(seed), name, seed, arguments.epochs)
                for seed in range(1, arguments.seeds + 1)
            ]
            for name in PRESETS
        }
    show(found)


def measure(data: Path, workdir: Path, preset: str, seed: int, epochs: int) -> dict[str, Any]:
    """Runs one preset with one seed."""
    settings = [f"train.preset={preset}", f"train.seed={seed}"]
    if epochs:
        settings.append(f"train.epochs={epochs}")
    seconds, result = run(data, workdir, settings)
    return outcome(workdir, result, seconds)


def show(found: dict[str, list[dict[str, Any]]]) -> None:
    table = Table("preset", "parameters", "epochs", "accuracy", "mean", "fitting", "whole run")
    for name, runs in found.items():
        accuracies = [one["accuracy"] for one in runs]
        table.add_row(
            name,
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
