"""The final gate's reasoning: what was found, what it was held to, and why it passed or failed.

Pure: numbers in, a verdict out. Every check is one plain sentence with its value, its bound and
its threshold; the failed ones are the reasons. docs/blessing.md explains the statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.blessing import (
    budgets,
    champion,
    class_checks,
    forgetting,
    mistakes,
    recall,
    reliability,
    robustness,
    slices,
    verdict_heads,
)
from pipeline.blessing.class_checks import Check, Floors, Part
from pipeline.blessing.measured import Measured
from pipeline.config import Calibration, Evaluate, Robustness
from pipeline.errors import bounded
from pipeline.evaluator.head_columns import Classes
from pipeline.evaluator.predictions import Predictions
from pipeline.heads import LABEL


@dataclass(frozen=True)
class Evidence:
    """What the gate judges on.

    Attributes:
      measured: TFMA's results.
      predictions: the model's answers, image by image.
      champion: the champion's answers about the same images; None without a champion.
      serving: the content of serving_check.json.
      test_images: how many images ingest put into `test`.
      facts: the rows of images.parquet of the split `test`, in the order of its records; None
        where ingest left none.
      robustness: the content of robustness.json; None where that is off.
      older: answers about the older spans of a window; None without any.
    """

    measured: Measured
    predictions: Predictions
    champion: Predictions | None
    serving: Mapping[str, Any]
    test_images: int
    facts: pa.Table | None = None
    robustness: Mapping[str, Any] | None = None
    older: forgetting.Older | None = None


def judge(
    evidence: Evidence,
    options: Evaluate,
    spoiled: Robustness | None = None,
    calibrated: Calibration | None = None,
) -> dict[str, Any]:
    """Returns the content of verdict.json.

    `spoiled` has the floors of evidence.robustness, and `calibrated` those of calibration.
    """
    parts: list[Part] = []
    parts.append(([_same_images(evidence)], {}))
    recalls = recall.corrected(_matrices(evidence), options)
    parts.append(_label(evidence, options, recalls))
    parts.append(_heads(evidence, options, recalls))
    parts.append(_tfma(evidence.measured.missed, [*parts[-2][0], *parts[-1][0]]))
    parts.append(([_serving(evidence.serving)], {}))
    parts.append((_agreement(evidence.serving), {}))
    parts.append(reliability.judge(evidence.predictions, calibrated or Calibration()))
    parts.append(budgets.judge(evidence.serving))
    parts.append(slices.judge(evidence.predictions, evidence.champion, evidence.facts, options))
    parts.append(robustness.judge(evidence.robustness, spoiled or Robustness(), options.confidence))
    parts.append(forgetting.judge(evidence.older, options.max_forgetting, options.confidence))

    checks = [check for of_part, _ in parts for check in of_part]
    found: dict[str, Any] = {
        "blessed": all(check.passed for check in checks),
        "reasons": [check.message for check in checks if not check.passed],
        "checks": [asdict(check) for check in checks],
        "test_examples": evidence.measured.examples,
    }
    for _, told in parts:
        found |= told
    return found


def _label(evidence: Evidence, options: Evaluate, recalls: Mapping[str, Sequence[float]]) -> Part:
    """What the label's head is held to: floors, and the champion."""
    predictions, measured = evidence.predictions, evidence.measured
    floors = Floors.asked(options)
    matrix = measured.matrix(len(predictions.classes))
    per_class = class_checks.per_class(matrix, predictions.classes)
    majority = class_checks.majority(matrix)
    compared, told = _against_champion(evidence, options)
    checks = [
        class_checks.sound(
            predictions.classes, predictions.predicted, predictions.probabilities, floors
        ),
        class_checks.agreement(int(predictions.correct().sum()), measured, floors),
        class_checks.accuracy(measured, majority, floors),
        recall.check(matrix, predictions.classes, floors, recalls),
        *compared,
    ]
    found = {
        "metrics": class_checks.metrics(measured, per_class),
        **told,
        "per_class": per_class,
        "confusion": matrix.tolist(),
        "majority_share": majority,
    }
    return checks, found


