"""Whether the labels of new images are such as the champion has met: counts for the policy.

A label is contradicted where the champion is sure of another class. Sure means: as probable as it
finds that class, on average, on images that are labelled so (confident learning: Northcutt, Jiang
and Chuang, JAIR 70, 2021). Pure NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Contradicted:
    """How many labels the champion contradicts.

    Attributes:
      labelled: new images with a label that it knows.
      contradicted: those of which it is sure that they are another class.
      usual: the share that it contradicts of images held out of its own training, had these the
        new ones' classes in the same shares.
      usual_images: how many those are.
    """

    labelled: int
    contradicted: int
    usual: float
    usual_images: int

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON-serializable values."""
        return asdict(self)


def contradicted(
    classes: Sequence[str],
    known: tuple[Floats, Sequence[str]],
    new: tuple[Floats, Sequence[str]],
) -> Contradicted:
    """Compares new labels with the champion's answers.

    Args:
      classes: the champion's, in the order of its probabilities.
      known: its answers, float32 [images, classes], and the labels of images that it was not
        trained on and that are of its own data.
      new: the same of the new images.
    """
    number = {name: index for index, name in enumerate(classes)}
    answers, labels = _known_only(number, *known)
    sure = _thresholds(answers, labels, len(classes))
    against = _against(answers, labels, sure)
    overall = float(against.mean()) if len(against) else 0.0
    # A class with few images says little of itself: the overall share counts as one more image.
    counts = np.bincount(labels, minlength=len(classes))
    shares = (np.bincount(labels, against, len(classes)) + overall) / (counts + 1)
    answers, labels = _known_only(number, *new)
    return Contradicted(
        labelled=len(labels),
        contradicted=int(_against(answers, labels, sure).sum()),
        usual=float(shares[labels].mean()) if len(labels) else 0.0,
        usual_images=len(against),
    )


def _known_only(
    number: dict[str, int], answers: Floats, labels: Sequence[str]
) -> tuple[Floats, npt.NDArray[np.int64]]:
    rows = [index for index, name in enumerate(labels) if name in number]
    return answers[rows], np.array([number[labels[index]] for index in rows], np.int64)


def _thresholds(
    answers: Floats, labels: npt.NDArray[np.int64], classes: int
) -> npt.NDArray[np.float64]:
    """Returns the mean probability of each class on images labelled so, float64 [classes]."""
    own = answers[np.arange(len(labels)), labels].astype(np.float64)
    counts = np.bincount(labels, minlength=classes)
    overall = float(own.mean()) if len(own) else 1.0
    sums = np.bincount(labels, own, classes)
    return np.where(counts > 0, sums / np.maximum(counts, 1), overall)


def _against(
    answers: Floats, labels: npt.NDArray[np.int64], sure: npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    """Returns bool [images]: whether the surest of the sure classes is another than the label."""
    if not len(labels):
        return np.zeros(0, np.bool_)
    sure_of = answers >= sure[None, :]
    best = np.where(sure_of, answers, -1.0).argmax(axis=1)
    found: npt.NDArray[np.bool_] = sure_of.any(axis=1) & (best != labels)
    return found
