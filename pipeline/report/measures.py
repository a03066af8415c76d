"""What models are compared by, and how it is written: each metric in its own unit.

Of shares more is better, and a difference is in percentage points. Of a loss (cross-entropy, a
mean error) less is better, and a difference is in the loss's own unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.report import formats

# A share of images, a difference of shares, a difference of losses, or any other number.
Unit = Literal["share", "points", "change", "number"]

LOSSES = frozenset({"cross_entropy", "mae", "rmse"})
_NAMES = {"mae": "mean absolute error", "rmse": "root mean squared error"}


def named(metric: str) -> str:
    """Returns a metric's name as people read it."""
    return _NAMES.get(metric, metric.replace("_", " "))


def unit_of(metric: str) -> Unit:
    """Returns the unit of a metric's values."""
    return "number" if metric in LOSSES else "share"


def unit_of_difference(metric: str) -> Unit:
    """Returns the unit of a difference of two values of a metric."""
    return "change" if metric in LOSSES else "points"


def write(value: Any, unit: Unit) -> str:
    """Writes a number in its unit; differences have a sign."""
    if unit == "share":
        return formats.percent(value)
    if unit == "points":
        return formats.points(value)
    return formats.signed(value) if unit == "change" else formats.number(value)


def write_interval(low: float, high: float, unit: Unit) -> str:
    """Writes the ends of an interval; those of a share are rounded outwards."""
    if unit == "share":
        return formats.interval(low, high)
    return f"{write(low, unit)} to {write(high, unit)}"


def turned(gain: float | None) -> float | None:
    """Returns the change of a loss that is gained by falling: what was 0.1 is -0.1."""
    return None if gain is None else 0.0 - gain


@dataclass(frozen=True)
class Change:
    """A metric of either model on the same images, and the interval of the difference.

    `difference`, `low` and `high` are of the metric itself: where a loss falls, below 0. `low` and
    `high` are None where there is no interval.
    """

    name: str
    after: float | None
    before: float | None
    difference: float | None
    low: float | None
    high: float | None
    verdict: str

    @property
    def title(self) -> str:
        """The metric's name as people read it."""
        return named(self.name)

    def write(self, value: float | None) -> str:
        """Writes a value of the metric."""
        return write(value, unit_of(self.name))

    def write_difference(self, value: float | None) -> str:
        """Writes a difference, or an end of its interval."""
        return write(value, unit_of_difference(self.name))

    @property
    def unit(self) -> str:
        """What stands behind a difference: points, nats, or nothing for a target's own unit."""
        if self.name not in LOSSES:
            return " points"
        return " nats" if self.name == "cross_entropy" else ""


def change(name: str, row: Mapping[str, Any]) -> Change:
    """Returns a comparison of verdict.json, where every difference is a gain.

    Args:
      name: of the metric.
      row: `value`, `champion`, `difference`, `lower`, `upper` and `verdict`, as far as there are.
    """
    gain, lower, upper = (row.get(key) for key in ("difference", "lower", "upper"))
    if name in LOSSES:
        gain, lower, upper = turned(gain), turned(upper), turned(lower)
    before, after = row.get("champion"), row.get("value")
    return Change(name, after, before, gain, lower, upper, row.get("verdict") or "")
