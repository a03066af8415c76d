"""Twenty spans of changing data, and three ways to keep a model fresh on them.

    python -m benchmarks.retraining DATA --workdir WORK [--spans N]
    python -m benchmarks.retraining --fashion --workdir WORK

DATA is a folder of class folders, or has train/ and test/ with class folders; --fashion takes
Fashion-MNIST from Debian's package dataset-fashion-mnist. benchmarks/retraining.toml is the plan,
written for 70,000 images. The arms:

    policy    `safelight retrain --once` after each span, as the plan sets it
    always    `safelight run` from scratch on all spans so far, after each span; no gate
    never     the first model, for ever

Prints, for each span, every arm's accuracy on rightly labelled test images of the span's kind; then
the number of trainings, the mean accuracy, and the bad pushes: where the model pushed is worse on
those images than the one before it by more than the plan's margin. Interrupted, it goes on where
it was: each span's results stand in WORK/<arm>.json. To try another policy on the same spans,
remove WORK/policy and WORK/policy.json: the other arms stay.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import fashion, retraining_data
from benchmarks.retraining_data import Images, Kind, Plan
from benchmarks.runs import SAFELIGHT
from pipeline import registry
from pipeline.evaluator.predictions import Export

PLAN = Path(__file__).with_suffix(".toml")
ARMS = ("policy", "always", "never")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--fashion", action="store_true", help="Fashion-MNIST instead of DATA")
    parser.add_argument("--workdir", type=Path, required=True, help="kept; name it again to go on")
    parser.add_argument("--spans", type=int, default=0, help="only the first so many")
    parser.add_argument("--plan", type=Path, default=PLAN)
    arguments = parser.parse_args()
    if (arguments.data is None) != arguments.fashion:
        parser.error("name DATA, or give --fashion")
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    workdir = arguments.workdir.resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    data = workdir / "fashion" if arguments.fashion else arguments.data.resolve()
    if arguments.fashion and not data.exists():
        fashion.write_folders(fashion.DEBIAN, data, 0)
    plan = retraining_data.read(arguments.plan)
    simulation = Simulation(plan, data, workdir)
    for number in range(1, (arguments.spans or len(plan.spans)) + 1):
        simulation.step(number)
    show(plan, simulation.done)


class Simulation:
    """The plan's spans, one after the other, and what each arm makes of them."""

    def __init__(self, plan: Plan, data: Path, workdir: Path) -> None:
        self._plan = plan
        self._workdir = workdir
        self._images = Images(data, plan)
        self._models: dict[Path, Export] = {}
        self._tests: dict[tuple[Any, ...], tuple[list[bytes], list[str]]] = {}
        self.done: dict[str, list[dict[str, Any]]] = {
            name: json.loads(self._progress(name).read_text())
            if self._progress(name).is_file()
            else []
            for name in ARMS
        }
        # Dealt in order, also on the way to where it goes on: the same files as the first time.
        self._images.write_golden(workdir / "golden")

    def step(self, number: int) -> None:
        """Lets span `number` arrive, and every arm do what it does."""
        span = self._workdir / "spans" / f"span-{number}"
        self._images.write_span(span, number)
        kind = self._plan.spans[number - 1]
        for name in ARMS:
            if number > len(self.done[name]):
                self._let(name, number, kind)
        arms = {name: self.done[name][number - 1] for name in ARMS}
        told = ", ".join(f"{name} {arms[name]['accuracy']:.3f}" for name in ARMS)
        mark = "trained" if arms["policy"]["trained"] else arms["policy"]["said"]
        print(f"span {number:2} {kind.kind}: {told}; policy: {mark}", flush=True)

    def _let(self, name: str, number: int, kind: Kind) -> None:
        """Lets one arm answer a span, and writes down what came of it."""
        done = self.done[name]
        arm = {"policy": self._policy, "always": self._always, "never": self._never}[name](number)
        before = done[-1]["model"] if done else None
        arm["accuracy"] = self._accuracy(arm["model"], kind)
        arm["before"] = self._accuracy(before, kind) if before else None
        arm["bad"] = bool(
            arm["pushed"] and before and arm["accuracy"] < arm["before"] - self._plan.margin
        )
        done.append(arm)
        self._progress(name).write_text(json.dumps(done, indent=1) + "\n")

    def _progress(self, name: str) -> Path:
        return self._workdir / f"{name}.json"

    def _policy(self, number: int) -> dict[str, Any]:
        arrived, workdir = self._workdir / "policy" / "spans", self._workdir / "policy" / "work"
        span = f"span-{number}"
        if not (arrived / span).exists():
            shutil.copytree(self._workdir / "spans" / span, arrived / span, copy_function=os.link)
        before = self._served(workdir)
        settings = [*self._plan.train, *self._plan.policy]
        settings.append(f"retrain.golden={self._workdir / 'golden'}")
        command = ["retrain", "--spans", str(arrived), "--once"]
        seconds, round_ = safelight([*command, "--workdir", str(workdir), *_set(settings)])
        result = round_["result"] or {}
        model = self._served(workdir)
        return {
            "trained": bool(result),
            "outcome": result.get("outcome", ""),
            "said": " ".join([*round_["quarantined"], *round_["reasons"]])[:300],
            "pushed": model != before,
            "model": model,
            "seconds": round(seconds, 1),
        }

    def _always(self, number: int) -> dict[str, Any]:
        data, workdir = self._workdir / "always" / "data", self._workdir / "always" / "work"
        _link_all(self._workdir / "spans", number, data)
        settings = [*self._plan.train, *self._plan.always]
        seconds, result = safelight(["run", str(data), "--workdir", str(workdir), *_set(settings)])
        model = self._served(workdir)
        pushed = result["outcome"] == "pushed"
        return {"trained": True, "outcome": result["outcome"], "pushed": pushed,
                "model": model, "seconds": round(seconds, 1)}  # fmt: skip

    def _never(self, number: int) -> dict[str, Any]:
        first = self.done["policy"][0]["model"]
        return {"trained": number == 1, "pushed": number == 1, "model": first}

    @staticmethod
    def _served(workdir: Path) -> str | None:
        root = workdir / "serving" / "model"
        current = registry.read(root).current
        return None if current is None else str(root / str(current))

    def _accuracy(self, model: str | None, kind: Kind) -> float:
        """Returns the share of the kind's test images that a served model gets right."""
        if model is None:
            return 0.0
        if kind.look not in self._tests:
            self._tests[kind.look] = self._images.test(kind)
        images, labels = self._tests[kind.look]
        if Path(model) not in self._models:
            self._models[Path(model)] = Export(Path(model))
        said: list[str] = []
        for start in range(0, len(images), 200):
            said += self._models[Path(model)].serve(images[start : start + 200]).labels
        return sum(one == other for one, other in zip(said, labels, strict=True)) / len(labels)


