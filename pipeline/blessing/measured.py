"""What Evaluator found: between TFMA, which measures, and the gate, which judges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


def least_accuracy(majority: float) -> float:
    """Returns the floor of accuracy where none is set: `majority` is the largest class's share.

    That share plus a tenth of the rest: always saying the most frequent class doesn't reach it.
    """
    return majority + 0.1 * (1 - majority)


@dataclass(frozen=True)
class MeasuredValues:
    """TFMA's results of a regression head, in the unit of its targets.

    Attributes:
      examples: how many images were evaluated.
      mae: mean of the absolute errors.
      rmse: square root of the mean of the squared errors.
      r2: coefficient of determination, 1 - (squared errors / squared distances from the mean
        target); 0 where the targets do not differ.
    """

    examples: int
    mae: float
    rmse: float
    r2: float


@dataclass(frozen=True)
class Measured:
    """TFMA's results over all images of the split, for the label or a class head.

    Attributes:
      examples: how many images were evaluated.
      accuracy: the share whose most probable class is the label.
      top_k_accuracy: the share whose label is among the k most probable classes.
      cross_entropy: mean of -log(probability of the label), in nats.
      confusion: {(label id, predicted id): images}.
      heads: of the label, the results of the heads beside it, by name.
      missed: of the label, the thresholds of any head that TFMA's own validation found missed, a
        sentence each; None where it validated nothing.
    """

    examples: int
    accuracy: float
    top_k_accuracy: float
    cross_entropy: float
    confusion: Mapping[tuple[int, int], int]
    heads: Mapping[str, Measured | MeasuredValues] = field(default_factory=dict)
    missed: tuple[str, ...] | None = None

    def matrix(self, classes: int) -> npt.NDArray[np.int64]:
        """Returns int64 [classes, classes]: a row for each label, a column for each prediction."""
        counts = np.zeros((classes, classes), np.int64)
        for (label, predicted), count in self.confusion.items():
            if 0 <= label < classes and 0 <= predicted < classes:
                counts[label, predicted] = count
        return counts
