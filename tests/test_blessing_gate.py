"""The final gate: every check on its own, and the component on a real evaluation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import verdict
from pipeline.config import Evaluate
from pipeline.measured import Measured
from pipeline.predictions import Predictions
from pipeline.verdict import Evidence

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
        (20, 120, "no worse", True),
        (200, 20, "worse", False),
        (40, 15, "undecided", False),
        (25, 10, "undecided", True),
    ],
)
def test_three_verdicts(ours, theirs, said, blessed):
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


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """All that the gate reads, made by the components that make it."""
    from tests.test_evaluate import run_evaluator
    from tests.test_serving_check import Made

    made = Made(tmp_path_factory.mktemp("gate"))
    made.predict()
    made.check(check_images=8)
    run_evaluator(made.root / "examples", made.root / "model", made.root / "evaluation")
    (made.root / "ingest").mkdir()
    (made.root / "ingest" / "summary.json").write_text('{"examples": {"test": 28}}')
    return made


def bless(made, target: Path, **options):
    from tfx.types import standard_artifacts

    from components import artifacts
    from components.blessing_gate import BlessingGate
    from tests import exports

    blessing = exports.artifact(standard_artifacts.ModelBlessing, target)
    BlessingGate.test_call(
        evaluation=exports.artifact(standard_artifacts.ModelEvaluation, made.root / "evaluation"),
        predictions=made.predictions,
        champion_predictions=made.champion_predictions,
        serving_check=exports.artifact(artifacts.ServingCheck, made.root / "check"),
        ingest_report=exports.artifact(artifacts.IngestReport, made.root / "ingest"),
        blessing=blessing,
        options=Evaluate(**options).model_dump_json(),
        code="",
    )
    return blessing, json.loads((target / "verdict.json").read_text())


def test_component_blesses(evaluated, tmp_path):
    from tfx.components.util import model_utils

    blessing, found = bless(evaluated, tmp_path)
    assert found["blessed"], found["reasons"]
    assert model_utils.is_model_blessed(blessing)
    assert (tmp_path / "BLESSED").is_file() and not (tmp_path / "NOT_BLESSED").exists()
    assert found["metrics"]["accuracy"] == 1


def test_component_refuses(evaluated, tmp_path):
    from tfx.components.util import model_utils

    blessing, found = bless(evaluated, tmp_path, min_accuracy=0.99)
    assert not found["blessed"] and len(found["reasons"]) == 1
    assert blessing.get_int_custom_property("blessed") == 0
    assert not model_utils.is_model_blessed(blessing)
    assert (tmp_path / "NOT_BLESSED").is_file()
