"""Several tests at once: p-values that keep their word together.

Twenty healthy classes tested at 5 % each would keep out two models of three: with every test more
comes a chance of a false alarm. Holm's procedure bounds the chance of any at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import bdtr


def adjusted(p_values: Sequence[float]) -> list[float]:
    """Returns each p-value corrected for the others, in the order given.

    Holm's step-down procedure ("A simple sequentially rejective multiple test procedure",
    Scandinavian Journal of Statistics 6, 1979). A hypothesis is rejected at a level when its
    corrected p-value is no greater; then, however the tests depend on each other, a true one among
    them is rejected no more often than the level says.

    Raises:
      ValueError: one is no number between 0 and 1.
    """
    given = np.asarray(p_values, np.float64)
    if not ((given >= 0) & (given <= 1)).all():
        raise ValueError(f"expected p-values between 0 and 1; received {list(p_values)}")
    order = np.argsort(given, kind="stable")
    stepped = given[order] * np.arange(len(given), 0, -1)
    corrected = np.empty(len(given))
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return [float(value) for value in corrected]


def rejected(p_values: Sequence[float], level: float) -> list[bool]:
    """Returns which hypotheses Holm's procedure rejects at `level`, in the order given."""
    return [value <= level for value in adjusted(p_values)]


def left(single: float, corrected: float, family: int) -> float:
    """Returns the part of the chance of a false alarm that Holm's procedure leaves to one test.

    A bound at 1 - part * level lies on the same side of the floor as the procedure's decision.

    Args:
      single: the test's own p-value.
      corrected: the same, from `adjusted`.
      family: how many tests there are.
    """
    return single / corrected if 0 < corrected < 1 else 1 / family


def below(successes: int, trials: int, floor: float) -> float:
    """Returns the exact p-value of a share against the hypothesis that it reaches `floor`.

    The binomial test: how often so few of the trials would succeed by chance, if the true share
    were the floor. Small where the share is shown to lie below it; 1 without trials.

    Raises:
      ValueError: not 0 <= successes <= trials.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"impossible counts: {successes} of {trials}")
    return float(bdtr(successes, trials, floor)) if trials else 1.0
