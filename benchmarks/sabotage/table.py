"""What the judges found, by kind of model, beside what the test set's size lets one expect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.sabotage import data
from benchmarks.sabotage.plan import HEALTHY, RETRAIN, TITLES, UNSURE, VARIANTS, WORSE
from pipeline.blessing import bounds, paired

# Of both ends of an interval together.
_CONFIDENCE = 0.95
_LEAST_HEALTHY = 0.95


@dataclass(frozen=True)
class Row:
    """One kind of model under one configuration.

    Attributes:
      models: how many were judged.
      blocked: how many of them were.
      by: how many were blocked by each check, or by a stage that failed.
      loss: mean accuracy lost on test against the champion, a share; None if that isn't known.
      power: mean share that the comparison with the champion alone is to block; None likewise.
    """

    models: int
    blocked: int
    by: Mapping[str, int]
    loss: float | None
    power: float | None


def row(results: Sequence[Mapping[str, Any]], kind: str, profile: str) -> Row | None:
    """Returns what became of a kind of model; None where none was judged so."""
    found = [
        one["judged"][profile]
        for one in results
        if one["kind"] == kind and profile in one["judged"]
    ]
    if not found:
        return None
    compared = [one for one in found if one.get("loss") is not None]
    powers = [_power(one, kind, profile) for one in compared if kind not in VARIANTS]
    return Row(
        models=len(found),
        blocked=sum(not one["blessed"] for one in found),
        by=Counter(name for one in found for name in one["by"]),
        loss=_mean([one["loss"] for one in compared]),
        power=_mean(powers),
    )


def _power(found: Mapping[str, Any], kind: str, profile: str) -> float:
    """Returns how often the comparison blocks a model that truly loses what this one is made to.

    A healthy one loses nothing, and one that is worse what it was bisected to; of the others only
    what they lost on test is known.
    """
    options = data.settings(profile).evaluate
    loss = found["loss"]
    if kind in HEALTHY:
        loss = 0.0
    if kind.startswith(WORSE):
        loss = int(kind.rpartition("-")[2]) / 100
    return paired.power(
        found["images"],
        max(found["disagreement"], abs(loss)),
        options.max_regression,
        loss,
        options.confidence,
        options.on_undecided,
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def markdown(results: Sequence[Mapping[str, Any]], profile: str) -> str:
    """Returns the table of one configuration."""
    lines = [
        "| model | blocked | points lost on test | power | blocked by |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind, title in TITLES.items():
        found = row(results, kind, profile)
        if found is None:
            continue
        share = f"{found.blocked} of {found.models} ({found.blocked / found.models:.0%})"
        loss = "–" if found.loss is None else f"{100 * found.loss:.2f}"
        power = "–" if found.power is None else f"{found.power:.0%}"
        by = ", ".join(f"{name} {count}" for name, count in sorted(found.by.items()))
        lines.append(f"| {title} | {share} | {loss} | {power} | {by} |")
    return "\n".join(lines)


def promises(results: Sequence[Mapping[str, Any]], profiles: Sequence[str]) -> list[str]:
    """Returns a line for each promise, which begins with `kept` or `BROKEN`."""
    lines = []
    for profile in profiles:
        certain = [kind for kind in TITLES if kind not in (*HEALTHY, *UNSURE)]
        rows = [found for kind in certain if (found := row(results, kind, profile))]
        models, blocked = sum(one.models for one in rows), sum(one.blocked for one in rows)
        lines.append(
            f"{_kept(blocked == models)}: {profile}: {blocked} of {models} sabotaged models and "
            "models worse by 5 points are blocked"
        )
    healthy = row(results, RETRAIN, profiles[0])
    if healthy:
        passed = healthy.models - healthy.blocked
        # Both ends at half of what is left.
        end = (1 + _CONFIDENCE) / 2
        low = bounds.lower_bound(passed, healthy.models, end)
        high = bounds.upper_bound(passed, healthy.models, end)
        lines.append(
            f"{_kept(passed >= _LEAST_HEALTHY * healthy.models)}: {profiles[0]}: {passed} of "
            f"{healthy.models} healthy retrains pass ({passed / healthy.models:.1%}; between "
            f"{low:.1%} and {high:.1%} with {_CONFIDENCE:.0%} confidence)"
        )
    return lines


def _kept(held: bool) -> str:
    return "kept" if held else "BROKEN"
