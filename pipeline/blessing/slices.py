"""Accuracy where the images are alike: the dark ones, the blurred ones, those of one camera.

Pure: predictions and ingest's facts in, checks and rows of verdict.json out. Slices are found on
the test images themselves; each has enough of them to mean something, and where a floor is held to
many slices at once, Holm's procedure keeps chance alarms as rare as with one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import features
from pipeline.blessing import bounds, holm
from pipeline.blessing.buckets import Bucket, found_in
from pipeline.blessing.class_checks import Check, Part
from pipeline.config import Evaluate
from pipeline.errors import bounded
from pipeline.evaluator.predictions import Predictions

FLOOR = "slices"
REGRESSION = "slice_regression"

Right = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Slice:
    """One row of verdict.json's `slices`; `champion` is its accuracy on the same images."""

    feature: str
    bucket: str
    examples: int
    accuracy: float
    lower: float
    upper: float
    champion: float | None
    passed: bool = True

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.feature} {self.bucket}"


def judge(
    predictions: Predictions,
    champion: Predictions | None,
    facts: pa.Table | None,
    options: Evaluate,
) -> Part:
    """Finds the slices, and holds them to the floors that are set.

    Args:
      predictions: the model's.
      champion: of the same images, or None.
      facts: rows of images.parquet about the test images, in the same order; None without.
      options: the section `evaluate`.

    Returns:
      The checks `slices` (with evaluate.min_slice_accuracy) and `slice_regression` (with
      evaluate.max_slice_regression and a champion), and verdict.json's `slices`: the worst first,
      which is the one whose interval ends lowest.
    """
    if options.slices == ():
        return [], {}
    if facts is None or facts["id"].to_pylist() != predictions.ids:
        return _unknown(champion, options), {}
    ours = predictions.correct()
    theirs: Right | None = None
    if champion is not None and champion.ids == predictions.ids:
        # The truth is this data's; the champion's answers may stand beside older labels.
        theirs = replace(champion, labels=predictions.labels).correct()
    buckets = found_in(facts, options.slices, options.min_slice_images)
    slices = [_slice(bucket, ours, theirs, options.confidence) for bucket in buckets]
    passed = np.ones(len(slices), np.bool_)
    checks = []
    if options.min_slice_accuracy is not None:
        held, check = _floor_check(slices, options)
        passed &= held
        checks.append(check)
    if options.max_slice_regression is not None and theirs is not None:
        held = _kept(buckets, ours, theirs, options)
        passed &= held
        checks.append(_regression_check(slices, buckets, held, ours, theirs, options))
    told = [replace(one, passed=bool(ok)) for one, ok in zip(slices, passed, strict=True)]
    told.sort(key=lambda one: (one.passed, one.upper, one.name))
    return checks, {"slices": [asdict(one) for one in told]}


def with_spans(facts: pa.Table | None, spans: Sequence[dict[str, Any]]) -> pa.Table | None:
    """Returns the facts with a column `span`, for a window of spans.

    Args:
      facts: the test images of the window, which stand in it span by span.
      spans: summary.json's `spans`; none in a run on one place of data.
    """
    if facts is None or not spans:
        return facts
    counts = [
        sum(span["examples"].values())
        if span["golden"]
        else span["examples"][features.TEST] * bool(span["judged"])
        for span in spans
    ]
    names = np.repeat([span["name"] for span in spans], counts)
    if len(names) != facts.num_rows:
        return facts
    return facts.append_column("span", pa.array(names.tolist(), pa.string()))


def _slice(bucket: Bucket, ours: Right, theirs: Right | None, confidence: float) -> Slice:
    right = ours[bucket.rows]
    count, images = int(right.sum()), len(right)
    return Slice(
        feature=bucket.feature,
        bucket=bucket.name,
        examples=images,
        accuracy=count / images,
        lower=bounds.lower_bound(count, images, confidence),
        upper=bounds.upper_bound(count, images, confidence),
        champion=float(theirs[bucket.rows].mean()) if theirs is not None else None,
    )


