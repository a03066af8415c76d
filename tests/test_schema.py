"""The curated schema: what it asks, and how the classes get into it."""

from __future__ import annotations

import json

import pytest
import tensorflow as tf
from tensorflow_transform.tf_metadata import schema_utils
from tfx.types.standard_artifacts import Schema

from components.artifacts import IngestReport
from components.image_schema_gen import ImageSchemaGen
from pipeline import features
from pipeline.errors import DataRefused, SafelightError
from pipeline.validation.statistics import COUNTED, statistics_options
from schemas import image_schema
from tests.examples import artifact, execute

AWKWARD = [
    "Zebra",
    "apple",
    "a b",
    "a, b; c",
    'quoted "name"',
    "back\\slash",
    "naïve 猫 🐈",
    "tab\there",
    "#hash",
    "' or 1",
    "\u202eright to left",
    "",
]


@pytest.mark.parametrize("classes", [["b", "a"], AWKWARD, [f"c{n}" for n in range(3000)]])
def test_classes_come_back_in_their_order(classes):
    schema = image_schema.parse(image_schema.completed(classes))
    assert image_schema.classes_of(schema) == tuple(classes)


def test_more_classes_do_not_reorder_the_others():
    few = image_schema.classes_of(image_schema.parse(image_schema.completed(["dog", "cat"])))
    more = image_schema.classes_of(
        image_schema.parse(image_schema.completed(["dog", "cat", "ant"]))
    )
    assert more[: len(few)] == few


def test_the_comments_survive_and_the_text_is_the_same_each_time():
    text = image_schema.completed(["x", "y"])
    assert text.startswith(image_schema.curated())
    assert "# The encoded file." in text
    assert text == image_schema.completed(["x", "y"])


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "has 0 classes; expected at least two"),
        (["only"], "Received: 'only'"),
        (["a", "b", "a"], "names a class twice: a"),
        (["a", "\udcff"], "is not valid UTF-8"),
    ],
)
def test_impossible_classes_are_refused(classes, message):
    with pytest.raises(DataRefused, match=message):
        image_schema.completed(classes)


def test_a_schema_without_classes_is_named():
    with pytest.raises(SafelightError, match="no string domain 'classes'"):
        image_schema.classes_of(image_schema.parse(image_schema.curated()))


def test_every_feature_of_the_seams_is_there_with_a_tensor():
    schema = image_schema.parse(image_schema.completed(["a", "b"]))
    expected = {
        features.IMAGE: tf.string,
        features.ID: tf.string,
        features.SHA256: tf.string,
        features.LABEL: tf.string,
        features.FORMAT: tf.string,
        **dict.fromkeys(features.INT_FACTS, tf.int64),
        **dict.fromkeys(features.FLOAT_FACTS, tf.float32),
    }
    spec = schema_utils.schema_as_feature_spec(schema).feature_spec
    for name, dtype in expected.items():
        assert spec.pop(name) == tf.io.FixedLenFeature([], dtype), name
    assert spec == dict.fromkeys(features.CHANNEL_FACTS, tf.io.VarLenFeature(tf.float32))
    assert {feature.name for feature in schema.feature} == {*expected, *features.CHANNEL_FACTS}


def test_statistics_never_see_image_bytes_nor_data():
    options = statistics_options()
    names = {feature.name for feature in options.schema.feature}
    assert names == set(COUNTED)
    assert not names & {features.IMAGE, features.ID, features.SHA256}
    assert options.to_json() == statistics_options().to_json()


def test_the_node_writes_the_reports_classes(tmp_path):
    report = artifact(IngestReport, tmp_path / "report")
    (tmp_path / "report" / "summary.json").write_text(json.dumps({"classes": AWKWARD}))
    texts = []
    for run in ("one", "two"):
        schema = artifact(Schema, tmp_path / run)
        execute(
            ImageSchemaGen.EXECUTOR_SPEC.executor_class,
            {"ingest_report": report},
            {"schema": schema},
            options="{}",
            code="1",
        )
        assert image_schema.read_classes(tmp_path / run) == tuple(AWKWARD)
        texts.append((tmp_path / run / "schema.pbtxt").read_bytes())
    assert texts[0] == texts[1]