def safelight(arguments: list[str]) -> tuple[float, dict[str, Any]]:
    """Runs a command to its end, blessed or not; returns its seconds and what it printed."""
    began = time.monotonic()
    done = subprocess.run([SAFELIGHT, *arguments, "--json"], capture_output=True, text=True)
    if done.returncode not in (0, 3, 4):
        sys.exit(f"safelight {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
    return time.monotonic() - began, json.loads(done.stdout.splitlines()[-1])


def _set(settings: list[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def _link_all(spans: Path, number: int, data: Path) -> None:
    """Links the images of the first spans into class folders; what is there stays."""
    for one in range(1, number + 1):
        for source in sorted((spans / f"span-{one}").glob("*/*.png")):
            target = data / source.parent.name / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                os.link(source, target)


def show(plan: Plan, done: dict[str, list[dict[str, Any]]]) -> None:
    """Prints the accuracy over time, and what it took."""
    console = Console(width=120)
    table = Table("span", "kind", *ARMS, "Safelight's policy")
    rows = zip(plan.spans, *(done[name] for name in ARMS), strict=False)
    for number, (kind, *arms) in enumerate(rows, 1):
        said = arms[0]["outcome"] or arms[0]["said"]
        table.add_row(str(number), kind.kind, *map(_cell, arms), said)
    console.print(table)
    totals = Table("", *ARMS)
    totals.add_row("mean accuracy", *(f"{_mean(done[name]):.4f}" for name in ARMS))
    totals.add_row("last accuracy", *(f"{done[name][-1]['accuracy']:.4f}" for name in ARMS))
    for key, title in (("trained", "trainings"), ("pushed", "pushes"), ("bad", "bad pushes")):
        totals.add_row(title, *(str(sum(bool(arm[key]) for arm in done[name])) for name in ARMS))
    spent = (sum(arm.get("seconds", 0) for arm in done[name]) for name in ARMS)
    totals.add_row("seconds", *(f"{seconds:.0f}" for seconds in spent))
    console.print(totals)
    console.print(f"* pushed, ! a bad push: worse by more than {plan.margin:g} than the one before")


def _cell(arm: dict[str, Any]) -> str:
    return f"{arm['accuracy']:.3f}{'!' if arm['bad'] else '*' if arm['pushed'] else ''}"


def _mean(arms: list[dict[str, Any]]) -> float:
    return sum(arm["accuracy"] for arm in arms) / len(arms)


if __name__ == "__main__":
    main()
