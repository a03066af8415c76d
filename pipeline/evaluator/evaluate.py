"""What TFMA measures on the exported model, and how its results are read.

Evaluator feeds the model's own `serving_default` signature and takes the label through its
`transform_features`: what is measured is what will be served.

The floors that TFMA can hold stand in its configuration, so that its own validation result is
there to read. It compares point estimates: the final gate (`components/blessing_gate.py`) holds the
same floors to confidence bounds and decides, once. A recall that must be *shown* to be too low has
no threshold here: TFMA would turn away what the gate lets pass.

Where the time goes (10,000 images of 32 x 32, 2 cores): TFMA takes each image apart and hands it
to each metric by itself, and its Keras metrics are traced anew for every batch that they gather;
together that is three times what the model takes. Here a batch stays a batch up to the one
combiner a head, in NumPy, and only the columns that are needed are carried along.

With heads beside the label the model is one of several outputs to TFMA: labels and predictions are
dicts by the heads' names, and every metric has its head's name as `output_name`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.extractors.predictions_extractor import (
    PREDICTIONS_EXTRACTOR_STAGE_NAME,
)
from tensorflow_model_analysis.extractors.unbatch_extractor import UNBATCH_EXTRACTOR_STAGE_NAME
from tensorflow_model_analysis.metrics import metric_types
from tensorflow_model_analysis.metrics.multi_class_confusion_matrix_metrics import (
    MULTI_CLASS_CONFUSION_MATRICES,
)
from tensorflow_model_analysis.metrics.multi_class_confusion_matrix_plot import (
    MULTI_CLASS_CONFUSION_MATRIX_PLOT_NAME,
)

from pipeline import features
from pipeline.blessing.measured import Measured, MeasuredValues
from pipeline.config import Evaluate
from pipeline.config.judging import HeadFloors
from pipeline.errors import SafelightError
from pipeline.evaluator.combiners import ClassCombiner, ValueCombiner
from pipeline.heads import LABEL, Head

ACCURACY = "accuracy"
TOP_K_ACCURACY = "top_k_accuracy"
CROSS_ENTROPY = "cross_entropy"
EXAMPLE_COUNT = "example_count"
# Accuracy less its default floor, which the data decides.
OVER_GUESSING = "accuracy_over_guessing"
MAE = "mae"
RMSE = "rmse"
R2 = "r2"


def eval_config(options: Evaluate, code: str = "", heads: Sequence[Head] = ()) -> tfma.EvalConfig:
    """Returns what Evaluator is to measure; the classes need not be known.

    Args:
      options: the configuration's section: `top_k`, and the floors that TFMA holds.
      code: fingerprint of this module's sources: part of Evaluator's cache key.
      heads: those beside the label.
    """
    classes = json.dumps({"top_k": options.top_k, "code": code})
    values = json.dumps({"code": code})
    label = Head(name=LABEL if heads else "", kind="class")
    specs = []
    for head in (label, *heads):
        own: HeadFloors = options.heads.get(head.name, {})
        if head.kind == "class":
            floor = options.min_accuracy if head is label else own.get("min_accuracy")
            specs.append(_metrics(ClassificationMetrics.__name__, classes, head, _least(floor)))
        else:
            most = _most(own.get("max_mae"))
            specs.append(_metrics(RegressionMetrics.__name__, values, head, most))
    targets = {LABEL: features.LABEL_ID, **{head.name: head.target for head in heads}}
    return tfma.EvalConfig(
        model_specs=[
            tfma.ModelSpec(
                signature_name=features.SERVING_SIGNATURE,
                preprocessing_function_names=[features.TRANSFORM_SIGNATURE],
                label_key=None if heads else features.LABEL_ID,
                label_keys=targets if heads else None,
                prediction_key=None if heads else features.OUT_PROBABILITIES,
            )
        ],
        slicing_specs=[tfma.SlicingSpec()],
        metrics_specs=specs,
    )


def _metrics(
    name: str, config: str, head: Head, thresholds: Mapping[str, tfma.MetricThreshold]
) -> tfma.MetricsSpec:
    metric = tfma.MetricConfig(class_name=name, module=__name__, config=config)
    outputs = [head.name] if head.name else []
    return tfma.MetricsSpec(metrics=[metric], output_names=outputs, thresholds=thresholds)


def _least(accuracy: float | None) -> dict[str, tfma.MetricThreshold]:
    name, least = (OVER_GUESSING, 0.0) if accuracy is None else (ACCURACY, accuracy)
    bound = tfma.GenericValueThreshold(lower_bound={"value": least})
    return {name: tfma.MetricThreshold(value_threshold=bound)}


def _most(mae: float | None) -> dict[str, tfma.MetricThreshold]:
    if mae is None:
        return {}
    bound = tfma.GenericValueThreshold(upper_bound={"value": mae})
    return {MAE: tfma.MetricThreshold(value_threshold=bound)}


def custom_extractors(
    eval_shared_model: Any, eval_config: tfma.EvalConfig, tensor_adapter_config: Any
) -> list[Any]:
    """Returns TFMA's extractors, without the one that takes batches apart.

    Evaluator finds this function by its name (module_path="pipeline.evaluator.evaluate").
    """
    extractors = [
        extractor
        for extractor in tfma.default_extractors(
            eval_shared_model=eval_shared_model,
            eval_config=eval_config,
            tensor_adapter_config=tensor_adapter_config,
        )
        if extractor.stage_name != UNBATCH_EXTRACTOR_STAGE_NAME
    ]
    names = [extractor.stage_name for extractor in extractors]
    keep_images = tfma.extractors.Extractor("KeepImages", beam.Map(_keep_images))
    keep_outputs = tfma.extractors.Extractor("KeepOutputs", beam.Map(_keep_outputs))
    extractors.insert(names.index(PREDICTIONS_EXTRACTOR_STAGE_NAME) + 1, keep_outputs)
    return [keep_images, *extractors]


def read_metrics(evaluation_uri: str) -> Measured:
    """Returns what Evaluator wrote of the label, with the other heads' results in `heads`.

    Raises:
      SafelightError: there are no results, or not those that `eval_config` asks for.
    """
    metrics = _overall_metrics(evaluation_uri)
    matrices: dict[str, Any] = {
        plot.key.output_name: plot.value.multi_class_confusion_matrix_at_thresholds.matrices
        for plots in tfma.load_plots(evaluation_uri)
        for plot in plots.plot_keys_and_values
    }
    # With one head alone, outputs have no name.
    label = LABEL if LABEL in metrics else ""
    found = {
        name: (
            _values(evaluation_uri, of_head)
            if MAE in of_head
            else _classes(evaluation_uri, of_head, matrices.get(name, ()))
        )
        for name, of_head in {label: {}, **metrics}.items()
    }
    whole = found.pop(label)
    assert isinstance(whole, Measured)
    return replace(whole, heads=found, missed=_missed(evaluation_uri))


def _missed(evaluation_uri: str) -> tuple[str, ...] | None:
    """Returns the thresholds that TFMA found missed; None where it left no validation result."""
    if not list(Path(evaluation_uri).glob(f"{tfma.constants.VALIDATIONS_KEY}*")):
        return None
    result = tfma.load_validation_result(evaluation_uri)
    missed = tuple(
        _in_words(failure)
        for of_slice in result.metric_validations_per_slice
        for failure in of_slice.failures
    )
    return missed if result.validation_ok or missed else ("no metric was validated",)


def _in_words(failure: Any) -> str:
    threshold, key = failure.metric_threshold.value_threshold, failure.metric_key
    name = key.name + (f" of {key.output_name}" if key.output_name else "")
    asked = (
        f"at least {threshold.lower_bound.value:.4g}"
        if threshold.HasField("lower_bound")
        else f"at most {threshold.upper_bound.value:.4g}"
    )
    if not failure.HasField("metric_value"):
        return f"{name} was not measured, asked {asked}"
    return f"{name} is {failure.metric_value.double_value.value:.4g}, asked {asked}"


def _classes(evaluation_uri: str, metrics: dict[str, float], matrices: Any) -> Measured:
    wanted = (ACCURACY, TOP_K_ACCURACY, CROSS_ENTROPY, EXAMPLE_COUNT)
    _check_whole(evaluation_uri, metrics, wanted, "the matrix" if len(matrices) != 1 else "")
    return Measured(
        examples=round(metrics[EXAMPLE_COUNT]),
        accuracy=metrics[ACCURACY],
        top_k_accuracy=metrics[TOP_K_ACCURACY],
        cross_entropy=metrics[CROSS_ENTROPY],
        confusion={
            (entry.actual_class_id, entry.predicted_class_id): round(entry.num_weighted_examples)
            for entry in matrices[0].entries
        },
    )


def _values(evaluation_uri: str, metrics: dict[str, float]) -> MeasuredValues:
    _check_whole(evaluation_uri, metrics, (MAE, RMSE, R2, EXAMPLE_COUNT))
    return MeasuredValues(
        examples=round(metrics[EXAMPLE_COUNT]), mae=metrics[MAE], rmse=metrics[RMSE], r2=metrics[R2]
    )


def _check_whole(
    evaluation_uri: str, metrics: dict[str, float], wanted: Sequence[str], more: str = ""
) -> None:
    missing = [name for name in wanted if name not in metrics]
    if missing or more:
        raise SafelightError(
            f"The evaluation at {evaluation_uri} is not whole: expected {', '.join(wanted)} and a "
            f"confusion matrix of each class head; missing: {', '.join(missing) or more}. Remove "
            "it and run again."
        )
    if not metrics[EXAMPLE_COUNT]:
        raise SafelightError(
            f"The evaluation at {evaluation_uri} saw no images; expected those of the split "
            f"{features.TEST!r}. Give the data more images, or that split a larger share of them."
        )


def _overall_metrics(evaluation_uri: str) -> dict[str, dict[str, float]]:
    """Returns {output name: {metric: value}} over all images."""
    if not Path(evaluation_uri).is_dir():
        raise SafelightError(f"There is no evaluation at {evaluation_uri}. Run again.")
    found: dict[str, dict[str, float]] = {}
    for record in tfma.load_metrics(evaluation_uri):
        if not record.slice_key.single_slice_keys:
            for metric in record.metric_keys_and_values:
                of_head = found.setdefault(metric.key.output_name, {})
                of_head[metric.key.name] = metric.value.double_value.value
    return found


def _keep_images(extracts: dict[str, Any]) -> dict[str, Any]:
    """Drops all columns but the image and the serialized example; facts are for StatisticsGen.

    The serialized example is also a feature by the name of `transform_features`'s input: TFMA then
    feeds it by name. Otherwise it feeds it by position, which signatures refuse at the price of an
    error message with the whole batch in it, before TensorFlow tries another way.
    """
    batch: pa.RecordBatch = extracts[tfma.ARROW_RECORD_BATCH_KEY]
    image, example = batch.column(features.IMAGE), batch.column(tfma.ARROW_INPUT_COLUMN)
    columns = {features.IMAGE: image, "examples": example, tfma.ARROW_INPUT_COLUMN: example}
    kept = pa.RecordBatch.from_arrays(list(columns.values()), list(columns))
    return {**extracts, tfma.ARROW_RECORD_BATCH_KEY: kept}


def _keep_outputs(extracts: dict[str, Any]) -> dict[str, Any]:
    """Drops the images and all that the model said but probabilities and values."""
    said, labels = extracts[tfma.PREDICTIONS_KEY], extracts[tfma.LABELS_KEY]
    if isinstance(labels, Mapping):
        kept = {name: said[_output(name, said)] for name in labels}
    else:
        kept = {features.OUT_PROBABILITIES: said[features.OUT_PROBABILITIES]}
    return {tfma.LABELS_KEY: labels, tfma.PREDICTIONS_KEY: kept, tfma.FEATURES_KEY: {}}


def _output(name: str, said: Mapping[str, Any]) -> str:
    """Returns the output of a head that its metrics are about."""
    if name == LABEL:
        return features.OUT_PROBABILITIES
    probabilities = Head(name=name, kind="class").probabilities
    return probabilities if probabilities in said else name


class ClassificationMetrics(metric_types.Metric):
    """Accuracy, top-k accuracy, cross-entropy, the number of images and the confusion matrix.

    Its elements are batches: labels int64 [batch] and probabilities float32 [batch, classes]; with
    several heads, dicts of them.
    """

    def __init__(self, top_k: int = 3, code: str = "", name: str = "classification") -> None:
        super().__init__(_computations, top_k=top_k, code=code, name=name)


def _key(metric: str, output: str) -> metric_types.MetricKey:
    """Returns TFMA's key; a threshold finds it only where nothing is said about weights."""
    return metric_types.MetricKey(name=metric, output_name=output, example_weighted=None)


