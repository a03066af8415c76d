"""What a model has forgotten of older spans: told, and held to a bound where there is one."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.blessing import forgetting
from pipeline.blessing.forgetting import Older
from pipeline.errors import SafelightError
from pipeline.evaluator.predictions import Predictions

CLASSES = ("a", "b")


def answered(right: list[bool]) -> Predictions:
    """Returns answers of which these are right."""
    labels = ["a"] * len(right)
    predicted = ["a" if one else "b" for one in right]
    return Predictions(
        model="m",
        version=None,
        classes=CLASSES,
        ids=[str(number).encode() for number in range(len(right))],
        labels=labels,
        predicted=predicted,
        probabilities=np.full((len(right), 2), 0.5, np.float32),
    )


def older(ours: list[bool], theirs: list[bool] | None) -> Older:
    half = len(ours) // 2
    champion = None if theirs is None else answered(theirs)
    return Older([("span-1-r1", half), ("span-2-r1", len(ours) - half)], answered(ours), champion)


def test_each_span_is_told_by_itself():
    checks, told = forgetting.judge(
        older([True] * 90 + [False] * 10, [True] * 100), most=0.0, confidence=0.95
    )
    first, second = told["forgetting"]
    assert checks == []
    assert (first["span"], first["images"], first["accuracy"]) == ("span-1-r1", 50, 1.0)
    assert (second["accuracy"], second["champion"], second["passed"]) == (0.8, 1.0, True)
    assert second["lower"] < -0.2 < second["upper"] < 0


def test_a_sure_fall_beyond_the_bound_blocks():
    ours = [True] * 100 + [True] * 50 + [False] * 50
    checks, told = forgetting.judge(older(ours, [True] * 200), most=0.1, confidence=0.95)
    assert [check.passed for check in checks] == [True, False]
    assert checks[1].name == "forgetting:span-2-r1"
    assert "-50.00 points" in checks[1].message and "max_forgetting" in checks[1].message
    assert [row["passed"] for row in told["forgetting"]] == [True, False]


def test_a_fall_on_few_images_is_chance():
    checks, _ = forgetting.judge(
        older([True] * 9 + [False], [True] * 10), most=0.1, confidence=0.95
    )
    assert all(check.passed for check in checks)


def test_without_older_spans_or_champion():
    assert forgetting.judge(None, 0.1, 0.95) == ([], {})
    checks, told = forgetting.judge(older([True] * 4, None), most=0.1, confidence=0.95)
    assert checks == [] and told["forgetting"][0]["champion"] is None


def test_answers_about_other_images_are_refused():
    with pytest.raises(SafelightError, match="not of the same images"):
        forgetting.judge(
            Older([("span-1-r1", 7)], answered([True] * 4), None), most=0.1, confidence=0.95
        )
