"""What a model has forgotten: its accuracy on the test images of a window's older spans.

Those images train no model and judge none any more, so that a newer model can be asked about them
for ever. Pure: answers in, checks out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.blessing import bounds
from pipeline.blessing.class_checks import Check, Part
from pipeline.errors import SafelightError
from pipeline.evaluator.predictions import Predictions


@dataclass(frozen=True)
class Older:
    """Answers about older spans.

    Attributes:
      spans: (name, images) of each, in the order of the answers.
      predictions: the model's.
      champion: the champion's about the same images; None without a champion.
    """

    spans: Sequence[tuple[str, int]]
    predictions: Predictions
    champion: Predictions | None


def judge(older: Older | None, most: float, confidence: float) -> Part:
    """Tells each older span's accuracy, and holds its fall to a bound where there is one.

    A fall must be sure to count: the upper bound of the difference (`bounds.difference_bounds`)
    has to lie below what may be lost.

    Args:
      older: None where the run has no older spans.
      most: largest fall; 0 only tells.
      confidence: of the bounds.

    Returns:
      A check for each span that is held to a bound, and `forgetting` of verdict.json: for each
      span `span`, `images`, `accuracy`, `champion`, `lower`, `upper` and `passed`.

    Raises:
      SafelightError: the answers are not of these spans.
    """
    if older is None:
        return [], {}
    images = sum(count for _, count in older.spans)
    champion = older.champion
    if images != len(older.predictions.ids) or (champion and champion.ids != older.predictions.ids):
        raise SafelightError(
            f"The answers about older spans are not of the same images: ingest counts {images:,}, "
            f"the model answered about {len(older.predictions.ids):,}. Run again."
        )
    ours = older.predictions.correct()
    theirs = None if champion is None else champion.correct()
    checks: list[Check] = []
    rows: list[dict[str, Any]] = []
    first = 0
    for name, count in older.spans:
        part = slice(first, first + count)
        first += count
        if not count:
            continue
        row: dict[str, Any] = {
            "span": name, "images": count, "accuracy": float(ours[part].mean()),
            "champion": None, "lower": None, "upper": None, "passed": True,
        }  # fmt: skip
        if theirs is not None:
            alone = int((ours[part] & ~theirs[part]).sum()), int((theirs[part] & ~ours[part]).sum())
            lower, upper = bounds.difference_bounds(*alone, count, confidence)
            row |= {"champion": float(theirs[part].mean()), "lower": lower, "upper": upper}
            row["passed"] = not most or upper >= -most
            if most:
                checks.append(_check(row, most, confidence))
        rows.append(row)
    return checks, {"forgetting": rows}


def _check(row: dict[str, Any], most: float, confidence: float) -> Check:
    fall = row["accuracy"] - row["champion"]
    message = (
        f"On {row['images']:,} older test images of {row['span']} accuracy is "
        f"{row['accuracy']:.2%} ({100 * fall:+.2f} points against the champion), and with "
        f"{confidence:.0%} confidence the difference is at most {100 * row['upper']:+.2f}; "
        f"{100 * most:.2f} points may be lost (evaluate.max_forgetting)."
    )
    return Check(
        name=f"forgetting:{row['span']}",
        value=fall,
        bound=row["upper"],
        threshold=-most,
        passed=row["passed"],
        message=message,
        interval=(row["lower"], row["upper"]),
    )
