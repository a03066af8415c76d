"""What TFMA adds up, batch by batch: a combiner for class heads and one for regression heads."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import numpy as np
import numpy.typing as npt
from tensorflow_model_analysis.metrics.multi_class_confusion_matrix_metrics import (
    Matrices,
    MatrixEntryKey,
)

from pipeline import features
from pipeline.blessing.measured import least_accuracy

# As in Keras: a probability of 0 for the truth costs -log of this.
_EPSILON = 1e-7


@dataclass
class _Sums:
    """What is added up: right, right within the first k, -log(probability), images; pairs."""

    totals: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(4))
    pairs: Counter[tuple[int, int]] = field(default_factory=Counter)


class ClassCombiner(beam.CombineFn):
    """Adds batches of labels and probabilities up."""

    def __init__(self, keys: list[Any], top_k: int, output: str) -> None:
        """Makes the combiner of one head.

        Args:
          keys: TFMA's, of accuracy, top-k accuracy, cross-entropy, images, accuracy less its
            default floor, and confusion matrices.
          top_k: k.
          output: the head's name; "" where the label's is the only one.
        """
        self._keys = keys
        self._top_k = top_k
        self._output = output

    def create_accumulator(self) -> _Sums:
        return _Sums()

    def add_input(self, sums: _Sums, element: Any) -> _Sums:
        truth = element.labels[self._output] if self._output else element.labels
        labels = np.asarray(truth, np.int64).reshape(-1)
        # Without `custom_extractors` an element is a single image.
        given = np.atleast_2d(element.predictions[self._output or features.OUT_PROBABILITIES])
        probabilities = given.astype(np.float64)
        predicted = probabilities.argmax(axis=1)
        sums.totals += measure(labels, probabilities, self._top_k)
        sums.pairs.update(zip(labels.tolist(), predicted.tolist(), strict=True))
        return sums

    def merge_accumulators(self, accumulators: Iterable[_Sums]) -> _Sums:
        merged = _Sums()
        for sums in accumulators:
            merged.totals += sums.totals
            merged.pairs.update(sums.pairs)
        return merged

    def extract_output(self, sums: _Sums) -> dict[Any, Any]:
        images = float(sums.totals[3])
        means = sums.totals[:3] / images if images else np.full(3, np.nan)
        matrices = Matrices({0.0: {MatrixEntryKey(*pair): n for pair, n in sums.pairs.items()}})
        over = float(means[0]) - least_accuracy(_majority(sums.pairs))
        return dict(zip(self._keys, [*map(float, means), images, over, matrices], strict=True))


def _majority(pairs: Mapping[tuple[int, int], int]) -> float:
    """Returns the share of the largest class; (label, predicted) are the pairs."""
    sizes: Counter[int] = Counter()
    for (label, _), count in pairs.items():
        sizes[label] += count
    return max(sizes.values(), default=0) / max(1, sizes.total())


def measure(
    labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64], top_k: int
) -> npt.NDArray[np.float64]:
    """Returns float64 [4]: images right, right within the first k, sum of -log(p), images.

    Classes are ranked as argmax ranks them: of equals the first wins. An image whose label is
    unknown (-1) or whose probabilities are not numbers is never right.

    Args:
      labels: int64 [batch].
      probabilities: float64 [batch, classes].
      top_k: k.
    """
    rows, width = probabilities.shape
    usable = (labels >= 0) & (labels < width) & np.isfinite(probabilities).all(axis=1)
    truth = np.where(usable, labels, 0)
    share = np.where(usable, probabilities[np.arange(rows), truth], 0.0)
    first = np.arange(width) < truth[:, None]
    ahead = (probabilities > share[:, None]) | (first & (probabilities == share[:, None]))
    rank = np.where(usable, ahead.sum(axis=1), width + top_k)
    loss = -np.log(np.clip(share, _EPSILON, 1 - _EPSILON))
    return np.array([np.sum(rank == 0), np.sum(rank < top_k), loss.sum(), rows], np.float64)


class ValueCombiner(beam.CombineFn):
    """Adds batches of targets and values up."""

    def __init__(self, keys: list[Any], output: str) -> None:
        """Makes the combiner of one head.

        Args:
          keys: TFMA's, of mae, rmse, r2 and images.
          output: the head's name.
        """
        self._keys = keys
        self._output = output

    def create_accumulator(self) -> _ValueSums:
        return _ValueSums()

    def add_input(self, sums: _ValueSums, element: Any) -> _ValueSums:
        truth = np.asarray(element.labels[self._output], np.float64).reshape(-1)
        values = np.asarray(element.predictions[self._output], np.float64).reshape(-1)
        return sums.with_batch(truth, values)

    def merge_accumulators(self, accumulators: Iterable[_ValueSums]) -> _ValueSums:
        merged = _ValueSums()
        for sums in accumulators:
            merged = merged.joined(sums)
        return merged

    def extract_output(self, sums: _ValueSums) -> dict[Any, Any]:
        return dict(zip(self._keys, sums.metrics(), strict=True))


@dataclass(frozen=True)
class _ValueSums:
    """What is known of a part of the images.

    The targets' mean and squared distances from it are merged as Chan, Golub and LeVeque do
    ("Updating formulae and a pairwise algorithm for computing sample variances", 1979).
    """

    images: int = 0
    absolute: float = 0.0
    squared: float = 0.0
    mean: float = 0.0
    distances: float = 0.0

    def with_batch(
        self, truth: npt.NDArray[np.float64], values: npt.NDArray[np.float64]
    ) -> _ValueSums:
        """Returns these sums with a batch's added; float64 [batch] each."""
        if not len(truth):
            return self
        errors, mean = values - truth, float(truth.mean())
        return self.joined(
            _ValueSums(
                len(truth),
                float(np.abs(errors).sum()),
                float((errors**2).sum()),
                mean,
                float(((truth - mean) ** 2).sum()),
            )
        )

    def joined(self, other: _ValueSums) -> _ValueSums:
        """Returns the sums of both parts."""
        images = self.images + other.images
        if not images:
            return self
        apart = other.mean - self.mean
        return _ValueSums(
            images,
            self.absolute + other.absolute,
            self.squared + other.squared,
            self.mean + apart * other.images / images,
            self.distances + other.distances + apart**2 * self.images * other.images / images,
        )

    def metrics(self) -> tuple[float, float, float, float]:
        """Returns mae, rmse, r2 and the images."""
        if not self.images:
            return math.nan, math.nan, math.nan, 0.0
        r2 = 1 - self.squared / self.distances if self.distances else 0.0
        mae, mse = self.absolute / self.images, self.squared / self.images
        return mae, math.sqrt(mse), r2, float(self.images)