def _heads(evidence: Evidence, options: Evaluate, recalls: Mapping[str, Sequence[float]]) -> Part:
    champion_answers = evidence.champion if _comparable(evidence) else None
    checks, heads = verdict_heads.judge(
        evidence.measured.heads,
        evidence.predictions.heads,
        champion_answers.heads if champion_answers else None,
        options,
        recalls,
    )
    return checks, {"heads": heads} if heads else {}


def _matrices(evidence: Evidence) -> dict[str, npt.NDArray[np.int64]]:
    """Returns the confusion matrix of each class head that was measured, by name."""
    found = {LABEL: evidence.measured.matrix(len(evidence.predictions.classes))}
    for name, columns in evidence.predictions.heads.items():
        measured = evidence.measured.heads.get(name)
        if isinstance(columns, Classes) and isinstance(measured, Measured):
            found[name] = measured.matrix(len(columns.classes))
    return found


def _comparable(evidence: Evidence) -> bool:
    """Says whether the champion answered about the very same images."""
    champion_answers = evidence.champion
    return bool(
        champion_answers is not None
        and champion_answers.ids
        and champion_answers.ids == evidence.predictions.ids
    )


def _same_images(evidence: Evidence) -> Check:
    evaluated, predicted = evidence.measured.examples, len(evidence.predictions.ids)
    champion = evidence.champion
    same = evaluated == predicted == evidence.test_images
    if champion is not None:
        same = same and champion.ids == evidence.predictions.ids
    return Check(
        name="same_images",
        value=evaluated,
        bound=None,
        threshold=evidence.test_images,
        passed=same,
        message=(
            f"All judged the same {evaluated:,} test images."
            if same
            else f"Not all judged the same: ingest put {evidence.test_images:,} images into test, "
            f"TFMA evaluated {evaluated:,}, and the predictions hold {predicted:,}"
            + (f" (the champion's {len(champion.ids):,})." if champion else ".")
        ),
    )


def _against_champion(evidence: Evidence, options: Evaluate) -> Part:
    ours, theirs, floors = evidence.predictions, evidence.champion, Floors.asked(options)
    if theirs is None:
        return [], {"champion": None, "confused": mistakes.confused(ours, None)}
    name = "the champion" if theirs.version is None else f"version {theirs.version}"
    if not _comparable(evidence):
        message = f"The model can't be compared with {name}: they judged other images."
        check = Check("champion", None, None, -floors.max_regression, False, message)
        told: dict[str, Any] = {"version": theirs.version, "accuracy": None}
        return [check], {"champion": told, "confused": mistakes.confused(ours, None)}
    # The truth is this data's; a champion's answers may have been read beside older labels.
    theirs = replace(theirs, labels=ours.labels)
    check, compared = champion.compare(ours, theirs, name, floors, options)
    return [check], {
        "champion": {"version": theirs.version, **compared},
        "flipped": mistakes.flipped(ours, theirs),
        "confused": mistakes.confused(ours, theirs),
    }


def _tfma(missed: Sequence[str] | None, checks: Sequence[Check]) -> Part:
    """TFMA's own validation must not contradict the floors, which are held to bounds.

    A threshold missed there is a floor missed here, and has its check already.
    """
    if missed is None:
        return [], {"tfma_validation_ok": None}
    floors = [check for check in checks if check.name.partition(":")[0] in ("accuracy", "mae")]
    passed = not missed or not all(check.passed for check in floors)
    message = (
        "TFMA's validation result says what the floors say."
        if passed
        else f"TFMA's validation failed ({bounded(missed)}), and the floors are reached: the "
        "evaluation and the predictions contradict each other. Run again."
    )
    check = Check("tfma_validation", len(missed), None, 0, passed, message)
    return [check], {"tfma_validation_ok": not missed}


def _serving(serving: Mapping[str, Any]) -> Check:
    passed = bool(serving["passed"])
    return Check(
        name="serving",
        value=serving.get("max_difference"),
        bound=None,
        threshold=serving.get("tolerance"),
        passed=passed,
        message=str(serving["message"]),
    )


def _agreement(serving: Mapping[str, Any]) -> list[Check]:
    """The export against the network that was trained; nothing where that is off."""
    found = serving.get("agreement")
    if not found:
        return []
    return [
        Check(
            name="trained_is_served",
            value=found["max_difference"],
            bound=None,
            threshold=found["tolerance"],
            passed=bool(found["passed"]),
            message=str(found["message"]),
        )
    ]
