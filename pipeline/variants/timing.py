"""How long one image takes: two models on one thread of one process, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

_WARM_UP = 10
_ROUNDS = 30
_CALLS = 5  # of each model in a round
_SECONDS = 3.0  # that both models together may take


def compared(
    first: Callable[[int], object], second: Callable[[int], object]
) -> tuple[float, float]:
    """Returns the median time of one call of each, in milliseconds.

    In turns, so that whatever else the machine does slows down both.

    Args:
      first: takes the number of the call.
      second: see there.
    """
    for number in range(_WARM_UP):
        first(number)
        second(number)
    times: tuple[list[float], list[float]] = ([], [])
    started = time.perf_counter()
    for turn in range(_ROUNDS):
        for call, found in zip((first, second), times, strict=True):
            for number in range(_CALLS):
                before = time.perf_counter()
                call(turn * _CALLS + number)
                found.append((time.perf_counter() - before) * 1000)
        if time.perf_counter() - started > _SECONDS:
            break
    return statistics.median(times[0]), statistics.median(times[1])
