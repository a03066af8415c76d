"""The wrong answers that the model was surest of, as pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.report import pictures
from pipeline.report.collect import Answers, Record, readable
from pipeline.report.pictures import Picture
from pipeline.report.records import StoredImage

_SHOWN = 24


@dataclass(frozen=True)
class Mistake:
    """A test image that was called something else, with the probability of either name."""

    id: str
    truth: str
    truth_score: float | None
    predicted: str
    score: float
    picture: Picture | None


@dataclass(frozen=True)
class Mistakes:
    """The worst of `total` wrong answers."""

    shown: list[Mistake]
    total: int


def build(record: Record) -> Mistakes | None:
    """Returns the mistakes, or None if nothing was predicted."""
    predictions = record.predictions
    if predictions is None:
        return None
    wrong = np.flatnonzero(~predictions.correct)
    scores = predictions.probabilities[wrong].max(axis=1) if len(wrong) else np.empty(0)
    # Ties go by name, so that the page does not depend on the order of rows.
    order = sorted(zip((-scores).tolist(), predictions.ids[wrong], wrong.tolist(), strict=True))[
        :_SHOWN
    ]
    stored = record.stored(name for _, name, _ in order)
    return Mistakes(
        shown=[_mistake(predictions, row, stored.get(name)) for _, name, row in order],
        total=len(wrong),
    )


def _mistake(predictions: Answers, row: int, stored: StoredImage | None) -> Mistake:
    truth = predictions.labels[row]
    known = truth in predictions.classes
    scores = predictions.probabilities[row]
    return Mistake(
        id=readable(predictions.ids[row]),
        truth=truth,
        truth_score=float(scores[predictions.classes.index(truth)]) if known else None,
        predicted=predictions.predicted[row],
        score=float(scores.max()),
        picture=pictures.of_file(stored.encoded) if stored is not None else None,
    )
