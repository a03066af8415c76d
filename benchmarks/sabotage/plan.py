"""The suite's models: which there are of a seed, how each is made, and who judges it.

`make` and `judge` run in processes of a pool; each leaves its result in the workdir and does
nothing where that is there already.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

CHAMPION: Final = "champion"
RETRAIN: Final = "retrain"
WORSE: Final = "worse"
VARIANT: Final = "tflite-int8"
_CUTS: Final = {
    "weights-cut": "variables/variables.data-*",
    "graph-cut": "saved_model.pb",
}
_MISHANDLED: Final = ("scale", "inverted", "channels")

# What stands in the table, in its order; the names of models begin with these.
TITLES: Final = {
    RETRAIN: "healthy retrain",
    "scale": "serving does not divide pixels by 255",
    "inverted": "serving inverts pixels",
    "channels": "serving swaps red and blue",
    "class-order": "class names moved by one in the export",
    "two-bits": "kernels rounded to 2 bits",
    "weights-cut": "variables file cut to half",
    "graph-cut": "saved_model.pb cut to half",
    "labels-shuffled": "labels of a class shuffled in training",
    "class-dropped": "a class dropped from training",
    f"{WORSE}-1": "worse by 1 point",
    f"{WORSE}-2": "worse by 2 points",
    f"{WORSE}-5": "worse by 5 points",
    VARIANT: "healthy, as tflite-int8",
    f"{VARIANT}-of-constants": "tflite-int8, its ranges from black images",
}
HEALTHY: Final = (RETRAIN, VARIANT)
# Whether these are blocked is a question of power.
UNSURE: Final = (f"{WORSE}-1", f"{WORSE}-2")
MADE_FROM_DATA: Final = ("labels-shuffled", "class-dropped")
# Of what a variant is held to, nothing is about a champion.
VARIANTS: Final = (VARIANT, f"{VARIANT}-of-constants")


@dataclass(frozen=True)
class Plan:
    """How large the suite is.

    Attributes:
      workdir: where everything is kept.
      seeds: champions.
      retrains: healthy models of each seed.
      losses: points that challengers are worse by.
      draws: challengers of each seed and loss.
      profiles: configurations to judge by; those behind the first see one model of each kind.
      epochs: of a training.
      colour: whether the images have colour.
    """

    workdir: Path
    seeds: int
    retrains: int
    losses: tuple[int, ...]
    draws: int
    profiles: tuple[str, ...]
    epochs: int
    colour: bool = True

    def trained(self) -> Iterator[tuple[int, str]]:
        """Yields (seed, name) of the models that are trained."""
        names = [CHAMPION, *self._retrains(), *MADE_FROM_DATA]
        yield from ((seed, name) for seed in self._seeds() for name in names)

    def derived(self) -> Iterator[tuple[int, str]]:
        """Yields (seed, name) of the models that are made of those."""
        mishandled = [how for how in _MISHANDLED if self.colour or how != "channels"]
        names = [*mishandled, "class-order", "two-bits", *_CUTS]
        names += [f"{WORSE}-{loss}-{draw}" for loss in self.losses for draw in self._draws()]
        yield from ((seed, name) for seed in self._seeds() for name in names)

    def judged(self) -> Iterator[tuple[int, str]]:
        """Yields (seed, name) of what is judged, the variants behind the model they are made of."""
        yield from ((seed, name) for seed, name in self.trained() if name != CHAMPION)
        yield from self.derived()

    def variants(self) -> Iterator[tuple[int, str]]:
        """Yields (seed, name) of the variants; they are made of models that were judged."""
        if len(self.profiles) > 1:
            yield from ((seed, name) for seed in self._seeds() for name in VARIANTS)

    def of_model(self, name: str) -> tuple[str, ...]:
        """Returns the configurations that a model is judged by."""
        if name in VARIANTS:
            return self.profiles[1:]
        another = name.startswith((RETRAIN, WORSE)) and not name.endswith("-1")
        return self.profiles[:1] if another else self.profiles

    def folder(self, seed: int, name: str) -> Path:
        """Returns a model's folder."""
        return self._trainings / f"seed-{seed}" / name

    def result(self, seed: int, name: str) -> Path:
        """Returns the file of what the judges found."""
        return self._trainings / "results" / f"{seed}-{name}.json"

    @property
    def _trainings(self) -> Path:
        return self.workdir / f"epochs-{self.epochs}"

    def _seeds(self) -> range:
        return range(1, self.seeds + 1)

    def _draws(self) -> range:
        return range(1, self.draws + 1)

    def _retrains(self) -> list[str]:
        return [f"{RETRAIN}-{number}" for number in range(1, self.retrains + 1)]

    def retrained(self, seed: int) -> list[Path]:
        """Returns the folders of a seed's healthy models."""
        return [self.folder(seed, name) for name in self._retrains()]


def kind(name: str) -> str:
    """Returns the key of TITLES that a model belongs to."""
    return max((one for one in TITLES if name.startswith(one)), key=len)


