"""What holds a due training back: a budget of runs a day, and a pause after failures. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.config import Retrain

_DAY = 86_400.0


@dataclass(frozen=True)
class Attempt:
    """A training that began at `at` (seconds since 1970), and whether it failed.

    A model that was not blessed is no failure: it is what the gate is for.
    """

    at: float
    failed: bool


def hold(attempts: Sequence[Attempt], now: float, options: Retrain) -> str:
    """Returns why no training may begin now; "" where one may.

    Args:
      attempts: in the order in which they began, whatever the clock said.
      now: seconds since 1970.
      options: `runs_per_day`, `backoff_minutes` and `max_backoff_hours`.
    """
    # One from the future was made before the clock jumped back: it counts as made just now.
    ages = [max(0.0, now - attempt.at) for attempt in attempts]
    today = sum(age < _DAY for age in ages)
    if today >= options.runs_per_day:
        return (
            f"{today} trainings in the last 24 hours; retrain.runs_per_day is "
            f"{options.runs_per_day}."
        )
    failures = _failures_in_a_row(attempts)
    if not failures:
        return ""
    pause = min(
        options.backoff_minutes * 60 * 2 ** (failures - 1), options.max_backoff_hours * 3600
    )
    left = pause - ages[-1]
    if left <= 0:
        return ""
    return f"The last {failures} trainings failed: the next may begin in {left / 60:.0f} minutes."


def _failures_in_a_row(attempts: Sequence[Attempt]) -> int:
    count = 0
    for attempt in reversed(attempts):
        if not attempt.failed:
            break
        count += 1
    return count
