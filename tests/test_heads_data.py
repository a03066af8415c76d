"""Heads beside the label through the nodes of data: from a manifest to the transform graph."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import tensorflow_transform as tft
from tfx.components.example_validator.executor import Executor as ExampleValidatorExecutor
from tfx.components.statistics_gen.executor import Executor as StatisticsGenExecutor
from tfx.types.standard_artifacts import (
    ExampleAnomalies,
    ExampleStatistics,
    Schema,
    TransformGraph,
)

from components import image_transform
from components.artifacts import IngestReport, ValidationReport
from components.image_schema_gen import ImageSchemaGen
from components.validation_gate import ValidationGate
from pipeline import config, heads, registry
from pipeline.config import Validation
from pipeline.errors import DataRefused
from pipeline.registry import Origin
from pipeline.validation import checks
from pipeline.validation.statistics import statistics_options
from schemas import image_schema
from tests import two_heads
from tests.examples import artifact, execute
from tests.ingested import Ingested, ingest
from tests.two_heads import COLUMN, CONFIGURED, GRADES, HEADS

# The head's range ends below what some pictures show.
NARROW = ({**CONFIGURED[0]}, {**CONFIGURED[1], "maximum": 0.7})


def schema_of(ingested: Ingested, root: Path, configured=NARROW) -> Schema:
    made = config.validated({"train": {"heads": configured}})
    schema = artifact(Schema, root)
    execute(
        ImageSchemaGen.EXECUTOR_SPEC.executor_class,
        {"ingest_report": artifact(IngestReport, ingested.report)},
        {"schema": schema},
        options="{}",
        code="1",
        heads=json.dumps(heads.data_options(made.train)),
    )
    return schema


@pytest.fixture(scope="module")
def ingested(tmp_path_factory):
    root = tmp_path_factory.mktemp("ingested")
    two_heads.write_manifest(root / "data", 60)
    with open(root / "data" / "manifest.csv", "a") as file:
        file.write("images/0001.png,round,,0.5\n")
    columns = {"targets": [COLUMN], "class_columns": ["grade"]}
    return ingest(root / "data", root, known_columns={"grade": list(GRADES)}, **columns)


@pytest.fixture(scope="module")
def validated(ingested, tmp_path_factory):
    """The schema, the statistics and the anomalies."""
    root = tmp_path_factory.mktemp("validated")
    schema = schema_of(ingested, root / "schema")
    statistics = artifact(ExampleStatistics, root / "statistics")
    anomalies = artifact(ExampleAnomalies, root / "anomalies")
    execute(
        StatisticsGenExecutor,
        {"examples": ingested.artifact},
        {"statistics": statistics},
        stats_options_json=statistics_options(HEADS[1:]).to_json(),
        exclude_splits="[]",
    )
    execute(
        ExampleValidatorExecutor,
        {"statistics": statistics, "schema": schema},
        {"anomalies": anomalies},
        exclude_splits="[]",
    )
    return statistics, anomalies


def test_ingest_fixes_the_order_of_a_columns_classes(ingested):
    # "good" came first in the champion; without one, names are sorted.
    assert ingested.summary["class_columns"] == {"grade": ["good", "bad"]}
    assert ingested.summary["quarantine_reasons"] == {"bad_target": 1}
    [first, *_] = [row for row in ingested.table("images") if row["id"] == b"images/0000.png"]
    one = two_heads.shown(0)
    assert (first["class_grade"], first[f"target_{COLUMN}"]) == (one.grade, one.severity)


def test_a_column_of_one_class_is_refused(tmp_path):
    two_heads.write_manifest(tmp_path / "data", 40)
    manifest = tmp_path / "data" / "manifest.csv"
    manifest.write_text(manifest.read_text().replace(",bad,", ",good,"))
    with pytest.raises(DataRefused, match="'grade' of the manifest holds one class, 'good'"):
        ingest(tmp_path / "data", tmp_path, class_columns=["grade"])


def gate(ingested, validated, tmp_path, **modes):
    statistics, anomalies = validated
    execute(
        ValidationGate.EXECUTOR_SPEC.executor_class,
        {
            "statistics": statistics,
            "anomalies": anomalies,
            "ingest_report": artifact(IngestReport, ingested.report),
        },
        {"validation_report": artifact(ValidationReport, tmp_path / "out")},
        options=Validation(**modes).model_dump_json(),
        code="1",
    )
    return json.loads((tmp_path / "out" / "validation.json").read_text())["checks"]


def test_a_target_out_of_range_is_found_with_value_and_image(ingested, validated, tmp_path):
    rows = [row for row in ingested.table("images") if row["split"] == "train"]
    outside = [row for row in rows if row[f"target_{COLUMN}"] > 0.7]
    assert outside
    with pytest.raises(DataRefused) as refused:
        gate(ingested, validated, tmp_path)
    [reason] = [text for text in refused.value.reasons if "of split 'train'" in text]
    assert f"target_{COLUMN}" in reason and "Expected at least 0, at most 0.7" in reason
    assert f"{outside[0]['id'].decode()}: {outside[0][f'target_{COLUMN}']:g}" in reason
    warned = gate(ingested, validated, tmp_path, anomalies="warn")
    assert {check["feature"] for check in warned if check["state"] == "warn"} >= {
        f"target_{COLUMN}"
    }
    assert all(check["feature"] != "class_grade" for check in warned)


def test_a_class_that_train_has_no_image_of_is_found(ingested, tmp_path):
    rows = ingested.table("images")
    for row in rows:
        if row["split"] == "train":
            row["class_grade"] = "good"
    images = tmp_path / "images.parquet"
    pq.write_table(pa.Table.from_pylist(rows), images)
    found = checks.run(Validation(), checks.Evidence({}, {}, {}, images))
    unseen = [check for check in found if check.name == "unseen_labels"]
    assert {(check.feature, check.split) for check in unseen} == {
        ("class_grade", "eval"),
        ("class_grade", "test"),
    }
    assert "classes of 'class_grade' that train has no image of: 'bad'" in unseen[0].message
    whole = checks.Evidence({}, {}, {}, ingested.report / "images.parquet")
    assert [c.state for c in checks.run(Validation(), whole) if c.name == "unseen_labels"] == ["ok"]


def test_the_transform_graph_gives_each_heads_target(ingested, tmp_path):
    execute(
        image_transform.Executor,
        {"examples": ingested.artifact, "schema": schema_of(ingested, tmp_path / "schema")},
        {"transform_graph": artifact(TransformGraph, tmp_path / "graph")},
        preprocessing_fn=image_transform.PREPROCESSING_FN,
        splits_config=json.dumps({"analyze": ["train"]}),
        custom_config=json.dumps(
            {
                "transform": {"image_size": 16, "channels": 3},
                "heads": heads.data_options(two_heads.TRAIN),
            }
        ),
        disable_statistics=1,
    )
    output = tft.TFTransformOutput(str(tmp_path / "graph"))
    records = ingested.records("train")[:6]
    spec = output.raw_feature_spec()
    wanted = {name: spec[name] for name in ("image", *(head.feature for head in HEADS))}
    parsed = tf.io.parse_example([one.SerializeToString() for one in records], wanted)
    out = output.transform_features_layer().call(parsed)
    names = [one.features.feature["class_grade"].bytes_list.value[0].decode() for one in records]
    assert [GRADES[index] for index in out["grade_id"].numpy()] == names
    values = [one.features.feature[f"target_{COLUMN}"].float_list.value[0] for one in records]
    np.testing.assert_array_equal(out["severity_value"], np.array(values, np.float32))


def test_schema_classes_come_from_the_report(ingested, tmp_path):
    schema_of(ingested, tmp_path, CONFIGURED)
    assert image_schema.head_classes(tmp_path) == {"grade": GRADES}


def test_the_champions_order_of_a_columns_classes_is_given_to_new_data(tmp_path):
    from tests.test_registry import export

    source = export(tmp_path / "export")
    facts = source / "assets.extra" / "model.json"
    written = {**json.loads(facts.read_text()), "heads": [head.facts() for head in HEADS[1:]]}
    facts.write_text(json.dumps(written))
    models = registry.open(tmp_path / "serving" / "model")
    origin = Origin(by="t", why="t", run_id="r", data="d", config="c", code="k")
    models.publish(source, origin)
    assert models.resolve_inputs("new", "c", "k").known_columns == {"grade": list(GRADES)}
    # The same data, and the same run, get what that run was given: nothing.
    assert models.resolve_inputs("d", "other", "k").known_columns == {}
    assert models.published(origin, "f1") is not None
