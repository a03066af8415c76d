"""The gate: each check both ways, on TFDV's own statistics of real Examples."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from tensorflow_metadata.proto.v0 import anomalies_pb2
from tfx.components.example_validator.executor import Executor as ExampleValidatorExecutor
from tfx.components.statistics_gen.executor import Executor as StatisticsGenExecutor
from tfx.types.standard_artifacts import (
    ExampleAnomalies,
    Examples,
    ExampleStatistics,
    Schema,
)

from components.artifacts import IngestReport, ValidationReport
from components.validation_gate import ValidationGate
from pipeline import events
from pipeline.config import Validation
from pipeline.errors import DataRefused
from pipeline.validation import checks
from pipeline.validation.statistics import statistics_options
from schemas import image_schema
from tests import examples, made
from tests.examples import artifact, execute, write_report

SPLITS = ("train", "eval", "test")
CLASSES = ["red", "blue"]


def good(split: str, number: int) -> list:
    return [
        examples.example(examples.encoded(made.picture(label, index)), label, f"{split}/{index}")
        for label in CLASSES
        for index in range(number)
    ]


def broken() -> list:
    """Returns Examples with one trouble each."""
    rows = good("test", 4)
    feature = [row.features.feature for row in rows]
    feature[0]["brightness"].float_list.value[0] = 1.5
    del feature[1]["format"]
    feature[2]["label"].bytes_list.value[0] = b"green"
    feature[3]["contrast"].float_list.value[0] = math.nan
    feature[4]["channels"].int64_list.value[0] = 4
    feature[5]["channel_mean"].float_list.value.extend([0.5] * 3)
    feature[6]["height"].int64_list.value[0] = 0
    feature[7]["format"].bytes_list.value[0] = b"webp"
    return rows


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    """Runs StatisticsGen's and ExampleValidator's executors on two good splits and a broken one."""
    root = tmp_path_factory.mktemp("validated")
    for split, rows in {
        "train": good("train", 6),
        "eval": good("eval", 4),
        "test": broken(),
    }.items():
        examples.write_split(root / "examples", split, rows)
    statistics = artifact(ExampleStatistics, root / "statistics")
    anomalies = artifact(ExampleAnomalies, root / "anomalies")
    schema = artifact(Schema, root / "schema")
    (root / "schema" / "schema.pbtxt").write_text(image_schema.completed(CLASSES))
    execute(
        StatisticsGenExecutor,
        {"examples": artifact(Examples, root / "examples", SPLITS)},
        {"statistics": statistics},
        stats_options_json=statistics_options().to_json(),
        exclude_splits="[]",
    )
    execute(
        ExampleValidatorExecutor,
        {"statistics": statistics, "schema": schema},
        {"anomalies": anomalies},
        exclude_splits="[]",
    )
    return statistics, anomalies


def gate(validated, tmp_path, per_class, **modes) -> dict:
    """Runs the node and returns its report; what it raises comes through."""
    statistics, anomalies = validated
    report = artifact(IngestReport, write_report(tmp_path / "ingest", list(per_class), per_class))
    try:
        execute(
            ValidationGate.EXECUTOR_SPEC.executor_class,
            {"statistics": statistics, "anomalies": anomalies, "ingest_report": report},
            {"validation_report": artifact(ValidationReport, tmp_path / "out")},
            options=Validation(**modes).model_dump_json(),
            code="1",
        )
    finally:
        written = json.loads((tmp_path / "out" / "validation.json").read_text())
    return written


EVEN = {name: {"train": 6, "eval": 4, "test": 4} for name in CLASSES}


def test_good_data_has_no_anomaly(validated):
    _, artifact_of_anomalies = validated
    found = {}
    for split in SPLITS:
        file = Path(artifact_of_anomalies.uri) / f"Split-{split}" / "SchemaDiff.pb"
        found[split] = anomalies_pb2.Anomalies.FromString(file.read_bytes())
    assert not found["train"].anomaly_info
    assert not found["eval"].anomaly_info
    assert set(found["test"].anomaly_info) == {
        "brightness",
        "format",
        "label",
        "contrast",
        "channels",
        "channel_mean",
        "height",
    }


def test_anomalies_fail_the_run_and_say_what_and_where(validated, tmp_path):
    with pytest.raises(DataRefused) as refused:
        gate(validated, tmp_path, EVEN)
    assert refused.value.exit_code == 4
    reasons = "\n".join(refused.value.reasons)
    for part in (
        "'brightness' of split 'test'",
        "Expected at least 0, at most 1",
        "to 1.5",
        "'format' of split 'test'",
        "none in 1 of 8 images",
        "one of 'jpeg', 'png', 'gif', 'bmp'",
        "one of 'red', 'blue'",
        "'green'",
        "NaN",
        "1 to 3 values",
    ):
        assert part in reasons, part
    assert "validation.anomalies" in str(refused.value)
    assert "'train'" not in reasons


def test_anomalies_can_be_warned_of(validated, tmp_path, event_log):
    report = gate(validated, tmp_path, EVEN, anomalies="warn")
    states = {check["state"] for check in report["checks"] if check["name"] == "anomalies"}
    assert states == {"warn"}
    told = [event["text"] for _, event in events.read(event_log) if event["kind"] == "warning"]
    assert len(told) == 7


def test_anomalies_can_be_let_be(validated, tmp_path, event_log):
    report = gate(validated, tmp_path, EVEN, anomalies="off")
    assert [(check["name"], check["state"]) for check in report["checks"]] == [
        ("anomalies", "off"),
        ("unseen_labels", "ok"),
        ("absent_classes", "ok"),
        ("few_images", "ok"),
        ("imbalance", "ok"),
        ("split_mix", "ok"),
    ]
    assert not list(events.read(event_log))


def findings(per_class, **modes) -> dict[str, list[checks.Check]]:
    evidence = checks.Evidence(statistics={}, anomalies={}, counts=per_class)
    by_name: dict[str, list[checks.Check]] = {}
    for check in checks.run(Validation(**modes), evidence):
        by_name.setdefault(check.name, []).append(check)
    return by_name


def of(train: int, held_out: int, test: int) -> dict[str, int]:
    return {"train": train, "eval": held_out, "test": test}


def test_even_data_passes_every_check():
    found = findings({name: of(700, 100, 200) for name in "abc"})
    assert [check.state for group in found.values() for check in group] == ["ok"] * 6
    checks.refuse([check for group in found.values() for check in group])


@pytest.mark.parametrize(
    ("counts", "name", "split", "parts"),
    [
        ({"a": of(9, 0, 9), "b": of(9, 5, 0)}, "few_images", "test", ["'b' has 0", "at least 2"]),
        ({"a": of(1, 5, 9), "b": of(9, 5, 9)}, "few_images", "train", ["'a' has 1"]),
        ({"a": of(9, 5, 9), "b": {"test": 9}}, "unseen_labels", "test", ["'b'", "no model"]),
        ({"a": of(9, 5, 9), "b": of(0, 3, 0), "c": of(9, 5, 9)}, "unseen_labels", "eval", ["'b'"]),
        (
            {"a": of(2100, 5, 9), "b": of(100, 5, 9)},
            "imbalance",
            "train",
            ["21.0 times", "at most 20"],
        ),
        (
            {"a": of(500, 100, 400), "b": of(500, 100, 100)},
            "split_mix",
            "train, test",
            ["'a' is 50.0% of 'train' and 80.0% of 'test'", "at most 10.0%"],
        ),
    ],
)
@pytest.mark.parametrize("mode", ["warn", "fail"])
def test_each_check_speaks_in_its_mode(counts, name, split, parts, mode):
    found = [check for check in findings(counts, **{name: mode})[name] if check.split == split]
    assert len(found) == 1
    assert found[0].state == mode
    assert found[0].feature == "label"
    for part in parts:
        assert part in found[0].message
    if mode == "fail":
        with pytest.raises(DataRefused, match=f"set validation.{name} to 'warn'"):
            checks.refuse(found)
    else:
        checks.refuse(found)
    assert [check.state for check in findings(counts, **{name: "off"})[name]] == ["off"]


@pytest.mark.parametrize(
    ("counts", "name"),
    [
        ({"a": of(2, 0, 2), "b": of(2, 0, 2)}, "few_images"),
        ({"a": of(2000, 5, 9), "b": of(100, 5, 9)}, "imbalance"),
        ({"a": of(500, 100, 109), "b": of(500, 100, 91)}, "split_mix"),
        ({"a": of(9, 0, 9), "b": of(1, 0, 0)}, "unseen_labels"),
    ],
)
def test_bounds_are_inclusive(counts, name):
    assert [check.state for check in findings(counts)[name]] == ["ok"]


def test_an_unseen_class_is_told_once():
    found = findings({"a": of(9, 5, 9), "b": of(9, 5, 9), "c": of(0, 5, 9)})
    assert [check.state for check in found["few_images"]] == ["ok"]
    assert [check.split for check in found["unseen_labels"]] == ["eval", "test"]


def test_a_class_of_the_champion_without_any_image_is_told_apart_from_too_few():
    counts = {"a": of(9, 5, 9), "b": of(9, 5, 9), "gone": of(0, 0, 0), "left": {}}
    found = findings(counts)
    assert [check.state for check in found["few_images"]] == ["ok"]
    [check] = found["absent_classes"]
    assert (check.state, check.found) == ("fail", "'gone', 'left'")
    assert "push.model_name" in check.message
    [check] = findings(counts, absent_classes="warn")["absent_classes"]
    assert check.state == "warn"
    [check] = findings({"a": of(9, 5, 9), "b": of(9, 5, 9)})["absent_classes"]
    assert check.state == "ok"


def test_chance_is_not_called_a_different_mix():
    # 6 of 10 against 50 %: a difference of 0.1 and more that means nothing.
    small = {"a": of(500, 7, 7), "b": of(500, 3, 3)}
    assert [check.state for check in findings(small)["split_mix"]] == ["ok"]
    large = {"a": of(500, 700, 700), "b": of(500, 300, 300)}
    assert [check.state for check in findings(large)["split_mix"]] == ["warn", "warn"]


def test_many_findings_stay_readable():
    found = findings({f"c{number:03d}": of(1, 5, 9) for number in range(500)})["few_images"]
    assert len(found) == 1
    assert "and 495 more" in found[0].message
    assert len(found[0].message) < 400
