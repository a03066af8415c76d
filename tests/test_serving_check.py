"""The serving check against healthy and sabotaged exports, in real child processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tfx.types.standard_artifacts import Examples, Model, TransformGraph

from components import artifacts, explainer
from components.predictor import Predictor
from components.serving_check import ServingCheck, _find, compare, pick
from pipeline.blessing import budgets, serving_child
from pipeline.config import Serving
from pipeline.errors import SafelightError
from pipeline.evaluator import predictions
from tests import exports

COUNTS = {"blue": 12, "green": 3, "red": 12, "white": 1}


class Made:
    """Examples, an export and its predictions below one folder."""

    def __init__(self, root: Path, **behaviour: Any) -> None:
        self.root = root
        self.export = root / "model" / "Format-Serving"
        self.examples = exports.artifact(
            Examples, exports.write_examples(root / "examples", COUNTS), split_names='["test"]'
        )
        exports.save_model(self.export, **behaviour)
        self.model = exports.artifact(Model, root / "model")
        self.predictions = exports.artifact(artifacts.Predictions, root / "predictions")
        self.champion_predictions = exports.artifact(artifacts.Predictions, root / "champion")

    def predict(self, champion: str = "") -> None:
        Predictor.test_call(
            examples=self.examples,
            model=self.model,
            predictions=self.predictions,
            champion_predictions=self.champion_predictions,
            champion=champion,
            code="",
        )

    def check(self, champion: str = "", **options: Any) -> dict:
        # The colour model has no Keras network: training's way is tested in test_agreement.py.
        options = {"agreement_images": 0, **options}
        target = exports.artifact(artifacts.ServingCheck, self.root / "check")
        ServingCheck.test_call(
            examples=self.examples,
            model=self.model,
            predictions=self.predictions,
            transform_graph=exports.artifact(TransformGraph, self.root / "graph"),
            serving_check=target,
            options=Serving(**options).model_dump_json(),
            code="",
            champion=champion,
        )
        return json.loads((self.root / "check" / "serving_check.json").read_text())


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    made = Made(tmp_path_factory.mktemp("healthy"))
    made.predict()
    return made


def test_healthy_export(healthy):
    report = healthy.check(check_images=10)
    assert report.keys() == {
        "passed", "images", "label_mismatches", "max_difference", "tolerance", "load_seconds",
        "message", "agreement", "latency",
    }  # fmt: skip
    assert report["passed"] and report["label_mismatches"] == 0
    assert report["images"] == 10
    assert 0 <= report["max_difference"] <= report["tolerance"]
    assert report["load_seconds"] > 0
    assert report["agreement"] is None
    assert report["latency"]["batches"] == {}
    assert report["latency"]["size_bytes"] > (healthy.export / "saved_model.pb").stat().st_size


@pytest.mark.parametrize("size", [(3, 1), (7100, 7100)])
def test_whatever_size_ingest_took_is_served(tmp_path, size):
    file = tmp_path / "image.png"
    Image.new("L", size).save(file)
    assert serving_child._prepared([str(file)]) == [file.read_bytes()]


def test_timed_beside_the_champion(healthy, tmp_path):
    champion = exports.save_model(tmp_path / "4")
    report = healthy.check(
        check_images=4, latency_requests=12, max_latency_ratio=50.0, champion=str(champion)
    )
    assert report["passed"]
    found = report["latency"]
    assert found["batches"].keys() == {"1", "32"}
    for one in found["batches"].values():
        assert 0 < one["p50_ms"] <= one["p95_ms"]
        low, high = one["ratio_interval"]
        assert low <= one["ratio"] <= high
        assert one["champion"].keys() == {"p50_ms", "p95_ms", "images_per_second"}
    # The same graph: as large, and about as fast.
    assert found["champion_size_bytes"] == pytest.approx(found["size_bytes"], rel=0.02)
    checks, told = budgets.judge(report)
    assert [(check.name, check.passed) for check in checks] == [("latency", True)]
    assert told == {"latency": found}


def test_images_of_one_name_are_told_apart(tmp_path):
    made = Made(tmp_path)
    # More files of the names that are there, as another folder brings them, and other pictures.
    for number, label in enumerate(("blue", "red"), 2):
        path = tmp_path / "examples" / "Split-test" / f"data_tfrecord-{number:05d}-of-00004"
        example = tf.train.Example.FromString(exports._example(label, 700 + number, "test"))
        name = f"test/{label}/00000.png".encode()
        example.features.feature["id"].bytes_list.value[0] = name
        with tf.io.TFRecordWriter(str(path)) as writer:
            writer.write(example.SerializeToString())
    made.predict()
    expected = predictions.read(Path(made.predictions.uri))
    assert expected is not None and len(set(expected.ids)) == len(expected.ids) - 2
    report = made.check(check_images=1000)
    assert report["passed"], report["message"]
    assert report["images"] == 30


def test_an_image_is_explained_from_its_place_where_two_have_one_name(tmp_path):
    (tmp_path / "Split-test").mkdir()
    for number, label in enumerate(("blue", "red", "green")):
        example = tf.train.Example.FromString(exports._example(label, 1, "test"))
        example.features.feature["id"].bytes_list.value[0] = b"golden/1.png"
        name = str(tmp_path / "Split-test" / f"data_tfrecord-{number:05d}-of-00003")
        with tf.io.TFRecordWriter(name) as writer:
            writer.write(example.SerializeToString())
    found = explainer._stored(str(tmp_path), {1: b"golden/1.png", 2: b"golden/1.png"})
    assert found == {1: exports.encoded("red", 1), 2: exports.encoded("green", 1)}
    with pytest.raises(SafelightError, match="other.png stand in the predictions"):
        explainer._stored(str(tmp_path), {1: b"other.png"})


def test_answers_about_other_examples_are_refused(healthy, tmp_path):
    expected = predictions.read(Path(healthy.predictions.uri))
    assert expected is not None
    other = exports.write_examples(tmp_path, {"blue": 12, "green": 15, "red": 1})
    with pytest.raises(SafelightError, match="stand in the predictions and not in the examples"):
        _find(str(other), expected.ids, range(len(expected.ids)))


@pytest.mark.slow
def test_a_champion_that_can_not_be_timed_is_told_of(healthy, tmp_path):
    champion = exports.save_model(tmp_path / "4")
    (champion / "saved_model.pb").write_bytes(b"\x00" * 10)
    report = healthy.check(
        check_images=4, latency_requests=10, max_latency_ratio=2.0, champion=str(champion)
    )
    assert report["passed"]
    assert report["latency"]["batches"]["1"]["ratio"] is None
    [check], _ = budgets.judge(report)
    assert not check.passed and "can't be loaded" in check.message


def test_unknown_is_compared_too(healthy):
    expected = predictions.read(Path(healthy.predictions.uri))
    assert expected is not None
    rows = list(range(4))
    limit = float(np.median(expected.probabilities.max(axis=1)))
    answered = expected.probabilities.max(axis=1) >= limit
    expected = replace(expected, threshold=limit, answered=answered)
    said = {
        "labels": [expected.predicted[row] for row in rows],
        "probabilities": expected.probabilities[rows].tolist(),
        "answered": answered[rows].tolist(),
        "heads": {},
    }
    assert compare(expected, rows, {"served": said, "examples": said}, 1e-4)["passed"]
    silent = {**said, "answered": [not one for one in said["answered"]]}
    report = compare(expected, rows, {"served": silent, "examples": said}, 1e-9)
    assert not report["passed"] and report["label_mismatches"] >= 3


@pytest.mark.slow
def test_truncated_variables(tmp_path):
    made = Made(tmp_path)
    made.predict()
    [data] = (made.export / "variables").glob("variables.data*")
    data.write_bytes(data.read_bytes()[:-20])
    report = made.check()
    assert not report["passed"]
    assert report["max_difference"] is None
    assert "could not be served" in report["message"] and "can't be loaded" in report["message"]


def test_preprocessing_that_differs_at_serving(tmp_path):
    # The predictions come from `serving_examples`; what is served swaps the channels.
    made = Made(tmp_path, swap_channels=True, serving_only=True)
    made.predict()
    report = made.check()
    assert not report["passed"]
    assert report["label_mismatches"] == 24  # red and blue
    assert "another label" in report["message"]


@pytest.mark.slow
def test_export_that_changed_after_evaluation(tmp_path):
    made = Made(tmp_path)
    made.predict()
    exports.save_model(made.export, sharpness=8.05)
    report = made.check()
    assert not report["passed"]
    assert report["label_mismatches"] == 0
    assert "serving.tolerance" in report["message"]
    assert made.check(tolerance=0.5)["passed"]


@pytest.mark.slow
def test_labels_permuted(tmp_path):
    made = Made(tmp_path)
    made.predict()
    exports.save_model(made.export, outputs=("red", "green", "blue", "white"))
    report = made.check()
    assert not report["passed"] and report["label_mismatches"] == 24


def test_a_child_that_dies_at_its_start(healthy, monkeypatch):
    def start(request: Path, log: Any) -> subprocess.Popen[bytes]:
        code = "import sys; sys.exit('this machine has no TensorFlow')"
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=log, stderr=log
        )
        process.wait()
        return process

    monkeypatch.setattr(serving_child, "start", start)
    report = healthy.check(check_images=4)
    assert not report["passed"]
    assert report["message"].endswith("clean process: this machine has no TensorFlow.")


def test_every_class_is_tried():
    labels = ["a"] * 50 + ["b"] * 2 + ["c"]
    ids = [str(n).encode() for n in range(53)]
    assert [labels[row] for row in pick(ids, labels, 1)] == ["a", "b", "c"]
    five = pick(ids, labels, 6)
    assert sorted(labels[row] for row in five) == ["a", "a", "a", "b", "b", "c"]
    assert five == pick(ids, labels, 6)
    assert sorted(pick(ids, labels, 1000)) == list(range(53))


def test_no_predictions(healthy, tmp_path):
    with pytest.raises(SafelightError, match="no predictions"):
        ServingCheck.test_call(
            examples=healthy.examples,
            model=healthy.model,
            predictions=exports.artifact(artifacts.Predictions, tmp_path),
            transform_graph=exports.artifact(TransformGraph, tmp_path),
            serving_check=exports.artifact(artifacts.ServingCheck, tmp_path / "out"),
            options="{}",
            code="",
        )


def test_predictor_without_champion(healthy):
    assert predictions.read(Path(healthy.champion_predictions.uri)) is None
    assert Path(healthy.champion_predictions.uri).is_dir()


def test_predictor_with_a_champion_of_other_classes(healthy, tmp_path):
    champion = exports.save_model(tmp_path / "4", classes=("red", "blue"))
    healthy.predict(str(champion))
    found = predictions.read(Path(healthy.champion_predictions.uri))
    ours = predictions.read(Path(healthy.predictions.uri))
    assert found is not None and ours is not None
    assert (found.version, found.classes, found.ids) == (4, ("red", "blue"), ours.ids)
    assert found.correct().sum() == 24 and ours.correct().all()
    Path(healthy.champion_predictions.uri, predictions.FILE).unlink()


def test_champion_that_can_not_be_loaded(healthy, tmp_path):
    with pytest.raises(SafelightError, match="The champion can't be compared with"):
        healthy.predict(str(tmp_path))


def test_a_model_that_does_not_answer_is_told_of_before_a_healthy_champion(tmp_path):
    made = Made(tmp_path)
    champion = exports.save_model(tmp_path / "4")
    exports.save_model(made.export, max_pixels=1)
    with pytest.raises(SafelightError, match="did not answer") as refused:
        made.predict(str(champion))
    assert str(made.export) in str(refused.value) and "champion" not in str(refused.value)


def test_the_answers_are_the_same_beside_a_champion(healthy, tmp_path):
    alone = predictions.read(Path(healthy.predictions.uri))
    beside = Made(tmp_path)
    beside.predict(str(healthy.export))
    ours = predictions.read(Path(beside.predictions.uri))
    theirs = predictions.read(Path(beside.champion_predictions.uri))
    assert alone is not None and ours is not None and theirs is not None
    assert ours.ids == theirs.ids == alone.ids
    assert ours.predicted == theirs.predicted == alone.predicted
    np.testing.assert_allclose(ours.probabilities, alone.probabilities, atol=1e-6)
    np.testing.assert_allclose(theirs.probabilities, alone.probabilities, atol=1e-6)


def test_child_is_clean_and_dies_with_its_parent(tmp_path):
    # The child waits for a model.json that never comes; its parent is killed.
    (tmp_path / "request.json").write_text(
        json.dumps({"model": str(tmp_path / "waits"), "files": [], "examples": "", "answer": ""})
    )
    (tmp_path / "waits" / "assets.extra").mkdir(parents=True)
    os.mkfifo(tmp_path / "waits" / "assets.extra" / "model.json")
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, subprocess, sys\n"
            f"request = {str(tmp_path / 'request.json')!r}\n"
            "child = subprocess.Popen([sys.executable, '-m', 'pipeline.blessing.serving_child',"
            " request, str(os.getpid())], stdin=subprocess.DEVNULL)\n"
            "print(child.pid, flush=True)\n"
            "child.wait()\n",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(1)
    assert _alive(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for _ in range(50):
        if not _alive(child):
            break
        time.sleep(0.1)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_child_imports_no_tfx():
    # TensorFlow alone is imported later, when the model is loaded.
    code = (
        "import sys\n"
        "from pipeline import images\n"
        "from pipeline.blessing import serving_child\n"
        "from pipeline.evaluator import predictions\n"
        "heavy = {'tfx', 'tfx_bsl', 'apache_beam', 'tensorflow_transform', 'tensorflow'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
