"""Which answers are worth a picture: the surest mistakes, and what the champion said otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.evaluator.predictions import Predictions


@dataclass(frozen=True)
class Chosen:
    """One answer to explain.

    Attributes:
      row: of the image in the predictions.
      why: `flipped` where the champion said something else, else `mistake`.
      was: what the champion said; None for a mistake.
    """

    row: int
    why: Literal["mistake", "flipped"]
    was: str | None


def choose(predictions: Predictions, champion: Predictions | None, count: int) -> list[Chosen]:
    """Returns at most `count` answers: half of them flipped ones, as far as there are, first.

    Of the flipped ones those come first that were right before, the surest first; then the wrong
    answers that the model was surest of. Where one kind has few, the other fills up. Ties go by the
    images' names, so that the choice does not depend on the order of the rows.

    Args:
      predictions: of the model.
      champion: the champion's, if there is one; its rows may stand in another order.
      count: pictures that are wanted.
    """
    flipped = _flipped(predictions, champion) if champion is not None else []
    mistakes = _mistakes(predictions)
    half = max(count - len(mistakes), (count + 1) // 2)
    found = flipped[:half]
    taken = {one.row for one in found}
    found += [one for one in mistakes if one.row not in taken][: count - len(found)]
    taken = {one.row for one in found}
    found += [one for one in flipped if one.row not in taken][: count - len(found)]
    return found


def _flipped(predictions: Predictions, champion: Predictions) -> list[Chosen]:
    by_name = dict(zip(champion.ids, champion.predicted, strict=True))
    # Two images may have one name: about the same images, the rows say which is which.
    same = champion.ids == predictions.ids
    sure = predictions.probabilities.max(axis=1)
    lost: list[tuple[bool, float, bytes, Chosen]] = []
    for row, (name, label, said) in enumerate(
        zip(predictions.ids, predictions.labels, predictions.predicted, strict=True)
    ):
        was = champion.predicted[row] if same else by_name.get(name)
        if was is not None and was != said:
            gained = was != label
            lost.append((gained, -float(sure[row]), name, Chosen(row, "flipped", was)))
    return [chosen for *_, chosen in sorted(lost, key=lambda one: one[:3])]


def _mistakes(predictions: Predictions) -> list[Chosen]:
    sure = predictions.probabilities.max(axis=1)
    wrong = [row for row, right in enumerate(predictions.correct().tolist()) if not right]
    wrong.sort(key=lambda row: (-float(sure[row]), predictions.ids[row]))
    return [Chosen(row, "mistake", None) for row in wrong]