def _floor_check(slices: Sequence[Slice], options: Evaluate) -> tuple[Right, Check]:
    """Returns bool [slices], False where one is shown to lie below the floor, and the check."""
    floor, family = options.min_slice_accuracy, len(slices)
    assert floor is not None
    if not slices:
        return np.ones(0, np.bool_), Check(FLOOR, None, None, floor, True, _none_found(options))
    rights = [round(one.accuracy * one.examples) for one in slices]
    single = [
        holm.below(right, one.examples, floor) for right, one in zip(rights, slices, strict=True)
    ]
    corrected = holm.adjusted(single)
    held = np.array(corrected) > 1 - options.confidence
    below = np.flatnonzero(~held).tolist()
    at = min(below or range(family), key=lambda row: slices[row].upper)
    worst = slices[at]
    share = holm.left(single[at], corrected[at], family)
    bound = bounds.upper_bound(rights[at], worst.examples, 1 - share * (1 - options.confidence))
    together = f" (for {family} slices together)" if family > 1 else ""
    where = (
        f"Worst: accuracy on {worst.name} is {worst.accuracy:.2%} ({worst.examples:,} test "
        f"images), and with {options.confidence:.0%} confidence{together} at most {bound:.2%}; the "
        f"floor of each slice is {floor:.2%} (evaluate.min_slice_accuracy)."
    )
    if below:
        found = sorted((slices[row] for row in below), key=lambda one: one.upper)
        names = bounded([one.name for one in found])
        message = f"Shown to lie below the floor, of {family} slices: {names}. {where}"
    else:
        message = f"No slice of {family} is shown to lie below the floor. {where}"
    interval = (worst.lower, worst.upper)
    return held, Check(FLOOR, worst.accuracy, bound, floor, not below, message, interval)


def _kept(buckets: Sequence[Bucket], ours: Right, theirs: Right, options: Evaluate) -> Right:
    """Returns bool [slices]: False where more than the margin is lost, and not by chance.

    By chance: McNemar's exact test, one-sided. Of the images that the models judge differently,
    the model would have half right if it were as good ("Note on the sampling error of the
    difference between correlated proportions or percentages", Psychometrika 12, 1947).
    """
    p_values, lost = [], []
    for bucket in buckets:
        gained, missed, images = _moved(bucket, ours, theirs)
        p_values.append(holm.below(gained, gained + missed, 0.5))
        lost.append((missed - gained) / images)
    margin = options.max_slice_regression
    assert margin is not None
    certain = np.array(holm.rejected(p_values, 1 - options.confidence), np.bool_)
    return ~(certain & (np.array(lost) > margin))


def _regression_check(
    slices: Sequence[Slice],
    buckets: Sequence[Bucket],
    held: Right,
    ours: Right,
    theirs: Right,
    options: Evaluate,
) -> Check:
    margin = options.max_slice_regression
    assert margin is not None
    if not slices:
        return Check(REGRESSION, None, None, -margin, True, _none_found(options))
    differences = [float(ours[b.rows].mean() - theirs[b.rows].mean()) for b in buckets]
    lost = np.flatnonzero(~held)
    among = lost if len(lost) else np.arange(len(slices))
    worst = min(among.tolist(), key=differences.__getitem__)
    gained, missed, images = _moved(buckets[worst], ours, theirs)
    interval = bounds.difference_bounds(gained, missed, images, options.confidence)
    where = (
        f"Worst: on {slices[worst].name} accuracy is {100 * differences[worst]:+.2f} points "
        f"against the champion ({images:,} test images, right alone: {gained:,} and {missed:,}); "
        f"at most {100 * margin:.2f} points may be lost on a slice (evaluate.max_slice_regression)."
    )
    if len(lost):
        names = bounded(
            [slices[int(row)].name for row in sorted(lost, key=differences.__getitem__)]
        )
        message = f"Worse than the champion, and not by luck, of {len(slices)} slices: {names}. "
    else:
        message = f"No slice of {len(slices)} is shown to lose more than allowed. "
    message += where
    value = differences[worst]
    # The loss itself is held to the margin; McNemar's test says whether it may be luck.
    return Check(REGRESSION, value, value, -margin, not len(lost), message, interval)


def _moved(bucket: Bucket, ours: Right, theirs: Right) -> tuple[int, int, int]:
    """Returns how many images the model alone has right, the champion alone, and all."""
    own, other = ours[bucket.rows], theirs[bucket.rows]
    return int(np.sum(own & ~other)), int(np.sum(other & ~own)), len(own)


def _none_found(options: Evaluate) -> str:
    return (
        f"No slice has {options.min_slice_images} test images (evaluate.min_slice_images), and "
        "leaves as many out: none was judged."
    )


def _unknown(champion: Predictions | None, options: Evaluate) -> list[Check]:
    """Returns failed checks where floors are set and nothing is known about the images."""
    floors = {FLOOR: options.min_slice_accuracy}
    if champion is not None and options.max_slice_regression is not None:
        floors[REGRESSION] = -options.max_slice_regression
    message = (
        "Slices can't be judged: ingest's images.parquet is missing, or is about other test images "
        "than the predictions. The cache would give the same again; a run in a new workdir makes "
        "both anew."
    )
    return [
        Check(name, None, None, floor, False, message)
        for name, floor in floors.items()
        if floor is not None
    ]
