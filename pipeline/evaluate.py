"""What TFMA measures on the exported model, and how its results are read.

Evaluator feeds the model's own `serving_default` signature and takes the label through its
`transform_features`: what is measured is what will be served. No thresholds stand here: the
final gate (`components/blessing_gate.py`) decides, once.

Where the time goes (10,000 images of 32 x 32, 2 cores): TFMA takes each image apart and hands it
to each metric by itself, and its Keras metrics are traced anew for every batch that they gather;
together that is three times what the model takes. Here a batch stays a batch up to the one
combiner, in NumPy, and only the columns that are needed are carried along.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.extractors.predictions_extractor import (
    PREDICTIONS_EXTRACTOR_STAGE_NAME,
)
from tensorflow_model_analysis.extractors.unbatch_extractor import UNBATCH_EXTRACTOR_STAGE_NAME
from tensorflow_model_analysis.metrics import metric_types
from tensorflow_model_analysis.metrics.multi_class_confusion_matrix_metrics import (
    MULTI_CLASS_CONFUSION_MATRICES,
    Matrices,
    MatrixEntryKey,
)
from tensorflow_model_analysis.metrics.multi_class_confusion_matrix_plot import (
    MULTI_CLASS_CONFUSION_MATRIX_PLOT_NAME,
)

from pipeline import features
from pipeline.config import Evaluate
from pipeline.errors import SafelightError
from pipeline.measured import Measured

ACCURACY = "accuracy"
TOP_K_ACCURACY = "top_k_accuracy"
CROSS_ENTROPY = "cross_entropy"
EXAMPLE_COUNT = "example_count"

# As in Keras: a probability of 0 for the truth costs -log of this.
_EPSILON = 1e-7


def eval_config(options: Evaluate, code: str = "") -> tfma.EvalConfig:
    """Returns what Evaluator is to measure; the classes need not be known.

    Args:
      options: the configuration's section; only `top_k` matters here.
      code: fingerprint of this module's sources: part of Evaluator's cache key.
    """
    metric = tfma.MetricConfig(
        class_name=ClassificationMetrics.__name__,
        module=__name__,
        config=json.dumps({"top_k": options.top_k, "code": code}),
    )
    return tfma.EvalConfig(
        model_specs=[
            tfma.ModelSpec(
                signature_name=features.SERVING_SIGNATURE,
                preprocessing_function_names=[features.TRANSFORM_SIGNATURE],
                label_key=features.LABEL_ID,
                prediction_key=features.OUT_PROBABILITIES,
            )
        ],
        slicing_specs=[tfma.SlicingSpec()],
        metrics_specs=[tfma.MetricsSpec(metrics=[metric])],
    )


def custom_extractors(
    eval_shared_model: Any, eval_config: tfma.EvalConfig, tensor_adapter_config: Any
) -> list[Any]:
    """Returns TFMA's extractors, without the one that takes batches apart.

    Evaluator finds this function by its name (module_path="pipeline.evaluate").
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
    """Returns what Evaluator wrote.

    Raises:
      SafelightError: there are no results, or not those that `eval_config` asks for.
    """
    metrics = _overall_metrics(evaluation_uri)
    wanted = (ACCURACY, TOP_K_ACCURACY, CROSS_ENTROPY, EXAMPLE_COUNT)
    missing = [name for name in wanted if name not in metrics]
    matrices = [
        plot.value.multi_class_confusion_matrix_at_thresholds.matrices
        for plots in tfma.load_plots(evaluation_uri)
        for plot in plots.plot_keys_and_values
    ]
    if missing or len(matrices) != 1:
        raise SafelightError(
            f"The evaluation at {evaluation_uri} is not whole: expected {', '.join(wanted)} and a "
            f"confusion matrix; missing: {', '.join(missing) or 'the matrix'}. Remove it and run "
            "again."
        )
    if not metrics[EXAMPLE_COUNT]:
        raise SafelightError(
            f"The evaluation at {evaluation_uri} saw no images; expected those of the split "
            f"{features.TEST!r}. Give the data more images, or that split a larger share of them."
        )
    return Measured(
        examples=round(metrics[EXAMPLE_COUNT]),
        accuracy=metrics[ACCURACY],
        top_k_accuracy=metrics[TOP_K_ACCURACY],
        cross_entropy=metrics[CROSS_ENTROPY],
        confusion={
            (entry.actual_class_id, entry.predicted_class_id): round(entry.num_weighted_examples)
            for entry in matrices[0][0].entries
        },
    )


