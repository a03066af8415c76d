"""Monitoring: real request logs against what a model was trained and judged on."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import images, monitor, registry
from pipeline.client import Prediction
from pipeline.client.request_log import RequestLog
from pipeline.config import Monitor
from pipeline.errors import SafelightError, UsageError
from pipeline.features import FLOAT_FACTS
from pipeline.monitor import requests
from pipeline.retrain.ledger import Ledger
from pipeline.runs import RunDir, write_json
from pipeline.workdir import open_workdir
from tests import made
from tests.test_registry import FIRST, export

CLASSES = ("blue", "red")
OPTIONS = ("monitor.min_requests=20",)


def encoded(label: str, number: int, light: float = 1.0) -> bytes:
    # 4 to 3, as photographs are: a third, which no float holds exactly.
    pixels = np.asarray(made.picture(label, number), np.float64)[:24] * light
    out = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def write_log(path: Path, labels: list[str], light: float = 1.0, score: float = 0.9) -> Path:
    """Logs an answered request for each label, as the client does."""
    log = RequestLog(path, keep_images=True)
    for number, label in enumerate(labels):
        mine = min(0.99, score + number / 1000)
        shares = {name: mine if name == label else 1 - mine for name in CLASSES}
        answer = Prediction(label=label, score=mine, probabilities=shares)
        log.write("model", 1, [images.prepare(encoded(label, 500 + number, light))], [answer], 0.01)
    return path


@pytest.fixture
def place(tmp_path):
    """A workdir with the artifacts of the run that its served model is from."""
    workdir = open_workdir(tmp_path / "work")
    registry.open(workdir.serving("model")).publish(export(tmp_path / "e"), FIRST)
    report, answers = workdir.artifacts / "report", workdir.artifacts / "answers"
    report.mkdir(parents=True)
    answers.mkdir()
    facts = [
        images.facts(images.prepare(encoded(label, number)).pixels)
        for label in CLASSES
        for number in range(40)
    ]
    # In float32, as ingest writes them.
    columns = {
        name: pa.array([getattr(fact, name) for fact in facts], pa.float32())
        for name in FLOAT_FACTS
    }
    pq.write_table(pa.table({"split": ["train"] * 80, **columns}), report / "images.parquet")
    schema = pa.schema(
        [
            ("id", pa.binary()),
            ("split", pa.string()),
            ("label", pa.string()),
            ("predicted", pa.string()),
            ("probabilities", pa.list_(pa.float32())),
        ],
        metadata={"classes": json.dumps(CLASSES), "model": "f1"},
    )
    labels = [*CLASSES] * 20
    shares = [[0.9, 0.1] if name == "blue" else [0.1, 0.9] for name in labels]
    ids = [str(number).encode() for number in range(40)]
    table = pa.table([ids, ["test"] * 40, labels, labels, shares], schema=schema)
    pq.write_table(table, answers / "predictions.parquet")
    run = RunDir(workdir.runs / "r1")
    run.root.mkdir(parents=True)
    made_by = {
        "ImageExampleGen": {"ingest_report": str(report)},
        "Predictor": {"predictions": str(answers)},
    }
    write_json(run.artifacts, made_by)
    return workdir


def watched(place, log: Path, capsys, **options) -> dict:
    monitor.command([log], place.root, overrides=OPTIONS, as_json=True, **options)
    return json.loads(capsys.readouterr().out)


def alarms(found: dict) -> set[str]:
    return {figure["name"] for figure in found["figures"] if figure["alarm"]}


def test_requests_like_training_raise_no_alarm(place, tmp_path, capsys):
    found = watched(place, write_log(tmp_path / "log", [*CLASSES] * 30), capsys)
    assert (found["requests"], found["version"]) == (60, 1)
    assert alarms(found) == set(), found
    assert Ledger(place.root / "retrain").last("monitor") is None


def test_darker_images_raise_an_alarm_that_the_policy_sees(place, tmp_path, capsys):
    found = watched(place, write_log(tmp_path / "log", [*CLASSES] * 30, light=0.4), capsys)
    assert "input brightness" in alarms(found)
    line = Ledger(place.root / "retrain").last("monitor")
    assert line is not None and "Brightness" in line["reason"] and line["version"] == 1


def test_other_classes_and_lower_scores(place, tmp_path, capsys):
    labels = ["red"] * 40 + ["blue"] * 10
    found = watched(place, write_log(tmp_path / "log", labels, score=0.6), capsys)
    assert {"predicted classes", "score"} <= alarms(found)


def write_prediction_log(
    path: Path,
    labels: list[str],
    version: int = 1,
    packed: bool = False,
    spoil: Callable[[dict], dict] = lambda said: said,
):
    """Writes PredictionLogs as TF Serving does: batches of requests with their answers."""
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    options = tf.io.TFRecordOptions(compression_type="GZIP" if packed else "")
    with tf.io.TFRecordWriter(str(path), options) as writer:
        for start in range(0, len(labels), 8):
            batch = labels[start : start + 8]
            logged = prediction_log_pb2.PredictionLog()
            request, response = logged.predict_log.request, logged.predict_log.response
            images_sent = [encoded(name, 500 + start + at) for at, name in enumerate(batch)]
            request.inputs["image"].CopyFrom(tf.make_tensor_proto(images_sent, tf.string))
            response.model_spec.name = "model"
            response.model_spec.version.value = version
            shares = np.array([[0.9, 0.1] if name == CLASSES[0] else [0.1, 0.9] for name in batch])
            said = {
                "label": batch,
                "score": shares.max(axis=1).astype(np.float32),
                "classes": [list(CLASSES)] * len(batch),
                "probabilities": shares.astype(np.float32),
            }
            for name, value in spoil(said).items():
                response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
            writer.write(logged.SerializeToString())
        writer.write(b"no PredictionLog \xff")
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_prediction_logs_are_read_as_the_clients_own(place, tmp_path, capsys, packed):
    labels = [*CLASSES] * 30
    from_client = watched(place, write_log(tmp_path / "log", labels), capsys)
    records = write_prediction_log(tmp_path / "records", labels, packed=packed)
    found = watched(place, records, capsys, manifest=tmp_path / "next.csv")
    assert (found["requests"], found["skipped"]) == (60, 1)
    assert alarms(found) == set()
    facts = {one["name"]: one["value"] for one in found["figures"] if "input" in one["name"]}
    assert facts == {
        one["name"]: one["value"] for one in from_client["figures"] if "input" in one["name"]
    }
    with Image.open(tmp_path / next(csv.DictReader((tmp_path / "next.csv").open()))["path"]) as one:
        assert one.size == (32, 24)
    with pytest.raises(UsageError, match="no request to the model"):
        watched(place, write_prediction_log(tmp_path / "other", labels, version=9), capsys)


def test_a_prediction_log_of_images_as_small_as_can_be():
    out = io.BytesIO()
    made.picture(CLASSES[0], 1, size=(1, 1)).save(out, "PNG")
    entry = requests._entry(out.getvalue(), label=CLASSES[0])
    assert entry is not None and entry["facts"]["sharpness"] == 0


def test_a_prediction_log_that_is_cut_short_gives_what_is_whole(place, tmp_path, capsys):
    records = write_prediction_log(tmp_path / "records", [*CLASSES] * 30)
    records.write_bytes(records.read_bytes()[:-200])
    assert 40 <= watched(place, records, capsys)["requests"] < 60


@pytest.mark.parametrize(
    ("spoil", "kept"),
    [
        # Seven batches of eight, and one of four.
        (lambda said: {name: value[:5] for name, value in said.items()}, 7 * 5 + 4),
        (lambda said: {**said, "label": [1] * len(said["label"])}, 0),
        (lambda said: {**said, "score": said["score"] * np.float32("nan")}, 0),
    ],
    ids=["fewer rows than images", "labels are numbers", "NaN"],
)
def test_answers_in_a_prediction_log_that_fit_no_image_are_passed_over(
    place, tmp_path, capsys, spoil, kept
):
    records = write_prediction_log(tmp_path / "records", [*CLASSES] * 30, spoil=spoil)
    whole = write_log(tmp_path / "log", [*CLASSES] * 15)
    monitor.command([records, whole], place.root, overrides=OPTIONS, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["requests"] == 30 + kept and found["skipped"] > 1


def facts(**values) -> Callable[[dict], dict]:
    return lambda entry: {**entry, "facts": {**entry["facts"], **values}}


def but(**values) -> Callable[[dict], dict]:
    return lambda entry: {**entry, **values}


def without(key: str) -> Callable[[dict], dict]:
    return lambda entry: {name: value for name, value in entry.items() if name != key}


DAMAGE: dict[str, Callable[[dict], object]] = {
    "null": lambda entry: None,
    "a list": lambda entry: [entry],
    "no facts": but(facts={}),
    "facts are null": but(facts=None),
    "a fact is null": facts(brightness=None),
    "a fact is a word": facts(sharpness="high"),
    "a fact is NaN": facts(contrast=float("nan")),
    "a fact is no float": facts(contrast=10**400),
    "the score is a word": but(score="high"),
    "the score is null": but(score=None),
    "the score is NaN": but(score=float("nan")),
    "the score is infinite": but(score=float("inf")),
    "the score is no probability": but(score=1e300),
    "the label is a list": but(label=["red"]),
    "the label is half a character": but(label="\ud83d"),
    "the version is a list": but(version=[1]),
    "probabilities are a list": but(probabilities=[0.9, 0.1]),
    "a probability is null": but(probabilities={"red": 0.9, "blue": None}),
    "no hash": without("sha256"),
    "a hash that leads elsewhere": but(sha256="../../../tmp/x"),
    "the image is a number": but(image=1),
    "half an image": but(image="abcde"),
    "an image of no format": without("format"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_line_is_counted_and_changes_nothing(place, tmp_path, capsys, damage):
    log = write_log(tmp_path / "log", [*CLASSES] * 15)
    before = watched(place, log, capsys)
    line = json.loads(log.read_text().splitlines()[0])
    with log.open("a") as file:
        file.write(json.dumps(damage(line)) + "\n")
    found = watched(place, log, capsys, manifest=tmp_path / "next.csv")
    assert found == {**before, "skipped": 1, "manifest": str(tmp_path / "next.csv")}
    assert len(list(csv.DictReader((tmp_path / "next.csv").open()))) == 30


@pytest.mark.parametrize("line", [b"[" * 100_000, b"{", b"\n", b"\x00\x01"])
def test_a_line_that_is_no_json_is_counted(place, tmp_path, capsys, line):
    log = write_log(tmp_path / "log", [*CLASSES] * 15)
    log.write_bytes(log.read_bytes() + line + b"\n")
    assert watched(place, log, capsys)["requests"] == 30


def test_a_byte_that_is_no_utf8_damages_its_own_line_alone(place, tmp_path, capsys):
    log = write_log(tmp_path / "log", [*CLASSES] * 15)
    log.write_bytes(log.read_bytes().replace(b'"label": "red"', b'"label": "r\xe9d"', 1))
    found = watched(place, log, capsys)
    assert (found["requests"], found["skipped"]) == (29, 1)


def test_few_requests_tell_nothing(place, tmp_path, capsys):
    found = watched(place, write_log(tmp_path / "log", ["red"] * 10), capsys)
    assert found["figures"] == [] and "min_requests" in found["said"]


def test_what_to_label_next(place, tmp_path, capsys):
    log = write_log(tmp_path / "log", [*CLASSES] * 15, score=0.6)
    log.write_text(log.read_text() + log.read_text())  # asked twice
    target = tmp_path / "next.csv"
    found = watched(place, log, capsys, manifest=target)
    assert found["manifest"] == str(target)
    rows = list(csv.DictReader(target.open()))
    margins = [float(row["margin"]) for row in rows]
    assert len(rows) == 30 and margins == sorted(margins)
    with Image.open(tmp_path / rows[0]["path"]) as image:
        assert image.size == (32, 24)
    monitor.write_manifest(target, [json.loads(line) for line in log.open()], most=3)
    assert len(list(csv.DictReader(target.open()))) == 3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("next", "ends in .csv"),
        ("missing/next.csv", "no folder"),
        ("taken.csv", "something else"),
        ("folder.csv", "something else"),
    ],
)
def test_a_manifest_that_can_not_be_written_is_told_first(place, tmp_path, capsys, name, said):
    (tmp_path / "taken").write_text("")
    (tmp_path / "folder.csv").mkdir()
    log = write_log(tmp_path / "log", [*CLASSES] * 30, light=0.4)
    with pytest.raises(UsageError, match=said):
        watched(place, log, capsys, manifest=tmp_path / name)
    assert not (tmp_path / "next").exists()


def test_logs_that_say_nothing_of_this_model(place, tmp_path, capsys):
    log = write_log(tmp_path / "log", ["red"] * 3)
    other = tmp_path / "other"
    other.write_text("not JSON\n" + log.read_text().replace('"version": 1', '"version": 7'))
    with pytest.raises(UsageError, match=r"no request to the model 'model'.*4 other lines"):
        watched(place, other, capsys)
    with pytest.raises(UsageError, match="can't be read"):
        watched(place, tmp_path / "gone", capsys)


def test_an_answer_from_before_the_push_that_names_no_version_was_another_models(
    place, tmp_path, capsys
):
    log = write_log(tmp_path / "log", [*CLASSES] * 30)
    entries = [{**json.loads(line), "version": None} for line in log.open()]  # as REST's are
    older = [{**one, "t": one["t"] - 86_400, "facts": {**one["facts"], "brightness": 0.01}}
             for one in entries]  # fmt: skip
    log.write_text("".join(json.dumps(one) + "\n" for one in older + entries))
    found = watched(place, log, capsys)
    assert (found["requests"], found["skipped"]) == (60, 60)
    assert alarms(found) == set(), found


def test_a_run_whose_artifacts_are_gone(place, tmp_path, capsys):
    log = write_log(tmp_path / "log", ["red"] * 30)
    (place.artifacts / "report" / "images.parquet").unlink()
    with pytest.raises(SafelightError, match="is gone"):
        watched(place, log, capsys)


def test_divergence_and_shift():
    rng = np.random.default_rng(0)
    one, other = rng.normal(0, 1, 5000), rng.normal(0, 1, 5000)
    assert monitor.divergence(one, other) < 0.01
    assert monitor.divergence(one + 10, other) > 0.6
    # A constant fact, as aspect ratio often is.
    assert monitor.divergence(np.ones(9), np.ones(7)) == 0
    assert monitor.divergence(np.full(9, 2.0), np.ones(7)) == 1
    assert monitor.class_shift({"a": 9, "b": 1}, {"a": 5, "b": 5}) == pytest.approx(0.4)
    assert monitor.class_shift({"new": 4}, {"a": 5}) == 1
    assert Monitor().min_requests == 200
