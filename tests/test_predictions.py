"""An export's answers: asked through its signatures, written, and read again."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline import features
from pipeline.client.client_answers import Prediction
from pipeline.commands import predict, request
from pipeline.errors import SafelightError
from pipeline.evaluator import predictions
from tests import exports, framing, made


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return exports.save_model(tmp_path_factory.mktemp("export") / "7")


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    counts = dict.fromkeys(exports.CLASSES, 6)
    return exports.write_examples(tmp_path_factory.mktemp("examples"), counts)


def test_written_and_read(model, examples, tmp_path):
    export = predictions.Export(model)
    batches = predictions.answer_split(export, str(examples), features.TEST, batch_size=5)
    predictions.write(tmp_path, batches, export)
    found = predictions.read(tmp_path)
    assert found is not None
    assert found.classes == exports.CLASSES
    assert (found.model, found.version) == (export.fingerprint, 7)
    assert len(found.ids) == 24 and len(set(found.ids)) == 24
    assert found.ids[0] == b"test/blue/00000.png"
    assert found.probabilities.shape == (24, 4)
    assert found.probabilities.dtype == np.float32
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, rtol=1e-5)
    assert found.correct().all()
    assert [name.split(b"/")[1].decode() for name in found.ids] == found.labels
    best = found.probabilities.argmax(axis=1)
    assert [found.classes[index] for index in best] == found.predicted


def test_file_is_as_documented(model, examples, tmp_path):
    export = predictions.Export(model)
    predictions.write(tmp_path, predictions.answer_split(export, str(examples), "test"), export)
    schema = pq.read_schema(tmp_path / "predictions.parquet")
    assert schema.names == ["id", "split", "label", "predicted", "probabilities"]
    assert str(schema.field("id").type) == "binary"
    assert str(schema.field("probabilities").type.value_type) == "float"
    assert schema.metadata[b"classes"] == b'["blue", "green", "red", "white"]'


def test_both_signatures_agree(model, examples):
    export = predictions.Export(model)
    [batch] = predictions.answer_split(export, str(examples), "test")
    numbers = [(name, n) for name in made.HUES for n in range(6)]
    served = export.serve([exports.encoded(name, n) for name, n in numbers])
    rows = batch.to_pylist()
    expected = {row["id"]: row["predicted"] for row in rows}
    for (name, n), label in zip(numbers, served.labels, strict=True):
        assert expected[f"test/{name}/{n:05d}.png".encode()] == label


def test_fewer_photographs_are_read_at_once(model, examples, tmp_path, monkeypatch):
    files = predictions.split_files(str(examples), "test")
    assert predictions.at_once(files) == 256 and predictions.at_once(files, 5) == 5
    large, torn = tmp_path / "large", tmp_path / "torn"
    large.write_bytes(b"".join(framing.framed(bytes(size)) for size in (100, 5 * 2**20)))
    torn.write_bytes(b"no record at all")
    assert predictions.at_once([*files, str(large)]) == 12
    assert predictions.at_once([str(torn)]) == 256
    export = predictions.Export(model)
    [whole] = predictions.answer_split(export, str(examples), "test")
    monkeypatch.setattr(predictions, "_BATCH_BYTES", 5000)
    parts = list(predictions.answer_split(export, str(examples), "test"))
    assert len(parts) > 2 and sum(one.num_rows for one in parts) == whole.num_rows
    for name in ("id", "label", "predicted"):
        told = [value for one in parts for value in one.column(name).to_pylist()]
        assert told == whole.column(name).to_pylist()


def test_nothing_there(tmp_path):
    assert predictions.read(tmp_path) is None
    with pytest.raises(SafelightError, match=r"model\.json"):
        predictions.Export(tmp_path)


def test_empty_split(model, tmp_path):
    export = predictions.Export(model)
    with pytest.raises(SafelightError, match="holds no images"):
        list(predictions.answer_split(export, str(tmp_path), features.TEST))


def test_damaged_graph(tmp_path):
    model = exports.save_model(tmp_path / "1")
    (model / "saved_model.pb").write_bytes(b"\x00" * 10)
    with pytest.raises(SafelightError, match="can't be loaded"):
        predictions.Export(model)


def test_image_that_can_not_be_decoded(model):
    with pytest.raises(SafelightError, match="did not answer"):
        predictions.Export(model).serve([b"no image"])


def test_facts_of_another_model(tmp_path):
    model = exports.save_model(tmp_path / "1", facts={"classes": ["a", "b"]})
    with pytest.raises(SafelightError, match="shape"):
        predictions.Export(model).serve([exports.encoded("red", 0)])


def test_names_that_are_no_utf8():
    assert predictions.text(b"caf\xe9") == "caf\\xe9"
    assert predictions.text("café".encode()) == "café"


def test_unknown_is_no_class(tmp_path, examples):
    """A model with a threshold: `predicted` has the most probable class, `answered` the rest."""
    model = exports.save_model(
        tmp_path / "3",
        facts={"threshold": 0.5, "temperature": 1.5},
        outputs=("blue", "green", "red", features.UNKNOWN),
    )
    export = predictions.Export(model)
    answer = export.serve([exports.encoded("white", 0), exports.encoded("red", 0)])
    assert answer.labels == ["white", "red"]
    assert answer.answered is not None and answer.answered.tolist() == [False, True]
    assert answer.said == [features.UNKNOWN, "red"]
    assert answer.row(0).said == [features.UNKNOWN]
    predictions.write(tmp_path, predictions.answer_split(export, str(examples), "test"), export)
    found = predictions.read(tmp_path)
    assert found is not None and found.answered is not None
    assert (found.temperature, found.threshold) == (1.5, 0.5)
    assert found.correct().all()
    assert found.answered.tolist() == [label != "white" for label in found.labels]
    assert found.said.count(features.UNKNOWN) == 6


def test_without_a_threshold_a_class_may_be_called_unknown(tmp_path):
    classes = ("blue", "green", "red", features.UNKNOWN)
    model = exports.save_model(tmp_path / "3", outputs=classes, facts={"classes": list(classes)})
    answer = predictions.Export(model).serve([exports.encoded("white", 0)])
    assert answer.labels == answer.said == [features.UNKNOWN] and answer.answered is None


def test_people_are_shown_unknown_and_the_best_guess(tmp_path, capsys):
    model = exports.save_model(
        tmp_path / "3",
        facts={"threshold": 0.5},
        outputs=("blue", "green", "red", features.UNKNOWN),
    )
    for name in ("red", "white"):
        (tmp_path / f"{name}.png").write_bytes(exports.encoded(name, 0))
    files = [tmp_path / "red.png", tmp_path / "white.png"]
    predict.command(files, None, model, 1, None, False)
    red, white = capsys.readouterr().out.splitlines()
    assert red.split("\t")[1].startswith("red ")
    assert white.split("\t")[1].startswith("unknown  white ")
    predict.command(files, None, model, 1, None, True)
    told = json.loads(capsys.readouterr().out)["predictions"]
    assert [one["label"] for one in told] == ["red", "unknown"]
    assert told[1]["top"][0]["label"] == "white" and told[1]["score"] > 0.5
    answers = [Prediction("red", 0.9, {"red": 0.9, "blue": 0.1}),
               Prediction("unknown", 0.6, {"red": 0.6, "blue": 0.4})]  # fmt: skip
    table = request._table(files, answers, 1)
    assert list(table.columns[1].cells) == ["red", "unknown", "red"]
    assert list(table.columns[2].cells) == ["0.9000", "", "0.6000"]
