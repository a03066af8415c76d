"""Transfer learning: a backbone trained on five classes, fine-tuned on five others.

    python -m benchmarks.transfer DATA [--backbone cifar10-fast] [--seeds 3] [--per-class 100]

DATA has train/<class>/ and test/<class>/ (CIFAR-10 as JPEGs, say). The backbone is trained on all
images of the first, third, … class by name; its exported model is then where `train.weights` starts
the same network on the other classes, `--per-class` images of each. Against it: the same network
from scratch on the same images, for as many epochs. All through `safelight run`. Prints a table of
the accuracies on the other classes' test images by seed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.runs import artifact, classes_of, copy_classes, outcome, run

# What a small network needs to come from nothing, given to both sides.
EPOCHS = 30
HEAD_EPOCHS = 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--backbone", default="cifar10-fast")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--per-class", type=int, default=100)
    parser.add_argument("--limit", type=int, default=0, help="of the first training; 0: all")
    parser.add_argument("--pretrain-epochs", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of each side")
    arguments = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with tempfile.TemporaryDirectory(prefix="safelight-transfer-") as scratch:
        measure(arguments, Path(scratch))


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    """Trains the backbone, then both sides for each seed, and prints the table."""
    data, backbone = arguments.data.resolve(), f"train.backbone={arguments.backbone}"
    classes = classes_of(data)
    known = copy_classes(data, folder / "known", classes[::2], arguments.limit)
    new = copy_classes(data, folder / "new", classes[1::2], arguments.per_class)
    first = [
        backbone,
        f"train.epochs={arguments.pretrain_epochs}",
        "train.schedule=one-cycle",
        "train.learning_rate=0.004",
        "train.optimizer=adamw",
        'train.augment=["flip", "crop"]',
    ]
    seconds, result = run(known, folder / "first", first)
    started = outcome(folder / "first", result, seconds)
    weights = artifact(folder / "first", result, "Trainer", "model") / "Format-Serving"

    accuracies: dict[str, list[float]] = {"from scratch": [], "fine-tuned": []}
    for seed in range(1, arguments.seeds + 1):
        common = [
            backbone,
            f"train.seed={seed}",
            "train.patience=0",
            'train.augment=["flip", "crop"]',
        ]
        sides = {
            "from scratch": [f"train.epochs={arguments.epochs}", "train.schedule=one-cycle"],
            "fine-tuned": [f"train.weights={weights}", f"train.phases={phases(arguments.epochs)}"],
        }
        for name, settings in sides.items():
            workdir = folder / f"{name}-{seed}".replace(" ", "-")
            seconds, result = run(new, workdir, [*common, *settings])
            accuracies[name].append(outcome(workdir, result, seconds)["accuracy"])

    table = Table("five classes", "images a class", "accuracy by seed", "mean")
    table.add_row("first, all", str(arguments.limit or "all"), "", f"{started['accuracy']:.4f}")
    for name, values in accuracies.items():
        shown = " ".join(f"{value:.4f}" for value in values)
        table.add_row(name, str(arguments.per_class), shown, f"{statistics.mean(values):.4f}")
    Console(width=110).print(table)


def phases(epochs: int) -> str:
    """Returns train.phases as TOML: the head alone for a third of the epochs, then everything."""
    head = max(1, epochs * HEAD_EPOCHS // EPOCHS)
    fine = max(1, epochs - head)
    return (
        f'[{{epochs={head}, unfreeze="none"}}, '
        f'{{epochs={fine}, unfreeze="all", learning_rate=0.0003, schedule="cosine"}}]'
    )


if __name__ == "__main__":
    main()
