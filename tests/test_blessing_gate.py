"""The final gate: every check on its own."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from pipeline import config
from pipeline.blessing import verdict
from pipeline.blessing.measured import Measured
from pipeline.blessing.verdict import Evidence
from pipeline.config import Evaluate
from pipeline.errors import ConfigError
from pipeline.evaluator.predictions import Predictions

SERVED = {"passed": True, "max_difference": 1e-7, "tolerance": 1e-4, "message": "served"}
CLASSES = ("a", "b")


def answers(labels: str, predicted: str, **changes) -> Predictions:
    """Predictions of 0.9 for each predicted name; labels and predictions as strings of names."""
    rows = [[0.9 if name == given else 0.1 for name in CLASSES] for given in predicted]
    made = Predictions(
        model="f",
        version=None,
        classes=CLASSES,
        ids=[f"{number}".encode() for number in range(len(labels))],
        labels=list(labels),
        predicted=list(predicted),
        probabilities=np.array(rows, np.float32),
    )
    return replace(made, **changes)


def measured(predictions: Predictions) -> Measured:
    pairs = [
        (CLASSES.index(label), CLASSES.index(name))
        for label, name in zip(predictions.labels, predictions.predicted, strict=True)
    ]
    return Measured(
        examples=len(pairs),
        accuracy=float(predictions.correct().mean()),
        top_k_accuracy=1.0,
        cross_entropy=0.5,
        confusion={pair: pairs.count(pair) for pair in pairs},
    )


def evidence(predictions: Predictions, champion: Predictions | None = None, **changes) -> Evidence:
    made = Evidence(measured(predictions), predictions, champion, SERVED, len(predictions.ids))
    return replace(made, **changes)


def failed(found: dict) -> list[str]:
    return [check["name"] for check in found["checks"] if not check["passed"]]


GOOD = answers("a" * 100 + "b" * 100, "a" * 97 + "b" * 3 + "b" * 98 + "a" * 2)


def test_good_model_is_blessed():
    found = verdict.judge(evidence(GOOD), Evaluate())
    assert found["blessed"] and found["reasons"] == []
    assert found["metrics"]["accuracy"] == pytest.approx(0.975)
    assert found["metrics"]["worst_class_recall"] == pytest.approx(0.97)
    assert found["confusion"] == [[97, 3], [2, 98]]
    assert found["per_class"]["a"] == {
        "precision": pytest.approx(97 / 99),
        "recall": 0.97,
        "f1": pytest.approx(2 * 97 / 199),
        "support": 100,
    }
    assert (found["champion"], found["majority_share"], found["test_examples"]) == (None, 0.5, 200)
    json.dumps(found, allow_nan=False)


def test_accuracy_floor_is_held_to_the_bound():
    # 0.975 is above 0.96, but 200 images can't tell.
    found = verdict.judge(evidence(GOOD), Evaluate(min_accuracy=0.96))
    assert failed(found) == ["accuracy"]
    [check] = [check for check in found["checks"] if check["name"] == "accuracy"]
    assert check["value"] == 0.975 and check["threshold"] == 0.96 and check["bound"] < 0.96
    assert "floor is 96.00%" in found["reasons"][0] and "would be needed" in found["reasons"][0]
    assert verdict.judge(evidence(GOOD), Evaluate(min_accuracy=0.94))["blessed"]


def test_default_floor_is_above_the_majority():
    lazy = answers("a" * 450 + "b" * 50, "a" * 500)
    found = verdict.judge(evidence(lazy), Evaluate())
    assert found["majority_share"] == 0.9
    # Never saying b is caught twice: by the floor, and by b's own recall.
    assert failed(found) == ["accuracy", "class_recall"]


def test_worst_class():
    weak = answers("a" * 100 + "b" * 100, "a" * 100 + "b" * 60 + "a" * 40)
    found = verdict.judge(evidence(weak), Evaluate(min_class_recall=0.8))
    assert failed(found) == ["class_recall"]
    assert "worst class, b, has a recall of 60.00%" in found["reasons"][0]
    # Its upper bound, 68 %, reaches this floor.
    assert verdict.judge(evidence(weak), Evaluate(min_class_recall=0.65))["blessed"]


def test_class_without_test_images():
    found = verdict.judge(evidence(answers("a" * 50, "a" * 50)), Evaluate(min_accuracy=0.5))
    assert found["per_class"]["b"] == {"precision": 0, "recall": None, "f1": None, "support": 0}
    assert found["metrics"]["worst_class_recall"] == 1
    assert found["blessed"]


def test_serving_check_failed():
    served = {**SERVED, "passed": False, "message": "It could not be served."}
    found = verdict.judge(evidence(GOOD, serving=served), Evaluate())
    assert found["reasons"] == ["It could not be served."]


def test_evaluated_another_model():
    found = verdict.judge(
        evidence(GOOD, measured=replace(measured(GOOD), accuracy=0.9)), Evaluate()
    )
    assert failed(found) == ["evaluated_is_served"]


def test_a_near_tie_is_no_other_model():
    one_off = replace(measured(GOOD), accuracy=194 / 200)
    assert verdict.judge(evidence(GOOD, measured=one_off), Evaluate())["blessed"]


def test_images_lost_on_the_way():
    found = verdict.judge(evidence(GOOD, test_images=201), Evaluate())
    assert failed(found) == ["same_images"]


@pytest.mark.parametrize("value", [float("nan"), 0.4, -0.1])
def test_probabilities_that_are_none(value):
    probabilities = GOOD.probabilities.copy()
    probabilities[3, 0] = value
    bad = replace(GOOD, probabilities=probabilities)
    found = verdict.judge(evidence(bad, measured=measured(GOOD)), Evaluate())
    assert failed(found) == ["answers"] and "1 of 200" in found["reasons"][0]


def test_labels_permuted():
    # The names are swapped in the export: TFMA, which counts by number, still sees a good model.
    swapped = replace(GOOD, predicted=["ab"[name == "a"] for name in GOOD.predicted])
    found = verdict.judge(evidence(swapped, measured=measured(GOOD)), Evaluate())
    assert failed(found) == ["answers", "evaluated_is_served"]


def champion_of(labels: str, predicted: str) -> Predictions:
    return answers(labels, predicted, version=3)


LABELS = "a" * 1000 + "b" * 1000


@pytest.mark.parametrize(
    ("ours", "theirs", "said", "blessed"),
    [
        (20, 20, "no worse", True),
        (20, 120, "better", True),
        (200, 20, "worse", False),
        (40, 15, "undecided", False),
        (25, 10, "undecided", True),
    ],
)
def test_four_verdicts(ours, theirs, said, blessed):
    # Mistakes on other images each: the champion's in class b, ours in class a.
    model = answers(LABELS, "b" * ours + "a" * (1000 - ours) + "b" * 1000)
    champion = champion_of(LABELS, "a" * 1000 + "a" * theirs + "b" * (1000 - theirs))
    found = verdict.judge(evidence(model, champion), Evaluate())
    [check] = [check for check in found["checks"] if check["name"] == "champion"]
    assert found["champion"]["verdict"] == said
    assert found["champion"]["version"] == 3
    assert found["champion"]["accuracy"] == pytest.approx(1 - theirs / 2000)
    assert (check["passed"], found["blessed"]) == (blessed, blessed)
    assert check["value"] == pytest.approx((theirs - ours) / 2000)
    assert check["threshold"] == -0.01
    if said == "undecided":
        assert "too few to tell, so the estimate decides" in check["message"]
        assert "more test images would tell" in check["message"]
    assert (found["champion"]["images_needed"] is not None) is (said == "undecided")
    assert check["interval"] == (found["champion"]["lower"], found["champion"]["upper"])
    json.dumps(found, allow_nan=False)


def compared(ours: int, theirs: int, **options) -> dict:
    """The verdict on as many mistakes each, in other classes (see above)."""
    model = answers(LABELS, "b" * ours + "a" * (1000 - ours) + "b" * 1000)
    champion = champion_of(LABELS, "a" * 1000 + "a" * theirs + "b" * (1000 - theirs))
    return verdict.judge(evidence(model, champion), Evaluate(**options))


@pytest.mark.parametrize(
    ("ours", "theirs", "options", "blessed"),
    [
        (25, 10, {"on_undecided": "block"}, False),
        (40, 15, {"on_undecided": "push"}, True),
        (20, 20, {"on_no_worse": "block", "on_undecided": "block"}, False),
        (20, 120, {"on_no_worse": "block", "on_undecided": "block"}, True),
        (200, 20, {"on_worse": "push", "on_undecided": "push"}, True),
        (20, 120, {f"on_{it}": "block" for it in ("better", "no_worse", "undecided")}, False),
    ],
)
def test_what_becomes_of_a_verdict_is_configured(ours, theirs, options, blessed):
    found = compared(ours, theirs, **options)
    [check] = [check for check in found["checks"] if check["name"] == "champion"]
    assert check["passed"] is found["blessed"] is blessed
    # What is shown as deciding does decide.
    if check["bound"] is not None:
        assert (check["bound"] >= check["threshold"]) is blessed
    if not blessed:
        assert "evaluate.on_" in found["reasons"][0] and ": block)" in found["reasons"][0]


@pytest.mark.parametrize(
    "metric", ["macro_f1", "macro_recall", "worst_class_recall", "cross_entropy"]
)
def test_any_metric_can_decide(metric):
    found = compared(200, 20, metric=metric)
    assert failed(found) == ["champion"] and found["champion"]["verdict"] == "worse"
    assert found["champion"]["metric"] == metric
    assert found["champion"]["difference"] == found["champion"]["metrics"][metric]["difference"]
    assert compared(20, 120, metric=metric)["champion"]["verdict"] == "better"
    unit = "nats" if metric == "cross_entropy" else "points"
    assert unit in found["reasons"][0]


def test_the_worst_class_pays_for_the_others():
    # As accurate as the champion, but all its mistakes fall upon one class.
    model = answers(LABELS, "a" * 1000 + "b" * 900 + "a" * 100)
    spread = "b" * 50 + "a" * 950 + "b" * 950 + "a" * 50
    champion = champion_of(LABELS, spread)
    assert verdict.judge(evidence(model, champion), Evaluate())["blessed"]
    found = verdict.judge(evidence(model, champion), Evaluate(metric="worst_class_recall"))
    assert failed(found) == ["champion"]
    metrics = found["champion"]["metrics"]
    assert metrics["accuracy"]["difference"] == 0
    assert metrics["worst_class_recall"]["difference"] == pytest.approx(-0.05)
    assert metrics["worst_class_recall"]["verdict"] == "worse"


def test_mcnemars_p_value_is_told():
    found = compared(8, 1)
    assert found["champion"]["p_value"] == pytest.approx(0.0215, abs=1e-4)
    assert "McNemar's p is 0.021" in check_of(found, "champion")["message"]
    assert compared(0, 0)["champion"]["p_value"] == 1


def check_of(found: dict, name: str) -> dict:
    [check] = [check for check in found["checks"] if check["name"] == name]
    return check


def test_three_images_are_no_proof_of_a_gain():
    # Tango's lower bound lies above 0, and McNemar's test does not deny luck.
    found = compared(0, 3)
    assert found["champion"]["lower"] > 0 and found["champion"]["p_value"] > 0.1
    assert found["champion"]["verdict"] == "no worse"
    assert compared(0, 4)["champion"]["verdict"] == "better"


def test_flipped_images_and_confused_pairs():
    labels = "a" * 6 + "b" * 6
    model = answers(labels, "aaabbb" + "bbbbba")
    model.probabilities[3] = [0.01, 0.99]
    champion = champion_of(labels, "aaaaab" + "abbbba")
    found = verdict.judge(evidence(model, champion), Evaluate(min_accuracy=0))
    assert (found["flipped"]["gained"], found["flipped"]["lost"]) == (1, 2)
    first, second, third = found["flipped"]["images"]
    assert first == {
        "id": "3",
        "label": "a",
        "was": "a",
        "is": "b",
        "confidence": pytest.approx(0.99),
    }
    assert (second["id"], third["id"], third["was"], third["is"]) == ("4", "6", "a", "b")
    assert found["confused"] == [
        {"truth": "a", "predicted": "b", "count": 3, "champion_count": 1},
        {"truth": "b", "predicted": "a", "count": 1, "champion_count": 2},
    ]
    alone = verdict.judge(evidence(model), Evaluate(min_accuracy=0))
    assert alone["confused"][0]["champion_count"] is None and "flipped" not in alone


def test_no_more_flipped_images_than_can_be_looked_at():
    found = compared(200, 20)
    assert found["flipped"]["lost"] == 200 and len(found["flipped"]["images"]) == 50


def test_tfmas_validation_is_recorded():
    good = measured(GOOD)
    assert "tfma_validation_ok" in verdict.judge(evidence(GOOD), Evaluate())
    found = verdict.judge(evidence(GOOD, measured=replace(good, missed=())), Evaluate())
    assert found["tfma_validation_ok"] is True and found["blessed"]
    # A floor that is missed has its check; it is not said twice.
    missed = replace(good, missed=("accuracy is 0.975, asked at least 0.99",))
    found = verdict.judge(evidence(GOOD, measured=missed), Evaluate(min_accuracy=0.99))
    assert found["tfma_validation_ok"] is False and failed(found) == ["accuracy"]
    # A contradiction is one.
    found = verdict.judge(evidence(GOOD, measured=missed), Evaluate(min_accuracy=0.9))
    assert failed(found) == ["tfma_validation"] and "asked at least 0.99" in found["reasons"][0]


@pytest.mark.parametrize(
    "override",
    [
        "evaluate.on_no_worse=block",
        "evaluate.on_better=block",
        "evaluate.on_worse=push",
        "evaluate.on_worse=estimate",
        "evaluate.metric=auc",
        "evaluate.resamples=10",
        "evaluate.max_regression=2",
        "evaluate.confidence=0.4",
    ],
)
def test_senseless_thresholds_are_refused(override):
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        config.load(None, [override])


def test_strict_switches_on_what_it_says():
    strict = config.load("strict").config
    assert strict.evaluate.on_undecided == "block" and strict.validation.test_size == "fail"


def test_champion_that_judged_other_images():
    champion = replace(GOOD, version=1, ids=[b"x" + name for name in GOOD.ids])
    found = verdict.judge(evidence(GOOD, champion), Evaluate())
    assert failed(found) == ["same_images", "champion"]


def test_champion_that_knows_fewer_classes():
    champion = answers(
        "a" * 100 + "b" * 100,
        "a" * 200,
        version=1,
        classes=("a",),
        probabilities=np.ones((200, 1), np.float32),
    )
    found = verdict.judge(evidence(GOOD, champion), Evaluate())
    assert found["blessed"] and found["champion"]["accuracy"] == 0.5
