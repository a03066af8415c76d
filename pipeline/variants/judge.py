"""Whether a variant may go out: what it loses, what it weighs, and how long it takes.

Pure: numbers in, findings out. Each variant is judged by itself, on the label's head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.blessing import bounds
from pipeline.blessing.class_checks import Check
from pipeline.config.variants import Variants

# What the sum of a float variant's probabilities may be off by. Integers make probabilities of few
# levels besides: each is off by up to half a step.
_SUM_TOLERANCE = 0.05


@dataclass(frozen=True)
class Limits:
    """What a variant may cost; `confidence` is that of the bounds of its loss."""

    max_drop: float
    max_size_ratio: float
    max_latency_ratio: float
    confidence: float


def limits(options: Variants, name: str, confidence: float) -> Limits:
    """Returns a variant's own budget, completed by the section's values."""
    own: Mapping[str, Any] = options.budgets.get(name, {})  # type: ignore[call-overload]
    return Limits(
        max_drop=own.get("max_drop", options.max_drop),
        max_size_ratio=own.get("max_size_ratio", options.max_size_ratio),
        max_latency_ratio=own.get("max_latency_ratio", options.max_latency_ratio),
        confidence=confidence,
    )


def failed(reason: str) -> dict[str, Any]:
    """Returns the findings about a variant that could not be made."""
    nothing = dict.fromkeys(
        ("file", "bytes", "accuracy", "drop", "lower", "upper", "p50_ms", "ratio", "size_ratio")
    )
    check = Check("made", None, None, None, False, reason)
    return {**nothing, "blessed": False, "checks": [asdict(check)]}


def judge(
    found: Mapping[str, Any],
    answers: npt.NDArray[np.float32],
    before: npt.NDArray[np.int64],
    truth: npt.NDArray[np.int64],
    held_to: Limits,
) -> dict[str, Any]:
    """Returns the findings about a variant: its entry of variants.json.

    Args:
      found: `file`, `bytes`, `size_ratio`, `p50_ms`, `ratio`, and whatever else is to be kept;
        `step` is what two neighbouring values of an integer output stand apart.
      answers: the variant's probabilities, float32 [images, classes].
      before: what the SavedModel says of the same images, class numbers [images].
      truth: the classes' numbers [images]; -1 is a class that the model does not know.
      held_to: the variant's budget.
    """
    mine, theirs = answers.argmax(axis=1) == truth, before == truth
    images = len(truth)
    drop = float(theirs.mean() - mine.mean())
    lower, upper = bounds.difference_bounds(
        int((theirs & ~mine).sum()), int((mine & ~theirs).sum()), images, held_to.confidence
    )
    checks = [
        _sound(answers, found.get("step", 0.0)),
        _drop(float(mine.mean()), drop, (lower, upper), images, held_to),
        _size(found, held_to),
        _latency(found, held_to),
    ]
    return {
        **found,
        "accuracy": float(mine.mean()),
        "drop": drop,
        "lower": lower,
        "upper": upper,
        "blessed": all(check.passed for check in checks),
        "checks": [asdict(check) for check in checks],
    }


def _sound(answers: npt.NDArray[np.float32], step: float) -> Check:
    tolerance = _SUM_TOLERANCE + answers.shape[1] * step / 2
    finite = np.asarray(np.isfinite(answers).all(axis=1))
    whole = finite & (np.abs(np.where(finite[:, None], answers, 0).sum(axis=1) - 1) < tolerance)
    bad = int((~whole).sum())
    told = (
        "Each answer's probabilities are numbers that add up to 1."
        if not bad
        else f"{bad:,} of {len(whole):,} answers are no probabilities: they do not add up to 1."
    )
    return Check("answers", bad, None, 0, not bad, told)


def _drop(
    accuracy: float, drop: float, interval: tuple[float, float], images: int, held_to: Limits
) -> Check:
    """Holds the loss to the margin, as a challenger's: where the images can't tell, the estimate.

    A loss is the SavedModel's accuracy less the variant's, so that the signs turn.
    """
    said = bounds.compare(-interval[1], -interval[0], held_to.max_drop)
    passed = said == "no worse" or (said == "undecided" and drop <= held_to.max_drop)
    message = (
        f"{accuracy:.2%} of {images:,} test images are right, {_points(drop)} than the "
        f"SavedModel's; with {held_to.confidence:.0%} confidence the loss is at most "
        f"{interval[1] * 100:.2f} points. {held_to.max_drop * 100:.2f} are allowed "
        "(variants.max_drop)."
    )
    if said == "undecided":
        message += " The test images are too few to be sure: the estimate decides."
    return Check("drop", drop, interval[1], held_to.max_drop, passed, message, interval)


def _points(drop: float) -> str:
    return f"{abs(drop) * 100:.2f} points {'fewer' if drop > 0 else 'more'}" if drop else "no fewer"


def _size(found: Mapping[str, Any], held_to: Limits) -> Check:
    ratio = found["size_ratio"]
    how = " (both compressed)" if found.get("compressed") else ""
    message = (
        f"It takes {found['bytes']:,} bytes, {ratio:.2f} of the SavedModel's{how}; at most "
        f"{held_to.max_size_ratio:g} is allowed (variants.max_size_ratio)."
    )
    limit = held_to.max_size_ratio
    return Check("size", ratio, ratio, limit, ratio <= limit, message)


def _latency(found: Mapping[str, Any], held_to: Limits) -> Check:
    ratio, limit = found["ratio"], held_to.max_latency_ratio
    message = (
        f"One image takes {found['p50_ms']:.2f} ms on one thread, {ratio:.2f} of the SavedModel's "
        f"time; at most {limit:g} is allowed (variants.max_latency_ratio)."
    )
    return Check("latency", ratio, ratio, limit, ratio <= limit, message)
