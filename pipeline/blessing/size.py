"""Is the split `test` large enough for what is asked of it? Known before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from pipeline.blessing import bounds, holm
from pipeline.blessing.measured import least_accuracy
from pipeline.config import Evaluate
from pipeline.errors import bounded


def hopeless(sizes: Mapping[str, int], options: Evaluate) -> Iterator[tuple[str, str, str, str]]:
    """Yields what no result on so few images could show.

    Args:
      sizes: test images by class of the label.
      options: the section evaluate.

    Yields:
      (head, found, expected, message) each; the label's head is "label".
    """
    images = sum(sizes.values())
    if not images:
        return
    best = bounds.lower_bound(images, images, options.confidence)
    floor = options.min_accuracy
    if floor is None:
        floor = least_accuracy(max(sizes.values()) / images)
    asked = {"label": ("evaluate.min_accuracy", floor)}
    for head, own in options.heads.items():
        if "min_accuracy" in own:
            asked[head] = (f"evaluate.heads.{head}.min_accuracy", own["min_accuracy"])
    for head, (key, least) in asked.items():
        if best < least:
            expected = _enough(least, options.confidence)
            yield (
                head,
                f"{images:,} images",
                expected,
                f"No model can pass: with all {images:,} images of split 'test' right, accuracy is "
                f"at least {best:.2%} with {options.confidence:.0%} confidence, and the floor is "
                f"{least:.2%} ({key}). Expected {expected}. Add images, give test a larger share "
                "(ingest.split), or lower the floor.",
            )
    yield from _unshowable(sizes, options)


def _unshowable(sizes: Mapping[str, int], options: Evaluate) -> Iterator[tuple[str, str, str, str]]:
    """Classes that a recall of 0 would not keep out; only for a floor that somebody set."""
    floor = options.min_class_recall
    if not floor:
        return
    chance = 1 - options.confidence
    blind = {name: n for name, n in sizes.items() if n and holm.below(0, n, floor) > chance}
    if blind:
        found = bounded([f"{name!r} has {n}" for name, n in blind.items()])
        needed = math.ceil(math.log(chance) / math.log(1 - floor)) if floor < 1 else 1
        yield (
            "label",
            found,
            f"at least {needed:,} a class",
            f"Too few images in split 'test' for evaluate.min_class_recall: {found}. Even with "
            f"none of them right, a recall below {floor:.2%} would not be shown. Expected at least "
            f"{needed:,} of each class. Add images, or raise the floor.",
        )


def _enough(floor: float, confidence: float) -> str:
    if floor >= 1:
        return "a floor below 100 %: no number of images shows that"
    return f"at least {math.ceil(math.log(1 - confidence) / math.log(floor)):,} images"
