"""The final gate on heads beside the label: each check both ways, on numbers alone."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from pipeline.blessing import recall, verdict_heads
from pipeline.blessing.measured import Measured, MeasuredValues
from pipeline.config import Evaluate
from pipeline.evaluator.head_columns import Classes, Values

IMAGES = 400


def values(error: float, seed: int = 1, images: int = IMAGES) -> Values:
    """Targets from 0 to 1, and answers with normal errors of this deviation."""
    truth = np.random.default_rng(7).uniform(0, 1, images)
    noise = np.random.default_rng(seed).normal(0, error, images)
    return Values(truth.astype(np.float32), (truth + noise).astype(np.float32))


def measured(columns: Values) -> MeasuredValues:
    errors = columns.errors()
    distances = ((columns.truth - columns.truth.mean()) ** 2).sum()
    return MeasuredValues(
        examples=len(errors),
        mae=float(errors.mean()),
        rmse=float(np.sqrt((errors**2).mean())),
        r2=float(1 - (errors**2).sum() / distances),
    )


def judge(columns: Values, champion: Values | None = None, **thresholds):
    checks, told = verdict_heads.judge(
        {"severity": measured(columns)},
        {"severity": columns},
        None if champion is None else {"severity": champion},
        Evaluate(heads={"severity": thresholds} if thresholds else {}),
        {},
    )
    json.dumps(told, allow_nan=False)
    return {check.name: check for check in checks}, told["severity"]


def test_a_good_regression_passes():
    checks, told = judge(values(0.05))
    assert all(check.passed for check in checks.values())
    assert told["metrics"]["mae"] == pytest.approx(0.04, abs=0.01)
    assert sum(told["errors"]["counts"]) == IMAGES
    assert told["champion"] is None


def test_by_default_it_must_beat_a_constant():
    columns = values(0.05)
    lazy = Values(columns.truth, np.full_like(columns.truth, 0.5))
    checks, _ = judge(lazy)
    assert not checks["mae:severity"].passed
    assert "always answering the median" in checks["mae:severity"].message


def test_the_limit_is_held_to_the_upper_bound():
    columns = values(0.05)
    mae = measured(columns).mae
    checks, _ = judge(columns, max_mae=mae * 1.01)
    check = checks["mae:severity"]
    assert check.value < check.threshold < check.bound and not check.passed
    assert "evaluate.heads.severity.max_mae" in check.message
    assert judge(columns, max_mae=mae * 1.2)[0]["mae:severity"].passed


@pytest.mark.parametrize(
    ("ours", "theirs", "images", "said", "passed"),
    [
        (0.05, 0.05, IMAGES, "no worse", True),
        (0.05, 0.2, IMAGES, "better", True),
        (0.2, 0.05, IMAGES, "worse", False),
        (0.06, 0.055, 20, "undecided", None),
    ],
)
def test_against_the_champion(ours, theirs, images, said, passed):
    model = values(ours, seed=1, images=images)
    champion = values(theirs, seed=1 if ours == theirs else 2, images=images)
    checks, told = judge(model, champion, max_mae=1)
    check = checks["champion:severity"]
    assert told["champion"]["verdict"] == said
    if passed is None:
        passed = told["champion"]["difference"] >= check.threshold
        assert "the estimate decides" in check.message
    assert check.passed is passed


def test_answers_that_are_no_numbers():
    columns = values(0.05)
    columns.predicted[3] = np.nan
    checks, told = judge(columns, max_mae=1)
    assert not checks["answers:severity"].passed and not checks["mae:severity"].passed
    assert "1 of 400 answers of severity" in checks["answers:severity"].message
    assert told["metrics"]["mae"] is None


def test_answers_that_are_no_numbers_are_no_numbers_of_the_verdict():
    columns = values(0.05)
    columns.predicted[3] = np.nan
    checks, told = judge(columns, values(0.05, seed=2), max_mae=1)
    json.dumps(asdict(checks["champion:severity"]), allow_nan=False)
    assert told["champion"]["difference"] is None


def test_a_champion_that_answers_no_number_blocks_nobody():
    champion = values(0.05)
    champion.predicted[3] = np.nan
    checks, told = judge(values(0.05), champion, max_mae=1)
    check = checks["champion:severity"]
    assert check.passed and "Left out are 1 of them" in check.message
    assert told["champion"]["verdict"] == "no worse"
    champion.predicted[:] = np.nan
    checks, told = judge(values(0.05), champion, max_mae=1)
    check = checks["champion:severity"]
    assert check.passed and "on any of the 400 images" in check.message
    assert told["champion"] is None


def test_another_model_was_evaluated():
    checks, _ = verdict_heads.judge(
        {"severity": measured(values(0.05))}, {"severity": values(0.06, 9)}, None, Evaluate(), {}
    )
    [check] = [check for check in checks if check.name == "evaluated_is_served:severity"]
    assert not check.passed and "not what was evaluated" in check.message
    [check], _ = verdict_heads.judge({}, {"severity": values(0.1)}, None, Evaluate(), {})
    assert not check.passed and "measured nothing of the head severity" in check.message


def classes(right: int) -> Classes:
    labels: list[str | None] = [*["x"] * 100, *["y"] * 100]
    predicted = ["x"] * 100 + ["y"] * right + ["x"] * (100 - right)
    rows = [[0.9, 0.1] if name == "x" else [0.1, 0.9] for name in predicted]
    return Classes(("x", "y"), labels, predicted, np.array(rows, np.float32))


def judge_classes(columns: Classes, champion: Classes | None = None, **options):
    right = int(columns.correct().sum())
    confusion = {(0, 0): 100, (1, 1): right - 100, (1, 0): 200 - right}
    found = Measured(200, right / 200, 1.0, 0.1, confusion)
    checks, told = verdict_heads.judge(
        {"grade": found},
        {"grade": columns},
        None if champion is None else {"grade": champion},
        Evaluate(**options),
        recall.corrected({"grade": found.matrix(2)}, Evaluate(**options)),
    )
    return {check.name: check for check in checks}, told["grade"]


def test_a_class_head_is_held_to_its_own_floors():
    checks, told = judge_classes(classes(90))
    assert all(check.passed for check in checks.values())
    assert told["confusion"] == [[100, 0], [10, 90]] and told["majority_share"] == 0.5
    checks, _ = judge_classes(classes(90), heads={"grade": {"min_accuracy": 0.94}})
    assert not checks["accuracy:grade"].passed
    message = checks["accuracy:grade"].message
    assert message.startswith("Accuracy of grade is 95.00%")
    assert "evaluate.heads.grade.min_accuracy" in message
    # The label's own floor is not its.
    assert judge_classes(classes(90), min_accuracy=0.99)[0]["accuracy:grade"].passed


def test_a_class_head_against_the_champions():
    checks, told = judge_classes(classes(50), classes(95))
    assert not checks["champion:grade"].passed and told["champion"]["verdict"] == "worse"
    generous = {"grade": {"max_regression": 0.5}}
    assert judge_classes(classes(50), classes(95), heads=generous)[0]["champion:grade"].passed


def test_undecided_heads_follow_the_configuration():
    model, champion = values(0.06, seed=1, images=20), values(0.055, seed=2, images=20)
    for decision, passed in (("block", False), ("push", True)):
        checks, told = verdict_heads.judge(
            {"severity": measured(model)},
            {"severity": model},
            {"severity": champion},
            Evaluate(heads={"severity": {"max_mae": 1}}, on_undecided=decision),
            {},
        )
        [check] = [check for check in checks if check.name == "champion:severity"]
        assert told["severity"]["champion"]["verdict"] == "undecided"
        assert check.passed is passed and (check.bound >= check.threshold) is passed
        assert check.interval[0] < check.value < check.interval[1]


def test_a_champion_that_learned_from_another_column_is_held_to_this_datas_truth():
    ours, theirs = classes(90), classes(90)
    blind = Classes(theirs.classes, [None] * 200, theirs.predicted, theirs.probabilities)
    _, told = judge_classes(ours, blind)
    assert told["champion"]["difference"] == 0
    model = values(0.05)
    unknown = Values(np.full(IMAGES, np.nan, np.float32), model.predicted)
    assert judge(model, unknown)[1]["champion"]["difference"] == 0
