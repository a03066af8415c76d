"""The floor under each class's recall: which classes are shown to lie below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from pipeline.blessing import bounds, holm
from pipeline.blessing.class_checks import Check, Floors
from pipeline.config import Evaluate
from pipeline.errors import bounded

Matrix = npt.NDArray[np.int64]


def corrected(matrices: Mapping[str, Matrix], options: Evaluate) -> dict[str, list[float]]:
    """Returns each class's p-value against reaching its floor, by head.

    The classes of all heads are one family: Holm's correction keeps the chance that any healthy one
    of them blocks a model below 1 - `evaluate.confidence`.

    Args:
      matrices: int64 [classes, classes] by head, the label's included; a row for each truth.
      options: the section evaluate.
    """
    single: dict[str, list[float]] = {}
    for head, matrix in matrices.items():
        floor, _ = _floor(len(matrix), Floors.asked(options, head))
        pairs = zip(np.diag(matrix).tolist(), matrix.sum(axis=1).tolist(), strict=True)
        single[head] = [holm.below(right, support, floor) for right, support in pairs]
    together = iter(holm.adjusted([p for of_head in single.values() for p in of_head]))
    return {head: [next(together) for _ in of_head] for head, of_head in single.items()}


def check(
    matrix: Matrix,
    classes: Sequence[str],
    floors: Floors,
    p_values: Mapping[str, Sequence[float]],
) -> Check:
    """Holds the upper bound of each class's recall to the floor.

    Args:
      matrix: int64 [classes, classes], a row for each truth.
      classes: their names.
      floors: what the head is held to.
      p_values: of all heads, as `corrected` gives them.
    """
    name, family = floors.check("class_recall"), sum(len(each) for each in p_values.values())
    floor, source = _floor(len(classes), floors)
    counts = [(int(matrix[i, i]), int(matrix[i].sum())) for i in range(len(classes))]
    seen = [i for i, (_, support) in enumerate(counts) if support]
    if not seen:
        return Check(name, None, None, floor, False, f"No class{floors.of} has a test image.")
    mine = p_values[floors.head]
    below = sorted((mine[i], i) for i in seen if mine[i] < 1 - floors.confidence)
    worst = below[0][1] if below else min(seen, key=lambda i: counts[i][0] / counts[i][1])
    right, support = counts[worst]
    share = holm.left(holm.below(right, support, floor), mine[worst], family)
    bound = bounds.upper_bound(right, support, 1 - share * (1 - floors.confidence))
    together = f" (for {family} classes together)" if family > 1 else ""
    message = (
        f"The worst class{floors.of}, {classes[worst]}, has a recall of {right / support:.2%}, and "
        f"with {floors.confidence:.0%} confidence{together} at most {bound:.2%}; the floor is "
        f"{floor:.2%} ({source})."
    )
    if len(below) > 1:
        message += f" Below it: {bounded([classes[i] for _, i in below])}."
    interval = (
        bounds.lower_bound(right, support, floors.confidence),
        bounds.upper_bound(right, support, floors.confidence),
    )
    return Check(name, right / support, bound, floor, not below, message, interval)


def _floor(classes: int, floors: Floors) -> tuple[float, str]:
    """Returns the floor and where it comes from."""
    if floors.min_class_recall is None:
        return 0.5 / max(1, classes), f"half of 1/{classes}"
    return floors.min_class_recall, floors.key("min_class_recall")
