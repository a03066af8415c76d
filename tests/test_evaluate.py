"""TFMA on a real export: what Evaluator measures is what NumPy and the Keras definitions say."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from components.image_statistics import IN_MEMORY_RUNNER
from pipeline.config import Evaluate
from pipeline.errors import SafelightError
from pipeline.evaluator import combiners, evaluate
from pipeline.heads import Head
from tests import exports

COUNTS = {"blue": 9, "green": 7, "red": 6, "white": 5}


def run_evaluator(examples, model, target, beside=(), **options):
    """Runs Evaluator as the graph configures it; returns the evaluation's URI."""
    from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
    from tfx.types import standard_artifacts
    from tfx.utils import proto_utils

    from components.image_evaluator import Executor

    data = standard_artifacts.Examples()
    data.uri, data.split_names = str(examples), '["test"]'
    trained = standard_artifacts.Model()
    trained.uri = str(model)
    evaluation, blessing = standard_artifacts.ModelEvaluation(), standard_artifacts.ModelBlessing()
    evaluation.uri, blessing.uri = str(target), str(target) + "-blessing"
    # An image by name keeps TFX from packing itself up for remote workers (2 s).
    args = [
        f"--runner={IN_MEMORY_RUNNER}",
        "--direct_running_mode=in_memory",
        "--sdk_container_image=none",
    ]
    context = BaseBeamExecutor.Context(beam_pipeline_args=args)
    Executor(context).Do(
        {"examples": [data], "model": [trained]},
        {"evaluation": [evaluation], "blessing": [blessing]},
        {
            "eval_config": proto_utils.proto_to_json(
                evaluate.eval_config(Evaluate(**options), heads=beside)
            ),
            "example_splits": '["test"]',
            "module_path": "pipeline.evaluator.evaluate",
        },
    )
    # Only the final gate blesses.
    assert not blessing.has_custom_property("blessed")
    assert not list(Path(blessing.uri).iterdir())
    return str(target)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The evaluation of a model that takes red for blue, and what its own answers say."""
    from pipeline.evaluator.predictions import Export, answer_split

    root = tmp_path_factory.mktemp("evaluated")
    examples = exports.write_examples(root / "examples", COUNTS)
    model = exports.save_model(
        root / "model" / "Format-Serving", answers={"red": "blue", "blue": "red"}, sharpness=2.0
    )
    uri = run_evaluator(examples, root / "model", root / "evaluation", top_k=2)
    batches = list(answer_split(Export(model), str(examples), "test"))
    labels = [name for batch in batches for name in batch.column("label").to_pylist()]
    rows = [row for batch in batches for row in batch.column("probabilities").to_pylist()]
    return uri, labels, np.array(rows)


def test_metrics_are_those_of_the_answers(found):
    uri, labels, probabilities = found
    measured = evaluate.read_metrics(uri)
    ids = np.array([exports.CLASSES.index(name) for name in labels])
    assert measured.examples == sum(COUNTS.values())
    assert measured.accuracy == pytest.approx(12 / 27)
    order = np.argsort(-probabilities, axis=1)[:, :2]
    assert measured.top_k_accuracy == pytest.approx(np.mean((order == ids[:, None]).any(axis=1)))
    loss = -np.log(probabilities[np.arange(27), ids])
    assert measured.cross_entropy == pytest.approx(loss.mean(), rel=1e-5)


def test_confusion_matrix(found):
    matrix = evaluate.read_metrics(found[0]).matrix(4)
    assert matrix.tolist() == [[0, 0, 9, 0], [0, 7, 0, 0], [6, 0, 0, 0], [0, 0, 0, 5]]


def test_readable_by_tfma_itself(found):
    import tensorflow_model_analysis as tfma

    result = tfma.load_eval_result(found[0])
    [(key, metrics)] = result.slicing_metrics
    assert key == ()
    assert metrics[""][""]["accuracy"]["doubleValue"] == pytest.approx(12 / 27)
    [(_, plots)] = result.plots
    assert "multiClassConfusionMatrixAtThresholds" in plots[""][""]


def thresholds(*heads, **options) -> list[dict]:
    """Each MetricsSpec's thresholds: {metric: (lower bound, upper bound)}."""
    found = []
    for spec in evaluate.eval_config(Evaluate(**options), heads=heads).metrics_specs:
        bounds = {name: each.value_threshold for name, each in spec.thresholds.items()}
        found.append(
            {
                name: (each.lower_bound.value, each.upper_bound.value)
                for name, each in bounds.items()
            }
        )
    return found


def test_floors_are_thresholds_where_tfma_can_hold_them():
    assert thresholds(min_accuracy=0.9) == [{"accuracy": (0.9, 0)}]
    # The default floor depends on the data: accuracy less that floor must not be negative.
    assert thresholds(min_class_recall=0.9) == [{"accuracy_over_guessing": (0, 0)}]
    grade = Head(name="grade", kind="class", column="grade", classes=("x", "y"))
    severity = Head(name="severity", kind="regression", column="severity")
    floors = {"grade": {"min_accuracy": 0.7}, "severity": {"max_mae": 0.2}}
    assert thresholds(grade, severity, heads=floors) == [
        {"accuracy_over_guessing": (0, 0)},
        {"accuracy": (0.7, 0)},
        {"mae": (0, 0.2)},
    ]
    assert thresholds(severity) == [{"accuracy_over_guessing": (0, 0)}, {}]


def test_a_change_of_code_or_top_k_is_another_evaluation():
    config = evaluate.eval_config(Evaluate(top_k=5), code="abc")
    [spec] = config.metrics_specs
    assert '"top_k": 5' in spec.metrics[0].config and '"abc"' in spec.metrics[0].config
    # What TFMA has no use for leaves the evaluation in the cache.
    same = evaluate.eval_config(Evaluate(top_k=5, max_regression=0.5, confidence=0.9), code="abc")
    assert same == config


def test_tfma_validates_the_floor(found):
    # 12 of 27 right; the largest class has 9: the default floor is 0.4.
    assert evaluate.read_metrics(found[0]).missed == ()


def test_tfma_says_which_floor_is_missed(tmp_path):
    examples = exports.write_examples(tmp_path / "examples", {"blue": 6, "red": 2})
    exports.save_model(tmp_path / "model" / "Format-Serving", answers={"red": "blue"})
    uri = run_evaluator(examples, tmp_path / "model", tmp_path / "first", min_accuracy=0.9)
    measured = evaluate.read_metrics(uri)
    assert measured.missed == (f"accuracy is {measured.accuracy:.4g}, asked at least 0.9",)


def test_nothing_evaluated(tmp_path):
    with pytest.raises(SafelightError, match="There is no evaluation"):
        evaluate.read_metrics(str(tmp_path / "gone"))
    with pytest.raises(SafelightError, match="not whole"):
        evaluate.read_metrics(str(tmp_path))


def test_measure_ranks_as_argmax_does():
    given = np.array([[0.4, 0.4, 0.2], [0.4, 0.4, 0.2], [0.1, 0.2, 0.7], [0.1, 0.2, 0.7]])
    labels = np.array([0, 1, 2, -1])
    right, top2, loss, images = combiners.measure(labels, given, 2)
    assert (right, top2, images) == (2, 3, 4)
    assert loss == pytest.approx(-2 * math.log(0.4) - math.log(0.7) - math.log(1e-7))


def test_measure_never_calls_nan_right():
    right, top, loss, images = combiners.measure(
        np.array([0, 0]), np.array([[np.nan, 0.5], [np.inf, 0.0]]), 2
    )
    assert (right, top, images) == (0, 0, 2)
    assert np.isfinite(loss)