def _overall_metrics(evaluation_uri: str) -> dict[str, float]:
    if not Path(evaluation_uri).is_dir():
        raise SafelightError(f"There is no evaluation at {evaluation_uri}. Run again.")
    return {
        metric.key.name: metric.value.double_value.value
        for record in tfma.load_metrics(evaluation_uri)
        if not record.slice_key.single_slice_keys
        for metric in record.metric_keys_and_values
    }


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
    """Drops the images and all that the model said but the probabilities."""
    said = extracts[tfma.PREDICTIONS_KEY]
    return {
        tfma.LABELS_KEY: extracts[tfma.LABELS_KEY],
        tfma.PREDICTIONS_KEY: {features.OUT_PROBABILITIES: said[features.OUT_PROBABILITIES]},
        tfma.FEATURES_KEY: {},
    }


class ClassificationMetrics(metric_types.Metric):
    """Accuracy, top-k accuracy, cross-entropy, the number of images and the confusion matrix.

    Its elements are batches: labels int64 [batch] and probabilities float32 [batch, classes].
    """

    def __init__(self, top_k: int = 3, code: str = "", name: str = "classification") -> None:
        super().__init__(_computations, top_k=top_k, code=code, name=name)


def _computations(top_k: int, code: str, name: str) -> list[Any]:
    del code, name  # they are there for the cache key and for TFMA
    keys = [
        metric_types.MetricKey(name=metric)
        for metric in (
            ACCURACY,
            TOP_K_ACCURACY,
            CROSS_ENTROPY,
            EXAMPLE_COUNT,
            MULTI_CLASS_CONFUSION_MATRICES,
        )
    ]
    plot = metric_types.PlotKey(name=MULTI_CLASS_CONFUSION_MATRIX_PLOT_NAME)
    sums = metric_types.MetricComputation(
        keys=keys, preprocessors=None, combiner=_Combiner(keys, top_k)
    )
    matrix = metric_types.DerivedMetricComputation(
        keys=[plot],
        result=lambda metrics: {
            plot: metrics[keys[-1]].to_proto().multi_class_confusion_matrix_at_thresholds
        },
    )
    return [sums, matrix]


@dataclass
class _Sums:
    """What is added up: right, right within the first k, -log(probability), images; pairs."""

    totals: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(4))
    pairs: Counter[tuple[int, int]] = field(default_factory=Counter)


class _Combiner(beam.CombineFn):
    """Adds batches up."""

    def __init__(self, keys: list[Any], top_k: int) -> None:
        self._keys = keys
        self._top_k = top_k

    def create_accumulator(self) -> _Sums:
        return _Sums()

    def add_input(self, sums: _Sums, element: Any) -> _Sums:
        labels = np.asarray(element.labels, np.int64).reshape(-1)
        # Without `custom_extractors` an element is a single image.
        given = np.atleast_2d(element.predictions[features.OUT_PROBABILITIES])
        probabilities = given.astype(np.float64)
        predicted = probabilities.argmax(axis=1)
        sums.totals += measure(labels, probabilities, self._top_k)
        sums.pairs.update(zip(labels.tolist(), predicted.tolist(), strict=True))
        return sums

    def merge_accumulators(self, accumulators: Iterable[_Sums]) -> _Sums:
        merged = _Sums()
        for sums in accumulators:
            merged.totals += sums.totals
            merged.pairs.update(sums.pairs)
        return merged

    def extract_output(self, sums: _Sums) -> dict[Any, Any]:
        images = float(sums.totals[3])
        means = sums.totals[:3] / images if images else np.full(3, np.nan)
        matrices = Matrices({0.0: {MatrixEntryKey(*pair): n for pair, n in sums.pairs.items()}})
        return dict(zip(self._keys, [*map(float, means), images, matrices], strict=True))


def measure(
    labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64], top_k: int
) -> npt.NDArray[np.float64]:
    """Returns float64 [4]: images right, right within the first k, sum of -log(p), images.

    Classes are ranked as argmax ranks them: of equals the first wins. An image whose label is
    unknown (-1) or whose probabilities are not numbers is never right.

    Args:
      labels: int64 [batch].
      probabilities: float64 [batch, classes].
      top_k: k.
    """
    rows, width = probabilities.shape
    usable = (labels >= 0) & (labels < width) & np.isfinite(probabilities).all(axis=1)
    truth = np.where(usable, labels, 0)
    share = np.where(usable, probabilities[np.arange(rows), truth], 0.0)
    first = np.arange(width) < truth[:, None]
    ahead = (probabilities > share[:, None]) | (first & (probabilities == share[:, None]))
    rank = np.where(usable, ahead.sum(axis=1), width + top_k)
    loss = -np.log(np.clip(share, _EPSILON, 1 - _EPSILON))
    return np.array([np.sum(rank == 0), np.sum(rank < top_k), loss.sum(), rows], np.float64)
