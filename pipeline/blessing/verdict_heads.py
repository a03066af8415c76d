"""The final gate's reasoning about the heads beside the label.

A class head is held to what the label is held to; a regression head to its mean absolute error.
docs/heads.md explains the floors and the statistics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.blessing import bounds, class_checks, paired, recall
from pipeline.blessing import champion as champion_check
from pipeline.blessing.class_checks import Check
from pipeline.blessing.measured import Measured, MeasuredValues
from pipeline.config import Evaluate
from pipeline.evaluator.head_columns import Classes, HeadColumns, Values

# Without evaluate.heads.<name>.max_mae: this share of the error of a constant answer.
_CONSTANT_SHARE = 0.9
# Without evaluate.heads.<name>.max_regression: the rise of the champion's error that is accepted.
_RISE = 0.05
# What TFMA and the predictions may differ by: they sum in another order.
_ROUNDING = 1e-3
_BINS = 20


def judge(
    measured: Mapping[str, Measured | MeasuredValues],
    answered: Mapping[str, HeadColumns],
    champion: Mapping[str, HeadColumns] | None,
    options: Evaluate,
    recalls: Mapping[str, Sequence[float]],
) -> tuple[list[Check], dict[str, Any]]:
    """Returns the checks of all heads, and verdict.json's `heads`.

    Args:
      measured: TFMA's results by the head's name.
      answered: the model's answers by the head's name, image by image.
      champion: the champion's about the same images; None where there is nothing to compare.
      options: the section evaluate.
      recalls: p-values of the classes of every head, as `recall.corrected` gives them.
    """
    checks: list[Check] = []
    told: dict[str, Any] = {}
    for name, columns in answered.items():
        found, theirs = measured.get(name), (champion or {}).get(name)
        # The truth is this data's: the champion's head may have been learned from another column.
        if isinstance(columns, Values) and isinstance(found, MeasuredValues):
            values = replace(theirs, truth=columns.truth) if isinstance(theirs, Values) else None
            more, told[name] = _regression(name, found, columns, values, options)
        elif isinstance(columns, Classes) and isinstance(found, Measured):
            classes = (
                replace(theirs, labels=columns.labels) if isinstance(theirs, Classes) else None
            )
            more, told[name] = _classification(name, found, columns, classes, options, recalls)
        else:
            message = f"TFMA measured nothing of the head {name}: what is served has other heads."
            more = [Check(f"evaluated_is_served:{name}", None, None, None, False, message)]
        checks += more
    return checks, told


def _classification(
    name: str,
    measured: Measured,
    columns: Classes,
    champion: Classes | None,
    options: Evaluate,
    recalls: Mapping[str, Sequence[float]],
) -> tuple[list[Check], dict[str, Any]]:
    floors = class_checks.Floors.asked(options, name)
    matrix = measured.matrix(len(columns.classes))
    per_class = class_checks.per_class(matrix, columns.classes)
    majority = class_checks.majority(matrix)
    checks = [
        class_checks.sound(columns.classes, columns.predicted, columns.probabilities, floors),
        class_checks.agreement(int(columns.correct().sum()), measured, floors),
        class_checks.accuracy(measured, majority, floors),
        recall.check(matrix, columns.classes, floors, recalls),
    ]
    compared = None
    if champion is not None:
        check, compared = champion_check.compare_accuracy(
            columns.correct(), champion.correct(), "the champion", floors
        )
        checks.append(check)
    told = {
        "kind": "class",
        "metrics": class_checks.metrics(measured, per_class),
        "per_class": per_class,
        "confusion": matrix.tolist(),
        "majority_share": majority,
        "champion": compared,
    }
    return checks, told


def _regression(
    name: str,
    measured: MeasuredValues,
    columns: Values,
    champion: Values | None,
    options: Evaluate,
) -> tuple[list[Check], dict[str, Any]]:
    errors = columns.errors()
    checks = [_sound(name, columns), _agreement(name, measured, errors)]
    checks.append(_mae(name, measured, columns, options))
    compared = None
    if champion is not None:
        check, compared = _against(name, errors, champion.errors(), options)
        checks.append(check)
    signed = (columns.predicted - columns.truth).astype(np.float64)[np.isfinite(errors)]
    counts, edges = np.histogram(signed, bins=_BINS)
    told = {
        "kind": "regression",
        "metrics": {
            "mae": _number(measured.mae),
            "rmse": _number(measured.rmse),
            "r2": _number(measured.r2),
        },
        # Predicted less true.
        "errors": {"counts": counts.tolist(), "edges": edges.tolist()},
        "targets": {
            "minimum": _number(float(np.min(columns.truth, initial=math.inf))),
            "maximum": _number(float(np.max(columns.truth, initial=-math.inf))),
        },
        "champion": compared,
    }
    return checks, told


def _number(value: float) -> float | None:
    """Returns what JSON can hold."""
    return float(value) if math.isfinite(value) else None


def _sound(name: str, columns: Values) -> Check:
    bad = int(np.sum(~np.isfinite(columns.predicted)))
    unknown = int(np.sum(~np.isfinite(columns.truth)))
    return Check(
        name=f"answers:{name}",
        value=bad + unknown,
        bound=None,
        threshold=0,
        passed=bad + unknown == 0,
        message=(
            f"Each answer of {name} is a number."
            if bad + unknown == 0
            else f"{bad:,} of {len(columns.predicted):,} answers of {name} are no numbers, and "
            f"{unknown:,} images have no target; expected none."
        ),
    )


def _agreement(name: str, measured: MeasuredValues, errors: npt.NDArray[np.float64]) -> Check:
    served = float(errors.mean()) if len(errors) else math.nan
    apart = abs(served - measured.mae)
    allowed = _ROUNDING * max(measured.mae, 1e-6)
    passed = apart <= allowed and len(errors) == measured.examples
    return Check(
        name=f"evaluated_is_served:{name}",
        value=_number(apart),
        bound=None,
        threshold=_number(allowed),
        passed=passed,
        message=f"TFMA's mean absolute error of {name} is {measured.mae:.4g}, and that of the "
        f"predictions {served:.4g}: "
        + (
            "what is served is what was evaluated."
            if passed
            else f"they may differ by {allowed:.2g}. What is served is not what was evaluated."
        ),
    )


def _mae(name: str, measured: MeasuredValues, columns: Values, options: Evaluate) -> Check:
    most = options.heads.get(name, {}).get("max_mae")
    source = f"evaluate.heads.{name}.max_mae"
    if most is None:
        truth = columns.truth[np.isfinite(columns.truth)].astype(np.float64)
        constant = float(np.abs(truth - np.median(truth)).mean()) if len(truth) else 0.0
        most = _CONSTANT_SHARE * constant
        source = (
            f"{_CONSTANT_SHARE:.0%} of {constant:.4g}, the error of always answering the median"
        )
    lower, bound = bounds.mean_bounds(columns.errors(), options.confidence)
    return Check(
        name=f"mae:{name}",
        value=_number(measured.mae),
        bound=_number(bound),
        threshold=most,
        passed=bound <= most,
        message=f"The mean absolute error of {name} is {measured.mae:.4g} on "
        f"{measured.examples:,} test images, and with {options.confidence:.0%} confidence at most "
        f"{bound:.4g}; the limit is {most:.4g} ({source}).",
        interval=(lower, bound) if math.isfinite(lower + bound) else None,
    )


def _against(
    name: str,
    ours: npt.NDArray[np.float64],
    theirs: npt.NDArray[np.float64],
    options: Evaluate,
) -> tuple[Check, dict[str, Any] | None]:
    """Compares the errors on the same images: their mean difference, and how sure it is.

    Where the champion answers no number it can't be lost to: those images are left out.
    """
    known = np.isfinite(theirs)
    silent = int(np.sum(~known))
    if len(theirs) and not known.any():
        message = f"The champion answers no number for {name} on any of the {silent:,} images."
        return Check(f"champion:{name}", None, None, None, True, message), None
    ours, theirs = ours[known], theirs[known]
    rise = options.heads.get(name, {}).get("max_regression", _RISE)
    before = float(theirs.mean())
    margin = rise * before
    gained = theirs - ours
    difference = float(gained.mean())
    lower, upper = bounds.mean_bounds(gained, options.confidence)
    said = paired.verdict(lower, upper, margin)
    decisions = class_checks.decisions(options)
    passed = paired.passes(said, difference, margin, decisions)
    message = (
        f"The mean absolute error of {name} is {float(ours.mean()):.4g}, and the champion's "
        f"{before:.4g} on the same {len(ours):,} images; with {options.confidence:.0%} confidence "
        f"it falls by between {lower:.4g} and {upper:.4g}; a rise of {margin:.4g} is accepted "
        f"({rise:.0%} of the champion's, evaluate.heads.{name}.max_regression): {said}."
    )
    if said == "undecided" and decisions[said] == "estimate":
        message = message[:-1] + (
            ", so the estimate decides: "
            + ("within the margin." if passed else "a loss beyond the margin.")
        )
    if silent:
        message += f" Left out are {silent:,} of them, for which the champion answers no number."
    told = {
        "mae": _number(before),
        "difference": _number(difference),
        "lower": _number(lower),
        "upper": _number(upper),
        "verdict": said,
    }
    bound, held_to = champion_check.threshold(said, difference, lower, upper, margin, decisions)
    bound, interval = _finite(bound), (lower, upper) if math.isfinite(lower + upper) else None
    name = f"champion:{name}"
    check = Check(name, _number(difference), bound, _finite(held_to), passed, message, interval)
    return check, told


def _finite(bound: float | None) -> float | None:
    return None if bound is None else _number(bound)
