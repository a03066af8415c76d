"""Heads beside the label, stage by stage: configuration, ingest, schema, graph, export, verdict."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_transform.tf_metadata import schema_utils

from pipeline import config, export, heads, models
from pipeline.client import client_answers
from pipeline.commands import predict, predict_output, request
from pipeline.config import Config, Ingest
from pipeline.errors import ConfigError, DataRefused, SafelightError
from pipeline.evaluator import evaluate as evaluation
from pipeline.evaluator import predictions
from pipeline.evaluator.head_columns import Classes, Values
from pipeline.ingest import manifest
from pipeline.ingest.entries import Ignored
from pipeline.records import Input
from pipeline.serving import rest
from pipeline.serving.models import Version
from schemas import image_schema
from tests import two_heads
from tests.two_heads import CLASSES, COLUMN, CONFIGURED, GRADES, HEADS

NUMBERS = range(40)


def with_heads(**sections):
    return config.validated({"train": {"heads": CONFIGURED}, **sections})


def test_the_columns_are_carried_without_being_named_twice():
    made = with_heads(ingest={"targets": ["age"], "class_columns": ["grade"]})
    assert made.ingest.targets == ("age", COLUMN) and made.ingest.class_columns == ("grade",)
    again = Config.model_validate_json(made.model_dump_json())
    assert again == made
    assert Config().ingest.targets == ()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"ingest": {"form": "folders"}}, "train.heads asks for .*ingest.form is 'folders'"),
        ({"evaluate": {"heads": {"severty": {"max_mae": 1}}}}, "no head 'severty'.*'severity'"),
        ({"evaluate": {"heads": {"grade": {"max_mae": 1}}}}, "grade.max_mae: .* class head"),
        (
            {"evaluate": {"heads": {"severity": {"min_accuracy": 0.5}}}},
            "severity.min_accuracy: .* regression head .* takes max_mae",
        ),
        ({"evaluate": {"heads": {"severity": {"max_mea": 0.5}}}}, "evaluate.heads"),
        (
            {"train": {"heads": [*CONFIGURED, {"name": "grade_score", "kind": "regression"}]}},
            "gives grade_score too",
        ),
        ({"train": {"heads": [{**CONFIGURED[0], "name": "val"}]}}, "the head name 'val' is taken"),
        (
            {"train": {"heads": [*CONFIGURED, {"name": "val_severity", "kind": "regression"}]}},
            "the head name 'val_severity' is taken",
        ),
        (
            {
                "train": {
                    "heads": [*CONFIGURED, {**CONFIGURED[0], "name": "other", "column": "grade"}]
                }
            },
            "read the column 'grade'",
        ),
    ],
)
def test_what_can_not_go_together_is_refused_before_anything_runs(sections, message):
    with pytest.raises(ConfigError, match=message):
        with_heads(**sections)


def test_data_without_a_manifest_is_refused_with_both_keys():
    with pytest.raises(ConfigError, match="train.heads.*ingest.form is 'folders'"):
        heads.check_form(with_heads(), "folders")
    heads.check_form(with_heads(), "manifest")
    heads.check_form(Config(), "folders")


def read(root: Path, ingest: Ingest):
    return manifest.read(root / "manifest.csv", ingest, Ignored())


def test_the_manifest_gives_numbers_and_classes(tmp_path):
    two_heads.write_manifest(tmp_path, 3)
    found = read(tmp_path, with_heads().ingest)
    one = two_heads.shown(1)
    assert found.entries[1].extra == (
        (f"target_{COLUMN}", one.severity),
        ("class_grade", one.grade),
    )


def test_an_unknown_column_gets_the_nearest(tmp_path):
    two_heads.write_manifest(tmp_path, 2)
    wrong = config.validated({"train": {"heads": [{"name": "grad", "kind": "class"}]}})
    with pytest.raises(DataRefused, match="no column 'grad'.*train.heads.*'grade'"):
        read(tmp_path, wrong.ingest)


@pytest.mark.parametrize(("grade", "severity"), [("", "0.5"), ("good", ""), ("good", "1e300")])
def test_a_target_that_is_none_is_quarantined(tmp_path, grade, severity):
    two_heads.write_manifest(tmp_path, 2)
    with open(tmp_path / "manifest.csv", "a") as file:
        file.write(f"images/0001.png,round,{grade},{severity}\n")
    [problem] = read(tmp_path, with_heads().ingest).problems
    assert problem.reason == "bad_target"


def test_the_schema_has_a_feature_and_a_domain_for_each_head():
    text = two_heads.schema()
    schema = image_schema.parse(text)
    assert image_schema.classes_of(schema) == CLASSES
    assert image_schema.head_classes_of(schema) == {"grade": GRADES}
    spec = schema_utils.schema_as_feature_spec(schema).feature_spec
    assert spec["class_grade"] == tf.io.FixedLenFeature([], tf.string)
    assert spec[f"target_{COLUMN}"] == tf.io.FixedLenFeature([], tf.float32)
    [target] = [one for one in schema.feature if one.name == f"target_{COLUMN}"]
    assert (target.float_domain.min, target.float_domain.max) == (0, 1)
    assert target.float_domain.disallow_nan
    assert image_schema.completed(CLASSES) == image_schema.completed(CLASSES, ())


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model with three heads, its export as version 5, and its input."""
    root = tmp_path_factory.mktemp("heads")
    keras.utils.set_random_seed(3)
    model = models.build(two_heads.TRAIN, image_size=two_heads.SIZE, channels=3, heads=HEADS)
    source = Input(two_heads.transform_graph(), two_heads.SIZE, 3, HEADS)
    facts = export.model_facts(
        model, train=two_heads.TRAIN, heads=HEADS, resize="stretch", normalize="unit"
    )
    images = [two_heads.shown(number).data for number in range(2)]
    path = root / "model" / "Format-Serving"
    export.export(model, source, facts, images, path)
    return model, source, path


