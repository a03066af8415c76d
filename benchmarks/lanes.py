"""Both lanes on the same images with the same seed: `make compare-lanes`.

Runs the demo's digits through the legacy lane (TFX 1.16) and the current one (TFX 1.21), each in
an environment of its own, and compares what they made: splits, schema, what the transform graph
gives, accuracy. Then each lane takes over from the other: it predicts with the model that the other
pushed, builds its network anew with its weights, and the current lane goes on in the legacy lane's
workdir. Prints two tables; exits with 1 where a comparison fails.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pipeline.commands import demo
from pipeline.runs import RunDir

ROOT = Path(__file__).parents[1]
PLACE = ROOT / ".cache" / "lanes"
LANES = ("legacy", "current")
OPTIONS = [part for value in demo.OVERRIDES for part in ("--set", value)]
# Pixels pass two builds of TensorFlow; probabilities a whole network.
PIXEL_NOISE, PROBABILITY_NOISE = 1e-6, 1e-4
# Two seeds of this network on 971 images differ by less (docs/training.md).
ACCURACY_NOISE = 0.015


@dataclass(frozen=True)
class Side:
    """What one lane made of the data."""

    seconds: float
    result: dict[str, Any]
    facts: dict[str, Any]
    pixels: np.ndarray
    label_ids: np.ndarray


def main() -> None:
    """Runs both lanes and prints the tables."""
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir(parents=True)
    demo.write_digits(PLACE / "data")
    for lane in LANES:
        # A lane's first command sets it up: that is not the run's time.
        in_lane(lane, "safelight", "--version")
    sides = {lane: run_side(lane) for lane in LANES}
    console = Console(width=110)
    console.print(_stages(sides))
    checks = [*_same(sides["legacy"], sides["current"]), *_exchanged(sides), _taken_over()]
    table = Table("compared", "found", "", title="The same data, configuration and seed")
    for name, found, right in checks:
        table.add_row(name, found, "the same" if right else "NOT the same")
    console.print(table)
    sys.exit(0 if all(right for _, _, right in checks) else 1)


def in_lane(lane: str, *command: str) -> str:
    """Runs a command in a lane's environment; returns what it printed.

    `.cache/lanes` has the same path on both sides.
    """
    environment = {
        **os.environ,
        "SAFELIGHT_QUIET": "1",
        "SHARE": str(PLACE),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    if lane == "current":
        start = ["sh", "scripts/current.sh"]
    else:
        start, environment["LANE"] = ["sh", "scripts/env.sh"], "legacy"
    done = subprocess.run(
        [*start, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode not in (0, 3):
        sys.exit(
            f"{lane}: {' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}"
        )
    return done.stdout


def last_line(text: str) -> dict[str, Any]:
    """Returns the JSON object on the last line of a command's output."""
    loaded: dict[str, Any] = json.loads(text.splitlines()[-1])
    return loaded


def run_side(lane: str) -> Side:
    """Runs the pipeline in a lane, and has that lane tell what it made."""
    began = time.monotonic()
    said = in_lane(
        lane,
        "safelight",
        "run",
        str(PLACE / "data"),
        "--workdir",
        str(PLACE / lane),
        "--json",
        *OPTIONS,
    )
    seconds = time.monotonic() - began
    told = PLACE / f"{lane}.npz"
    in_lane(lane, "python", "-m", "benchmarks.lane_facts", str(PLACE / lane), str(told))
    with np.load(told) as arrays:
        facts = json.loads(arrays["facts"].tobytes())
        return Side(seconds, last_line(said), facts, arrays["pixels"], arrays["label_ids"])


def _stages(sides: dict[str, Side]) -> Table:
    table = Table("", *LANES, title="The demo's 5,000 digits in each lane")
    for column in table.columns[1:]:
        column.justify = "right"
    for package in ("python", "tfx", "tensorflow", "keras", "apache-beam"):
        table.add_row(package, *(sides[lane].facts["versions"][package] for lane in LANES))
    for position, stage in enumerate(sides["legacy"].result["stages"]):
        times = (sides[lane].result["stages"][position]["seconds"] for lane in LANES)
        table.add_row(stage["name"], *(f"{seconds:.1f} s" for seconds in times))
    table.add_row("the whole run", *(f"{sides[lane].seconds:.1f} s" for lane in LANES))
    accuracies = (sides[lane].result["metrics"]["accuracy"] for lane in LANES)
    table.add_row("accuracy", *(f"{accuracy:.4f}" for accuracy in accuracies))
    return table


def _same(one: Side, other: Side) -> list[tuple[str, str, bool]]:
    moved = sum(
        other.facts["splits"].get(name) != split for name, split in one.facts["splits"].items()
    )
    schema = one.facts["schema"] == other.facts["schema"]
    ids = bool(np.array_equal(one.label_ids, other.label_ids))
    noise = float(np.abs(one.pixels - other.pixels).max())
    accuracy = abs(one.result["metrics"]["accuracy"] - other.result["metrics"]["accuracy"])
    images = len(one.facts["splits"])
    return [
        ("splits", f"{moved} of {images} images in another", moved == 0),
        ("schema and class order", "to the byte" if schema else "they differ", schema),
        ("label ids of 256 images", "equal" if ids else "they differ", ids),
        ("transformed pixels", f"largest difference {noise:.1e}", noise <= PIXEL_NOISE),
        ("accuracy", f"difference {accuracy:.4f}", accuracy <= ACCURACY_NOISE),
    ]


def _exchanged(sides: dict[str, Side]) -> list[tuple[str, str, bool]]:
    """Lets each lane serve and rebuild what the other pushed."""
    rows = []
    for pusher, taker in (("legacy", "current"), ("current", "legacy")):
        told = PLACE / f"{pusher}-in-{taker}.npz"
        model = sides[pusher].result["pushed_to"]
        in_lane(
            taker, "python", "-m", "benchmarks.lane_facts", str(PLACE / pusher), str(told), model
        )
        with np.load(told) as arrays, np.load(PLACE / f"{pusher}.npz") as own:
            for what in ("served", "rebuilt"):
                noise = float(np.abs(arrays[what] - own["served"]).max())
                rows.append(
                    (
                        f"{pusher}'s model {what} by {taker}",
                        f"largest difference {noise:.1e}",
                        noise <= PROBABILITY_NOISE,
                    )
                )
    return rows


def _taken_over() -> tuple[str, str, bool]:
    """Lets the current lane go on in the legacy lane's workdir, with another seed."""
    changed = ("--set", "train.seed=18", "--set", "evaluate.max_regression=0.05")
    workdir = str(PLACE / "legacy")
    said = in_lane(
        "current", "safelight", "run", str(PLACE / "data"), "--workdir", workdir, "--json",
        *OPTIONS, *changed,
    )  # fmt: skip
    result = last_line(said)
    registry = json.loads((Path(result["pushed_to"]).parent / "registry.json").read_text())
    versions = [entry["version"] for entry in registry["versions"]]
    run = RunDir(PLACE / "legacy" / "runs" / result["run_id"])
    blessing = Path(run.read_artifacts()["BlessingGate"]["blessing"])
    champion = json.loads((blessing / "verdict.json").read_text())["champion"]["version"]
    found = f"{result['outcome']}: versions {versions}, judged against version {champion}"
    right = versions == [1, 2] and champion == 1
    return "legacy's workdir taken over by current", found, right


if __name__ == "__main__":
    main()
