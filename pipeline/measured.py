"""What Evaluator found: between TFMA, which measures, and the gate, which judges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Measured:
    """TFMA's results over all images of the split.

    Attributes:
      examples: how many images were evaluated.
      accuracy: the share whose most probable class is the label.
      top_k_accuracy: the share whose label is among the k most probable classes.
      cross_entropy: mean of -log(probability of the label), in nats.
      confusion: {(label id, predicted id): images}.
    """

    examples: int
    accuracy: float
    top_k_accuracy: float
    cross_entropy: float
    confusion: Mapping[tuple[int, int], int]

    def matrix(self, classes: int) -> npt.NDArray[np.int64]:
        """Returns int64 [classes, classes]: a row for each label, a column for each prediction."""
        counts = np.zeros((classes, classes), np.int64)
        for (label, predicted), count in self.confusion.items():
            if 0 <= label < classes and 0 <= predicted < classes:
                counts[label, predicted] = count
        return counts