def answer(path: Path, signature: str, **inputs):
    loaded = tf.saved_model.load(str(path))
    tensors = {name: tf.constant(value, tf.string) for name, value in inputs.items()}
    return {name: value.numpy() for name, value in loaded.signatures[signature](**tensors).items()}


def test_each_head_answers_under_its_name(exported):
    model, source, path = exported
    serialized = [two_heads.example(number).SerializeToString() for number in range(4)]
    said = answer(path, "serving_examples", examples=serialized)
    assert {name: value.shape for name, value in said.items()} == {
        "label": (4,),
        "score": (4,),
        "classes": (4, 2),
        "probabilities": (4, 2),
        "grade": (4,),
        "grade_score": (4,),
        "grade_classes": (4, 2),
        "grade_probabilities": (4, 2),
        "severity": (4,),
    }
    pixels, targets = source.transform(tf.constant(serialized))
    direct = model(pixels)
    np.testing.assert_allclose(said["grade_probabilities"], direct["grade"], atol=1e-6)
    np.testing.assert_allclose(said["severity"], direct["severity"], atol=1e-6)
    assert said["grade_classes"].tolist() == [[name.encode() for name in GRADES]] * 4
    best = [GRADES[index].encode() for index in said["grade_probabilities"].argmax(axis=1)]
    assert said["grade"].tolist() == best
    images = answer(path, "serving_default", image=[two_heads.shown(n).data for n in range(4)])
    for name, value in images.items():
        np.testing.assert_array_equal(said[name], value)
    assert set(targets) == {"label", "grade", "severity"}


def test_an_empty_batch_gets_empty_answers(exported):
    said = answer(exported[2], "serving_default", image=[])
    assert {name: value.shape for name, value in said.items()}["grade_classes"] == (0, 2)
    assert all(len(value) == 0 for value in said.values())


def test_transform_features_gives_each_target(exported):
    known, unknown = two_heads.example(2), two_heads.example(3)
    unknown.features.feature["class_grade"].bytes_list.value[0] = b"ugly"
    serialized = [known.SerializeToString(), unknown.SerializeToString()]
    said = answer(exported[2], "transform_features", examples=serialized)
    assert said["label_id"].tolist() == [0, 1]
    assert said["grade_id"].tolist() == [1, -1] and said["grade_id"].dtype == np.int64
    expected = [two_heads.shown(number).severity for number in (2, 3)]
    np.testing.assert_allclose(said["severity_value"], expected, rtol=1e-6)


def test_the_network_comes_back_with_its_weights(exported):
    model, _, path = exported
    facts = json.loads((path / "assets.extra" / "model.json").read_text())
    assert [(head["name"], head["kind"], head["classes"]) for head in facts["heads"]] == [
        ("grade", "class", list(GRADES)),
        ("severity", "regression", []),
    ]
    again = export.load_weights(path)
    for one, other in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def judged(exported, tmp_path_factory):
    """Everything behind the export: evaluation, predictions, the serving check, and its folder."""
    from tests.heads_judged import Judged

    return Judged(exported[2].parent, tmp_path_factory.mktemp("judged"), NUMBERS)


def test_predictions_hold_each_heads_truth_and_answer(judged):
    found = predictions.read(judged.root / "predictions")
    grade, severity = found.heads["grade"], found.heads["severity"]
    assert isinstance(grade, Classes) and isinstance(severity, Values)
    numbers = [int(name[:4]) for name in found.ids]
    assert grade.labels == [two_heads.shown(number).grade for number in numbers]
    expected = [two_heads.shown(number).severity for number in numbers]
    np.testing.assert_allclose(severity.truth, expected, rtol=1e-6)
    np.testing.assert_allclose(grade.probabilities.sum(axis=1), 1, rtol=1e-5)


