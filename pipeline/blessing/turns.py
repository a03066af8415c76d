"""The stopwatch: what is compared is timed in turns, so that the machine's other work slows all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_T = TypeVar("_T")


def timed(
    asked: Sequence[Callable[[_T], object]],
    given: Callable[[int], _T],
    *,
    rounds: int,
    warm: int,
    seconds: float,
    fewest: int = 1,
    in_row: int = 1,
) -> list[Floats]:
    """Returns the seconds of each call, float64 [rounds * in_row], for each of `asked`.

    In a round each is asked right behind the other, with the first place changing.

    Args:
      asked: what is compared.
      given: what a call gets, by the call's number; it is made before the watch starts. The numbers
        of calls that are not timed are below 0.
      rounds: at most.
      warm: rounds before these that are not timed: TensorFlow optimizes a graph in its first calls.
      seconds: that all rounds together may take; fewer rounds where they take longer.
      fewest: rounds that there are in any case.
      in_row: calls of each in a round. With several, all but the first find the processor's caches
        as they left them, and not as the other did.
    """
    found: list[list[float]] = [[] for _ in asked]
    end = time.perf_counter() + seconds
    for number in range(-warm, rounds):
        inputs = [given(number * in_row + call) for call in range(in_row)]
        order = range(len(asked)) if number % 2 else reversed(range(len(asked)))
        for which in order:
            for one in inputs:
                began = time.perf_counter()
                asked[which](one)
                if number >= 0:
                    found[which].append(time.perf_counter() - began)
        if number + 1 >= min(fewest, rounds) and time.perf_counter() > end:
            break
    return [np.array(one, np.float64) for one in found]
