"""An export's answers: asked through its signatures, written, and read again."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline import features, predictions
from pipeline.errors import SafelightError
from tests import exports, made


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
