"""Shares of a count, with the interval that a sample of this size allows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from pipeline.blessing import bounds

# Two one-sided bounds of 97.5 % make an interval of 95 %.
_ONE_SIDED = 0.975


@dataclass(frozen=True)
class Share:
    """A share of `n`; `low` and `high` are the ends of the exact 95 % interval."""

    n: int
    value: float
    low: float
    high: float


def axis(shown: Iterable[Share | None]) -> float:
    """Returns where a drawing of these intervals begins: a round share below all of them."""
    lowest = min((share.low for share in shown if share is not None), default=0.0)
    return min(int(lowest * 10) / 10, 0.9)


@lru_cache(maxsize=4096)
def of(hits: int, n: int) -> Share | None:
    """Returns the share with its interval, or None of nothing."""
    if n == 0:
        return None
    return Share(
        n=n,
        value=hits / n,
        low=bounds.lower_bound(hits, n, _ONE_SIDED),
        high=bounds.upper_bound(hits, n, _ONE_SIDED),
    )
