"""TFMA on a real export: what Evaluator measures is what NumPy and the Keras definitions say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline import combiners, evaluate
from pipeline.config import Evaluate
from pipeline.errors import SafelightError
from tests import exports

COUNTS = {"blue": 9, "green": 7, "red": 6, "white": 5}


def run_evaluator(examples, model, target, top_k=3, heads=()):
    """Runs TFX's Evaluator as the graph configures it; returns the evaluation's URI."""
    from tfx.components.evaluator.executor import Executor
    from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
    from tfx.types import standard_artifacts
    from tfx.utils import proto_utils

    data = standard_artifacts.Examples()
    data.uri, data.split_names = str(examples), '["test"]'
    trained = standard_artifacts.Model()
    trained.uri = str(model)
    evaluation, blessing = standard_artifacts.ModelEvaluation(), standard_artifacts.ModelBlessing()
    evaluation.uri, blessing.uri = str(target), str(target) + "-blessing"
    # An image by name keeps TFX from packing itself up for remote workers (2 s).
    args = [
        "--runner=DirectRunner",
        "--direct_running_mode=in_memory",
        "--sdk_container_image=none",
    ]
    context = BaseBeamExecutor.Context(beam_pipeline_args=args)
    Executor(context).Do(
        {"examples": [data], "model": [trained]},
        {"evaluation": [evaluation], "blessing": [blessing]},
        {
            "eval_config": proto_utils.proto_to_json(
                evaluate.eval_config(Evaluate(top_k=top_k), heads=heads)
            ),
            "example_splits": '["test"]',
            "module_path": "pipeline.evaluate",
        },
    )
    # Only the final gate blesses.
    assert not blessing.has_custom_property("blessed")
    return str(target)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The evaluation of a model that takes red for blue, and what its own answers say."""
    from pipeline.predictions import Export, answer_split

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


def test_no_thresholds_and_no_classes():
    config = evaluate.eval_config(Evaluate(top_k=5), code="abc")
    [spec] = config.metrics_specs
    assert not spec.thresholds
    assert all(not metric.HasField("threshold") for metric in spec.metrics)
    assert '"top_k": 5' in spec.metrics[0].config and '"abc"' in spec.metrics[0].config


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
