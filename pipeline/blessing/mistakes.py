"""What went wrong: answers that flipped against the champion, and pairs of names confused."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from pipeline.evaluator.predictions import Predictions, text

_FLIPPED = 50
_PAIRS = 10


def flipped(ours: Predictions, champion: Predictions) -> dict[str, Any]:
    """Returns verdict.json's `flipped`: images that one of the two models alone has right.

    Those lost come first, the surest answer first. Both judged the same images in the same order.
    """
    labels = np.asarray(ours.labels, np.object_)
    right = ours.correct()
    was_right = np.asarray(labels == np.asarray(champion.predicted, np.object_), np.bool_)
    lost, gained = np.flatnonzero(was_right & ~right), np.flatnonzero(right & ~was_right)
    confidence = np.nan_to_num(ours.probabilities.max(axis=1), nan=0.0, posinf=0.0)
    # Ties go by id, so that the order of rows decides nothing.
    shown = [
        row
        for rows in (lost.tolist(), gained.tolist())
        for row in sorted(rows, key=lambda row: (-confidence[row], ours.ids[row]))
    ]
    return {
        "gained": len(gained),
        "lost": len(lost),
        "images": [
            {
                "id": text(ours.ids[row]),
                "label": ours.labels[row],
                "was": champion.predicted[row],
                "is": ours.predicted[row],
                "confidence": float(confidence[row]),
            }
            for row in shown[:_FLIPPED]
        ],
    }


def confused(ours: Predictions, champion: Predictions | None) -> list[dict[str, Any]]:
    """Returns verdict.json's `confused`: the pairs of names that are mistaken most often."""
    found = _pairs(ours)
    before = _pairs(champion) if champion is not None else None
    return [
        {
            "truth": truth,
            "predicted": predicted,
            "count": count,
            "champion_count": None if before is None else before[truth, predicted],
        }
        for (truth, predicted), count in sorted(found.items(), key=lambda it: (-it[1], it[0]))[
            :_PAIRS
        ]
    ]


def _pairs(answers: Predictions) -> Counter[tuple[str, str]]:
    both = zip(answers.labels, answers.predicted, strict=True)
    return Counter((truth, name) for truth, name in both if truth != name)