def _computations(top_k: int, code: str, name: str, output_names: Sequence[str]) -> list[Any]:
    del code, name  # they are there for the cache key and for TFMA
    return [each for output in output_names for each in _of_classes(top_k, output)]


def _of_classes(top_k: int, output: str) -> list[Any]:
    keys = [
        _key(metric, output)
        for metric in (
            ACCURACY,
            TOP_K_ACCURACY,
            CROSS_ENTROPY,
            EXAMPLE_COUNT,
            OVER_GUESSING,
            MULTI_CLASS_CONFUSION_MATRICES,
        )
    ]
    plot = metric_types.PlotKey(name=MULTI_CLASS_CONFUSION_MATRIX_PLOT_NAME, output_name=output)
    sums = metric_types.MetricComputation(
        keys=keys, preprocessors=None, combiner=ClassCombiner(keys, top_k, output)
    )
    matrix = metric_types.DerivedMetricComputation(
        keys=[plot],
        result=lambda metrics: {
            plot: metrics[keys[-1]].to_proto().multi_class_confusion_matrix_at_thresholds
        },
    )
    return [sums, matrix]


class RegressionMetrics(metric_types.Metric):
    """Mean absolute error, root mean squared error, R² and the number of images.

    Its elements are batches: dicts of targets and of values, float32 [batch].
    """

    def __init__(self, code: str = "", name: str = "regression") -> None:
        super().__init__(_of_values, code=code, name=name)


def _of_values(code: str, name: str, output_names: Sequence[str]) -> list[Any]:
    del code, name
    computations = []
    for output in output_names:
        keys = [_key(metric, output) for metric in (MAE, RMSE, R2, EXAMPLE_COUNT)]
        combiner = ValueCombiner(keys, output)
        computations.append(
            metric_types.MetricComputation(keys=keys, preprocessors=None, combiner=combiner)
        )
    return computations