def test_tfma_measures_each_head_as_its_predictions_say(judged):
    measured = evaluation.read_metrics(str(judged.root / "evaluation"))
    found = predictions.read(judged.root / "predictions")
    assert measured.examples == len(NUMBERS)
    assert measured.accuracy == pytest.approx(found.correct().mean())
    grade, severity = measured.heads["grade"], measured.heads["severity"]
    assert grade.accuracy == pytest.approx(found.heads["grade"].correct().mean())
    assert grade.matrix(2).sum(axis=1).tolist() == [20, 20]
    values = found.heads["severity"]
    errors = values.predicted.astype(float) - values.truth.astype(float)
    assert severity.mae == pytest.approx(np.abs(errors).mean(), rel=1e-5)
    assert severity.rmse == pytest.approx(np.sqrt((errors**2).mean()), rel=1e-5)
    distances = ((values.truth - values.truth.mean()) ** 2).sum()
    assert severity.r2 == pytest.approx(1 - (errors**2).sum() / distances, rel=1e-4)


def test_the_verdict_judges_each_head(judged):
    found = judged.verdict()
    assert set(found["heads"]) == {"grade", "severity"}
    assert found["heads"]["grade"]["per_class"].keys() == set(GRADES)
    assert sum(found["heads"]["severity"]["errors"]["counts"]) == len(NUMBERS)
    names = [check["name"] for check in found["checks"]]
    assert {"accuracy:grade", "class_recall:grade", "mae:severity", "answers:severity"} <= {*names}
    # Untrained, it is no better than a constant, and the champion is the same model.
    assert not found["blessed"] and any("severity" in reason for reason in found["reasons"])
    assert found["heads"]["severity"]["champion"]["verdict"] == "no worse"
    assert found["heads"]["grade"]["champion"]["difference"] == 0
    generous = judged.verdict(
        min_accuracy=0,
        min_class_recall=0,
        heads={"grade": {"min_accuracy": 0, "min_class_recall": 0}, "severity": {"max_mae": 1e6}},
    )
    assert generous["blessed"], generous["reasons"]


def test_the_serving_check_compares_every_output(judged):
    report = judged.serving()
    assert report["passed"], report["message"]
    assert "values of severity differ by at most" in report["message"]
    moved = judged.serving(moved="severity")
    assert not moved["passed"] and "values of severity" in moved["message"]


def test_predict_tells_every_head(exported, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(two_heads.shown(0).data)
    (tmp_path / "b.png").write_bytes(b"")
    out = tmp_path / "out.csv"
    predict.command([tmp_path / "a.png", tmp_path / "b.png"], None, exported[2], 1, out, True)
    told = json.loads(capsys.readouterr().out)["predictions"][0]
    assert told["heads"]["grade"]["label"] in GRADES
    assert isinstance(told["heads"]["severity"], float)
    header, first, second = out.read_text().splitlines()
    assert header.endswith("round,square,grade,grade_score,grade: good,grade: bad,severity")
    assert first.split(",")[-1] == str(told["heads"]["severity"])
    assert second.endswith(",,,,,,")
    predict_output.write(
        tmp_path / "o.parquet",
        list(predict.predict([tmp_path / "a.png"], exported[2])),
        CLASSES,
        HEADS[1:],
    )
    import pyarrow.parquet as pq

    [row] = pq.read_table(tmp_path / "o.parquet").to_pylist()
    assert row["grade"] == told["heads"]["grade"]["label"]
    assert row["severity"] == pytest.approx(told["heads"]["severity"])
    assert len(row["grade_probabilities"]) == 2


def test_a_model_that_answers_other_than_its_facts_is_named(exported, tmp_path):
    import shutil

    path = shutil.copytree(exported[2], tmp_path / "model")
    facts = path / "assets.extra" / "model.json"
    facts.write_text(facts.read_text().replace('"good",', '"good", "middling",'))
    with pytest.raises(SafelightError, match="shape"):
        predictions.Export(path).serve([two_heads.shown(0).data])


def test_both_ways_of_the_server_give_the_client_every_head(exported):
    image = two_heads.shown(0).data
    served = Version(5, exported[2])
    body = json.dumps({"instances": [{"image": {"b64": base64.b64encode(image).decode()}}]})
    [row] = rest.answer(served, body.encode())["predictions"]
    by_rest = client_answers.from_row(row)
    outputs = served.predict("", {"image": tf.constant([image])})
    [by_grpc] = client_answers.from_tensors(
        {name: tf.make_tensor_proto(value) for name, value in outputs.items()}
    )
    assert by_rest.label == by_grpc.label and by_rest.label in CLASSES
    for one in (by_rest, by_grpc):
        assert set(one.heads) == {"grade", "severity"}
        assert list(one.heads["grade"].probabilities) == list(GRADES)
        assert one.heads["grade"].label in GRADES
    assert by_rest.heads["severity"] == pytest.approx(by_grpc.heads["severity"])
    assert by_rest.as_json()["heads"]["grade"]["score"] > 0
    shown = request._table([Path("a.png")], [by_rest], 1)
    assert shown.row_count == 3