def make(plan: Plan, seed: int, name: str) -> None:
    """Trains or sabotages a model, where that isn't done yet."""
    folder = plan.folder(seed, name)
    if (folder / "made.json").is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    told = _made(plan, seed, name, folder)
    (folder / "made.json").write_text(json.dumps(told) + "\n", encoding="utf-8")


def _made(plan: Plan, seed: int, name: str, folder: Path) -> dict[str, Any]:
    from benchmarks.sabotage import data, models

    base = data.opened(plan.workdir)
    healthy = plan.folder(seed, f"{RETRAIN}-1")
    if name.startswith((CHAMPION, RETRAIN)) or name in MADE_FROM_DATA:
        number = int(name.rpartition("-")[2]) if name.startswith(RETRAIN) else 0
        number = 90 + MADE_FROM_DATA.index(name) if name in MADE_FROM_DATA else number
        models.fit(
            base,
            folder,
            data.training(100 * seed + number, plan.epochs),
            data.changed(base, plan.workdir / "data", name, seed),
        )
    elif name in _MISHANDLED:
        models.mishandle(base, healthy, folder, name)
    elif name == "class-order":
        models.permute(base, healthy, folder)
    elif name == "two-bits":
        models.two_bits(base, healthy, folder)
    elif name in _CUTS:
        models.cut(healthy, folder, _CUTS[name])
    else:
        _, points, draw = name.split("-")
        train = data.training(100 * seed + 10 * int(points) + int(draw), plan.epochs)
        champion, retrained = plan.folder(seed, CHAMPION), plan.retrained(seed)
        # Each draw begins with another retrained model.
        first = int(draw) % len(retrained)
        order = [*retrained[first:], *retrained[:first]]
        loss = models.worsen(base, champion, order, folder, train, int(points) / 100)
        return {"loss_on_eval": loss}
    return {}


def judge(plan: Plan, seed: int, name: str) -> dict[str, Any]:
    """Has a model judged by its configurations, where that isn't done yet; returns the result."""
    file = plan.result(seed, name)
    judged: dict[str, Any] = {}
    if file.is_file():
        judged = json.loads(file.read_text(encoding="utf-8"))["judged"]
    missing = [profile for profile in plan.of_model(name) if profile not in judged]
    if missing:
        work = _variant if name in VARIANTS else _model
        judged = {**judged, **work(plan, seed, name, missing, bool(judged))}
    for one in judged.values():
        # A fault of the suite's own is no block.
        if one["error"] and name not in _CUTS:
            raise RuntimeError(f"The judges stumbled over {name} of seed {seed}: {one}")
    found = {"seed": seed, "name": name, "kind": kind(name), "judged": judged}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def _model(
    plan: Plan, seed: int, name: str, profiles: Sequence[str], measured: bool
) -> dict[str, Any]:
    from benchmarks.sabotage import data, judge

    case = _case(plan, seed, name)
    options = {profile: data.settings(profile) for profile in profiles}
    ended = None
    if not measured or name in _CUTS:
        shutil.rmtree(case.folder, ignore_errors=True)
        ended = judge.measure(case, options[profiles[0]])
    return {
        profile: ended or judge.decide(case, one, case.folder / profile)
        for profile, one in options.items()
    }


def _variant(
    plan: Plan, seed: int, name: str, profiles: Sequence[str], measured: bool
) -> dict[str, Any]:
    del measured  # with the model that it is made of
    from benchmarks.sabotage import data, judge

    base = data.opened(plan.workdir)
    case = _case(plan, seed, f"{RETRAIN}-1")
    examples = data.changed(base, plan.workdir / "data", name, seed)
    found = {}
    for profile in profiles:
        folder = plan.folder(seed, name) / profile
        shutil.rmtree(folder, ignore_errors=True)
        options = data.settings(profile).model_copy(
            update={"train": data.training(100 * seed, plan.epochs), "transform": base.transform}
        )
        found[profile] = judge.decide_variant(case, VARIANT, options, base.schema, examples, folder)
    return found


def _case(plan: Plan, seed: int, name: str) -> Any:
    """Returns a model's case: a retrained model challenges the one before it, all others the first.

    Were one champion challenged by all, a lucky one would make every retrained model look bad.
    """
    from benchmarks.sabotage import data
    from benchmarks.sabotage.judge import Case
    from benchmarks.sabotage.models import SERVING

    base = data.opened(plan.workdir)
    against = CHAMPION
    if name.startswith(RETRAIN) and not name.endswith("-1"):
        against = f"{RETRAIN}-{int(name.rpartition('-')[2]) - 1}"
    folder = plan.folder(seed, name)
    return Case(
        examples=base.examples,
        ingest_report=base.ingest_report,
        transform_graph=base.transform_graph,
        model=folder,
        champion=plan.folder(seed, against) / SERVING,
        folder=folder / "judged",
    )
