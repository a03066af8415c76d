"""How far two distributions lie apart."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def jensen_shannon(one: Floats, other: Floats) -> float:
    """Returns the divergence of two histograms of shares, float64 [buckets], in bits: 0 to 1.

    Lin, IEEE Transactions on Information Theory 37, 1991.
    """
    middle = (one + other) / 2

    def relative(shares: Floats) -> float:
        some = shares > 0
        return float((shares[some] * np.log2(shares[some] / middle[some])).sum())

    return max(0.0, (relative(one) + relative(other)) / 2)
