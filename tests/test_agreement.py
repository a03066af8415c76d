"""The export beside training's own way: the same answers, or no blessing."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline import export, features, heads, models
from pipeline.blessing import agreement, calibration, differences, verdict
from pipeline.config import Train
from pipeline.evaluator import predictions
from pipeline.features import PIXELS
from pipeline.records import Input
from tests import graphs

SIZE = 16
EACH = 6
NAMES = [(name, number) for number in range(EACH) for name in graphs.CLASSES]
RECORDS = [graphs.example(name, number, SIZE) for name, number in NAMES]


class SwappedChannels(Input):
    """A preprocessing that the serving signatures do otherwise than training."""

    def apply(self, inputs: Any) -> dict[str, tf.Tensor]:
        out = super().apply(inputs)
        return {**out, PIXELS: tf.reverse(out[PIXELS], axis=[-1])}


def save(path: Path, source: Input, **calibrated: float) -> Path:
    """Exports a network that tells the colours apart, however little it was trained."""
    keras.utils.set_random_seed(3)
    train = Train(preset="mnist-cnn-small")
    answers = heads.of(train, graphs.CLASSES)
    model = models.build(train, image_size=SIZE, channels=3, heads=answers)
    model.compile("adam", "sparse_categorical_crossentropy")
    plain = Input(graphs.transform_graph(SIZE, 3), SIZE, 3)
    pixels = plain.transform(tf.constant(RECORDS))[0]
    model.fit(pixels, np.arange(len(RECORDS)) % len(graphs.CLASSES), epochs=20, verbose=0)
    facts = export.model_facts(
        model,
        train=train,
        heads=answers,
        resize="stretch",
        normalize="unit",
        calibrated=calibration.Fitted(**calibrated),
    )
    images = [graphs.encoded("red", 0, SIZE)]
    export.export(model, source, facts, images, path)
    return path


@pytest.fixture(scope="module")
def source() -> Input:
    return Input(graphs.transform_graph(SIZE, 3), SIZE, 3)


@pytest.fixture(scope="module")
def healthy(source: Input, tmp_path_factory: pytest.TempPathFactory) -> Path:
    # With a temperature: training's way has to know of it.
    return save(tmp_path_factory.mktemp("healthy") / "model", source, temperature=0.7)


def said_by(model_dir: Path) -> predictions.Predictions:
    """Returns what an export answers about RECORDS, as Predictor writes it down."""
    served = predictions.Export(model_dir)
    answer = served.serve_examples(RECORDS)
    return predictions.Predictions(
        model=served.fingerprint,
        version=None,
        classes=served.classes,
        ids=[f"{name}/{number}".encode() for name, number in NAMES],
        labels=[name for name, _ in NAMES],
        predicted=answer.labels,
        probabilities=answer.probabilities,
    )


@pytest.fixture(scope="module")
def expected(healthy: Path) -> predictions.Predictions:
    return said_by(healthy)


def check(
    model_dir: Path, expected: predictions.Predictions, tolerance: float = 1e-3
) -> dict[str, Any]:
    rows = list(range(0, len(RECORDS), 2))
    records = [RECORDS[row] for row in rows]
    graph = graphs.transform_graph(SIZE, 3)
    return agreement.check(model_dir, graph, records, expected, rows, tolerance)


def test_what_is_served_is_what_was_trained(
    healthy: Path, expected: predictions.Predictions
) -> None:
    assert expected.correct().mean() > 0.9
    report = check(healthy, expected)
    assert report["passed"], report["message"]
    assert report.keys() == {
        "images", "label_mismatches", "max_difference", "tolerance", "passed", "message",
    }  # fmt: skip
    assert report["images"] == len(RECORDS) // 2
    assert report["label_mismatches"] == 0 and report["max_difference"] < 1e-4
    [one] = verdict._agreement({"agreement": report})
    assert one.passed and one.name == "trained_is_served"
    assert verdict._agreement({"agreement": None}) == []


def test_swapped_channels_in_both_signatures(source: Input, tmp_path: Path) -> None:
    """Predictor and the clean process agree with each other, and both are wrong."""
    swapped = SwappedChannels(graphs.transform_graph(SIZE, 3), SIZE, 3)
    model_dir = save(tmp_path / "model", swapped)
    report = check(model_dir, said_by(model_dir))
    assert not report["passed"] and report["label_mismatches"] > 0
    assert "not what was trained" in report["message"]
    assert not verdict._agreement({"agreement": report})[0].passed


def test_a_temperature_that_is_not_the_served_one(
    healthy: Path, expected: predictions.Predictions, tmp_path: Path
) -> None:
    other = shutil.copytree(healthy, tmp_path / "model")
    facts = other / "assets.extra" / features.MODEL_FACTS
    facts.write_text(facts.read_text().replace('"temperature": 0.7', '"temperature": 0.9'))
    report = check(other, expected)
    assert not report["passed"] and report["label_mismatches"] == 0
    assert "serving.agreement_tolerance" in report["message"]


def damaged(healthy: Path, target: Path) -> tuple[Path, Path]:
    """Returns a copy of the export, and the file of its weights."""
    copy = shutil.copytree(healthy, target)
    return copy, copy / "assets.extra" / features.WEIGHTS


def test_weights_that_are_cut_short(
    healthy: Path, expected: predictions.Predictions, tmp_path: Path
) -> None:
    other, weights = damaged(healthy, tmp_path / "model")
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    report = check(other, expected)
    assert not report["passed"] and report["max_difference"] is None
    assert "can't be built again" in report["message"]


def test_weights_that_are_others(
    healthy: Path, expected: predictions.Predictions, tmp_path: Path
) -> None:
    other, weights = damaged(healthy, tmp_path / "model")

    def spoil(name: str, found: object) -> None:
        if isinstance(found, h5py.Dataset) and found.ndim > 1:
            found[...] = -found[...]

    with h5py.File(weights, "r+") as file:
        file.visititems(spoil)
    report = check(other, expected)
    assert not report["passed"] and report["max_difference"] > 0.01


def test_a_near_tie_may_fall_either_way() -> None:
    columns = differences.Classes(
        ("a", "b"), ["a", "a"], ["a", "a"], np.array([[0.5002, 0.4998], [0.9, 0.1]], np.float32)
    )
    tie = {"probabilities": [[0.4999, 0.5001], [0.9, 0.1]]}
    assert differences.differ(columns, [0, 1], tie, tie=1e-3).wrong == frozenset()
    sure = {"probabilities": [[0.4, 0.6], [0.9, 0.1]]}
    assert differences.differ(columns, [0, 1], sure, tie=1e-3).wrong == {0}
    nothing = {"probabilities": [[np.nan, np.nan], [0.9, 0.1]]}
    found = differences.differ(columns, [0, 1], nothing, tie=1e-3)
    assert found.wrong == {0} and found.most == 1
    with pytest.raises(ValueError, match="shape"):
        differences.differ(columns, [0, 1], {"probabilities": [[0.4, 0.6]]}, tie=1e-3)


def test_other_classes_are_other_answers(expected: predictions.Predictions) -> None:
    renamed = replace(expected, predicted=["purple"] * len(expected.predicted))
    label = differences.by_head(renamed)["label"]
    found = differences.differ(label, [0], {"probabilities": expected.probabilities[:1]}, tie=0.1)
    assert found.wrong == {0}
