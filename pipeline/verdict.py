"""The final gate's reasoning: what was found, what it was held to, and why it passed or failed.

Pure: numbers in, a verdict out. Every check is one plain sentence with its value, its bound and
its threshold; the failed ones are the reasons. docs/blessing.md explains the statistics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline import class_checks, verdict_heads
from pipeline.class_checks import Check, Floors
from pipeline.config import Evaluate
from pipeline.heads import LABEL
from pipeline.measured import Measured
from pipeline.predictions import Predictions


@dataclass(frozen=True)
class Evidence:
    """What the gate judges on.

    Attributes:
      measured: TFMA's results.
      predictions: the model's answers, image by image.
      champion: the champion's answers about the same images; None without a champion.
      serving: the content of serving_check.json.
      test_images: how many images ingest put into `test`.
    """

    measured: Measured
    predictions: Predictions
    champion: Predictions | None
    serving: Mapping[str, Any]
    test_images: int


def judge(evidence: Evidence, options: Evaluate) -> dict[str, Any]:
    """Returns the content of verdict.json."""
    predictions, measured = evidence.predictions, evidence.measured
    floors = Floors(
        head=LABEL,
        min_accuracy=options.min_accuracy,
        min_class_recall=options.min_class_recall,
        max_regression=options.max_regression,
        confidence=options.confidence,
    )
    matrix = measured.matrix(len(predictions.classes))
    per_class = class_checks.per_class(matrix, predictions.classes)
    majority = class_checks.majority(matrix)
    comparison, champion = _against_champion(evidence, floors)
    further, heads = _heads(evidence, options)
    checks = [
        _same_images(evidence),
        class_checks.sound(
            predictions.classes, predictions.predicted, predictions.probabilities, floors
        ),
        class_checks.agreement(int(predictions.correct().sum()), measured, floors),
        class_checks.accuracy(measured, majority, floors),
        class_checks.class_recall(matrix, predictions.classes, floors),
        *([comparison] if comparison else []),
        *further,
        _serving(evidence.serving),
    ]
    found = {
        "blessed": all(check.passed for check in checks),
        "reasons": [check.message for check in checks if not check.passed],
        "metrics": class_checks.metrics(measured, per_class),
        "checks": [asdict(check) for check in checks],
        "champion": champion,
        "per_class": per_class,
        "confusion": matrix.tolist(),
        "majority_share": majority,
        "test_examples": measured.examples,
    }
    return {**found, "heads": heads} if heads else found


def _heads(evidence: Evidence, options: Evaluate) -> tuple[list[Check], dict[str, Any]]:
    champion = evidence.champion
    same = champion is not None and champion.ids == evidence.predictions.ids
    return verdict_heads.judge(
        evidence.measured.heads,
        evidence.predictions.heads,
        champion.heads if champion is not None and same else None,
        options,
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


def _against_champion(
    evidence: Evidence, floors: Floors
) -> tuple[Check | None, dict[str, Any] | None]:
    champion = evidence.champion
    if champion is None:
        return None, None
    name = "the champion" if champion.version is None else f"version {champion.version}"
    if champion.ids != evidence.predictions.ids or not champion.ids:
        message = f"The model can't be compared with {name}: they judged other images."
        told: dict[str, Any] = {"version": champion.version, "accuracy": None}
        return Check("champion", None, None, -floors.max_regression, False, message), told
    check, compared = class_checks.against(
        evidence.predictions.correct(), champion.correct(), name, floors
    )
    return check, {"version": champion.version, **compared}


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
