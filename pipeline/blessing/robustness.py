"""How a model bears spoiled pictures: what robustness.json says, and what it is held to.

Pure: what is right of each image in, shares and checks out. `pipeline/blessing/corruptions.py`
makes the pictures, and the node Robustness asks the models about them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.blessing import bounds
from pipeline.blessing.class_checks import Check, Part
from pipeline.config import Robustness

FILE: Final = "robustness.json"
FLOOR: Final = "robustness"
CHAMPION: Final = "robustness_champion"

Right = npt.NDArray[np.bool_]


def pick(ids: Sequence[bytes], labels: Sequence[str], count: int) -> list[int]:
    """Returns the rows of `count` images (or all), evenly by class, in the order given.

    The same images are picked every time: in each class by the hash of their ids.
    """
    hashes = [hashlib.sha256(name).digest() for name in ids]
    turns: Counter[str] = Counter()
    ranked = []
    for row in sorted(range(len(ids)), key=hashes.__getitem__):
        ranked.append((turns[labels[row]], hashes[row], row))
        turns[labels[row]] += 1
    return sorted(row for _, _, row in sorted(ranked)[:count])


def report(
    kinds: Sequence[str], clean: Right, right: Right, champion: Right | None, confidence: float
) -> dict[str, Any]:
    """Returns the content of robustness.json.

    Args:
      kinds: names.
      clean: bool [images], what the model has right of the images as they are.
      right: bool [images, kinds, strengths], of the spoiled ones.
      champion: the same of the champion, or None.
      confidence: of each bound of an accuracy.

    Returns:
      `images`, `clean`, `kinds` by name (a row a strength), and for the gate `right` and
      `champion_right`: how many of its spoiled versions are right, image by image.
    """
    images, _, strengths = right.shape

    def row(kind: int, strength: int) -> dict[str, Any]:
        count = int(right[:, kind, strength].sum())
        return {
            "strength": strength + 1,
            "accuracy": count / images,
            "lower": bounds.lower_bound(count, images, confidence),
            "upper": bounds.upper_bound(count, images, confidence),
            "champion": (
                float(champion[:, kind, strength].mean()) if champion is not None else None
            ),
        }

    return {
        "images": images,
        "clean": float(clean.mean()),
        "kinds": {
            name: [row(kind, strength) for strength in range(strengths)]
            for kind, name in enumerate(kinds)
        },
        "versions": right[0].size,
        "right": right.sum(axis=(1, 2)).tolist(),
        "champion_right": champion.sum(axis=(1, 2)).tolist() if champion is not None else None,
    }


def judge(found: Mapping[str, Any] | None, options: Robustness, confidence: float) -> Part:
    """Holds the mean over all kinds and strengths to the floors that are set.

    An image's versions stand or fall together, so that the image is what counts: the bounds are
    those of a mean over images, each with the share of its versions that is right.

    Args:
      found: the content of robustness.json; None where nothing was asked.
      options: the section `robustness`.
      confidence: of each bound.

    Returns:
      The checks `robustness` and `robustness_champion`, and verdict.json's `robustness`.
    """
    if found is None:
        return [], {}
    shares = np.asarray(found["right"], np.float64) / found["versions"]
    checks = []
    if options.min_accuracy is not None:
        checks.append(_floor(shares, options.min_accuracy, confidence))
    if options.max_regression is not None and found["champion_right"] is not None:
        theirs = np.asarray(found["champion_right"], np.float64) / found["versions"]
        checks.append(_against(shares, theirs, options.max_regression, confidence))
    told = {key: found[key] for key in ("images", "clean", "kinds")}
    return checks, {"robustness": told}


def _floor(shares: npt.NDArray[np.float64], floor: float, confidence: float) -> Check:
    mean = float(shares.mean())
    lower, upper = bounds.bounded_mean(shares, 0, 1, confidence)
    message = (
        f"Mean accuracy on spoiled images is {mean:.2%} ({len(shares):,} test images), and with "
        f"{confidence:.0%} confidence at least {lower:.2%}; the floor is {floor:.2%} "
        "(robustness.min_accuracy)."
    )
    return Check(FLOOR, mean, lower, floor, lower >= floor, message, (lower, upper))


def _against(
    ours: npt.NDArray[np.float64],
    theirs: npt.NDArray[np.float64],
    margin: float,
    confidence: float,
) -> Check:
    difference = float(ours.mean() - theirs.mean())
    lower, upper = bounds.bounded_mean(ours - theirs, -1, 1, confidence)
    said = bounds.compare(lower, upper, margin)
    passed = said == "no worse" or (said == "undecided" and difference >= -margin)
    message = (
        f"Mean accuracy on spoiled images is {100 * difference:+.2f} points against the champion "
        f"on the same {len(ours):,}, and with {confidence:.0%} confidence between "
        f"{100 * lower:+.2f} and {100 * upper:+.2f}; at most {100 * margin:.2f} points may be lost "
        f"(robustness.max_regression): "
    )
    message += {
        "no worse": "no worse.",
        "worse": "worse.",
        "undecided": "the images are too few to tell, so the estimate decides: "
        + ("within the margin." if passed else "a loss beyond the margin."),
    }[said]
    bound = lower if said == "no worse" else upper if said == "worse" else difference
    return Check(CHAMPION, difference, bound, -margin, passed, message, (lower, upper))
