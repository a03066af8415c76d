"""How long one image takes: two models on one thread of one process, in turns."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.blessing import turns

_ROUNDS = 30
_CALLS = 5  # of each model in a round
_WARM_UP = 2  # rounds that don't count
_SECONDS = 3.0  # that both models together may take


def compared(
    first: Callable[[int], object], second: Callable[[int], object]
) -> tuple[float, float]:
    """Returns the median time of one call of each, in milliseconds.

    Args:
      first: takes the number of the call; of those that are not timed, below 0.
      second: see there.
    """
    times = turns.timed(
        [first, second],
        lambda number: number,
        rounds=_ROUNDS,
        warm=_WARM_UP,
        seconds=_SECONDS,
        in_row=_CALLS,
    )
    mine, theirs = (1000 * float(np.median(one)) for one in times)
    return mine, theirs
