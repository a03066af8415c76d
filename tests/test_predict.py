"""`safelight predict`: which model is asked, which files, and what comes of bad ones."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import registry
from pipeline.commands import predict, predict_output
from pipeline.commands.predict_output import Prediction
from pipeline.errors import SafelightError, UsageError
from pipeline.evaluator.predictions import Export
from pipeline.registry import Origin
from pipeline.workdir import open_workdir
from tests import exports, made

ORIGIN = Origin(by="test", why="test", run_id="r", data="d", config="c", code="k")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return exports.save_model(tmp_path_factory.mktemp("export") / "3")


def assert_equal(one, other):
    np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-6)


@pytest.fixture
def photos(tmp_path):
    return made.class_folders(tmp_path / "photos", {"blue": 2, "red": 3})


def test_files_and_folders_in_order(photos, tmp_path):
    (photos / ".DS_Store").write_bytes(b"x")
    (photos / "notes.txt").write_text("x")
    alone = tmp_path / "alone.png"
    made.picture("green", 9).save(alone)
    found = predict.find_images([alone, photos])
    assert [path.name for path in found] == [
        "alone.png",
        "00000.png",
        "00001.png",
        "00000.png",
        "00001.png",
        "00002.png",
    ]
    assert [path.parent.name for path in found[1:]] == ["blue"] * 2 + ["red"] * 3


def test_nothing_to_predict(tmp_path):
    with pytest.raises(UsageError, match="There is no"):
        predict.find_images([tmp_path / "gone.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no images"):
        predict.find_images([tmp_path / "empty"])


def test_what_can_not_be_read_in_a_folder_is_told(model, photos):
    (photos / "red" / "00003.png").symlink_to("/nowhere.png")
    os.mkfifo(photos / "red" / "pipe.png")
    answers = list(predict.predict(predict.find_images([photos]), model))
    assert [one.reason for one in answers] == [None] * 5 + ["missing"]
    assert "link to nothing" in answers[-1].detail


def test_a_name_that_no_file_can_have_is_answered():
    with pytest.raises(UsageError, match="can't be read: File name too long"):
        predict.find_images([Path("x" * 300)])


def test_right_classes(model, photos):
    seen = []
    answers = list(
        predict.predict(predict.find_images([photos]), model, lambda *at: seen.append(at))
    )
    assert [one.label for one in answers] == ["blue"] * 2 + ["red"] * 3
    assert all(one.score is not None and one.score > 0.5 for one in answers)
    assert seen == [(5, 5)]


def test_as_ingest_sees_it(model, tmp_path):
    # TensorFlow can't read WebP and ignores EXIF: both go through images.prepare.
    picture = made.picture("red", 1, size=(40, 20))
    picture.save(tmp_path / "a.webp", lossless=True)
    picture.save(tmp_path / "b.png")
    answers = list(predict.predict([tmp_path / "a.webp", tmp_path / "b.png"], model))
    assert_equal(*answers)


def test_as_small_as_an_image_can_be(model, tmp_path):
    # ingest.min_side says what to train on, not what may be asked.
    made.picture("red", 1, size=(3, 1)).save(tmp_path / "small.png")
    [answer] = predict.predict([tmp_path / "small.png"], model)
    assert (answer.reason, answer.label) == (None, "red")


def test_bad_files_hinder_no_other(model, tmp_path):
    made.picture("red", 1).save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "page.jpg").write_text("<html></html>")
    names = ["empty.png", "good.png", "cut.png", "page.jpg", "gone.png"]
    answers = list(predict.predict([tmp_path / name for name in names], model))
    assert [one.reason for one in answers] == [
        "empty",
        None,
        "truncated",
        "not_an_image",
        "missing",
    ]
    assert answers[1].label == "red"
    assert answers[0].label is None and answers[0].score is None


def test_image_that_the_model_refuses(tmp_path):
    model = exports.save_model(tmp_path / "model", max_pixels=40 * 40)
    made.picture("red", 1, size=(60, 60)).save(tmp_path / "a.png")
    made.picture("blue", 1).save(tmp_path / "b.png")
    answers = list(predict.predict([tmp_path / "a.png", tmp_path / "b.png"], model))
    assert [one.reason for one in answers] == ["refused", None]
    assert answers[1].label == "blue"


def test_how_large_an_image_may_be_is_for_the_model_to_say(model, tmp_path, monkeypatch):
    # transform.max_pixels may have allowed more than is usual.
    monkeypatch.setattr(predict._prepare, "__defaults__", (1000,))
    made.picture("red", 1, size=(60, 60)).save(tmp_path / "a.png")
    small = exports.save_model(tmp_path / "model", max_pixels=40 * 40)
    assert [one.label for one in predict.predict([tmp_path / "a.png"], model)] == ["red"]
    assert [one.reason for one in predict.predict([tmp_path / "a.png"], small)] == ["refused"]


def test_batches_are_bounded_in_bytes_too(model, tmp_path, monkeypatch):
    made.class_folders(tmp_path, {"blue": 3, "red": 4})
    size = max(path.stat().st_size for path in tmp_path.glob("*/*"))
    monkeypatch.setattr(predict, "_BATCH_BYTES", 2 * size)
    asked = []
    serve = Export.serve
    monkeypatch.setattr(
        Export, "serve", lambda self, sent: asked.append(sum(map(len, sent))) or serve(self, sent)
    )
    answers = list(predict.predict(predict.find_images([tmp_path]), model))
    assert [one.label for one in answers] == ["blue"] * 3 + ["red"] * 4
    assert len(asked) >= 3 and max(asked) <= 2 * size


def test_csv_and_parquet(model, photos, tmp_path):
    (photos / "red" / "bad.png").write_bytes(b"")
    answers = list(predict.predict(predict.find_images([photos]), model))
    predict_output.write(tmp_path / "out.csv", answers, exports.CLASSES)
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["blue"] * 2 + ["red"] * 3 + [""]
    assert rows[-1]["reason"] == "empty"
    assert float(rows[0]["blue"]) == pytest.approx(answers[0].score)
    predict_output.write(tmp_path / "out.parquet", answers, exports.CLASSES)
    table = pq.read_table(tmp_path / "out.parquet")
    assert json.loads(table.schema.metadata[b"classes"]) == list(exports.CLASSES)
    assert table["label"].to_pylist()[-2:] == ["red", None]
    assert len(table["probabilities"][0].as_py()) == 4
    assert not list(tmp_path.glob(".out*"))


def test_a_class_called_as_another_column_hides_none(tmp_path):
    one = Prediction("a.png", "detail", np.array([0.9, 0.1], np.float32))
    predict_output.write(tmp_path / "out.csv", [one], ["detail", "whole"])
    with open(tmp_path / "out.csv", newline="") as file:
        [row] = csv.DictReader(file)
    assert (row["label"], row["detail"]) == ("detail", "")
    assert float(row["label: detail"]) == pytest.approx(0.9)
    assert float(row["whole"]) == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["out.xlsx", "nowhere/out.csv"])
def test_output_that_can_not_be(tmp_path, name):
    with pytest.raises(UsageError, match="--output"):
        predict_output.write(tmp_path / name, [], [])


def test_model_of_a_workdir(model, tmp_path):
    workdir = open_workdir(tmp_path / "work")
    with pytest.raises(UsageError, match="No model has been pushed"):
        predict.find_model(workdir.root)
    serving = workdir.serving("model")
    opened = registry.open(serving)
    opened.publish(model, ORIGIN)
    opened.publish(model, ORIGIN)
    assert predict.find_model(workdir.root) == serving / "2"
    # Also a workdir that was moved: its models stay usable.
    moved = tmp_path / "elsewhere"
    workdir.root.rename(moved)
    with pytest.raises(UsageError, match="--model"):
        predict.find_model(moved)
    assert predict.find_model(None, moved) == moved / "serving" / "model" / "2"
    assert predict.find_model(None, moved / "serving" / "model") == moved / "serving/model/2"
    assert predict.find_model(None, moved / "serving/model/1") == moved / "serving/model/1"
    registry.open(moved / "serving" / "other").root.mkdir()
    registry.open(moved / "serving" / "other").publish(model, ORIGIN)
    with pytest.raises(UsageError, match="several models: model, other"):
        predict.find_model(None, moved)


def test_no_model(tmp_path):
    with pytest.raises(UsageError, match="Which model"):
        predict.find_model(None)
    with pytest.raises(UsageError, match="There is no model in"):
        predict.find_model(None, tmp_path)
    with pytest.raises(UsageError, match="no directory"):
        predict.find_model(None, tmp_path / "gone")


def test_command(model, photos, capsys):
    (photos / "red" / "bad.png").write_bytes(b"")
    predict.command([photos], None, model, 2, None, as_json=False)
    out = capsys.readouterr()
    lines = out.out.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith(str(photos / "blue" / "00000.png") + "\tblue ")
    assert "5 images, 1 bad files" in out.err and "empty" in out.err


def test_command_json(model, photos, capsys, tmp_path):
    predict.command([photos], None, model, 2, tmp_path / "o.csv", as_json=True)
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [one["label"] for one in told["predictions"]] == ["blue"] * 2 + ["red"] * 3
    assert [len(one["top"]) for one in told["predictions"]] == [2] * 5
    assert told["bad"] == [] and (tmp_path / "o.csv").is_file()


def test_all_files_bad(model, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(SafelightError, match="Not one") as error:
        predict.command([tmp_path / "a.png"], None, model, 1, None, as_json=False)
    assert error.value.exit_code == 1 and "empty" in error.value.reasons[0]


def test_exif_rotation_is_seen(model, tmp_path):
    # The left half decides a quarter turn later: what is upright for people is what is asked.
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = made.HUES["red"]
    pixels[:, 16:] = made.HUES["blue"]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(np.rot90(pixels, -1)).save(tmp_path / "upright.png")
    answers = list(predict.predict([tmp_path / "turned.png", tmp_path / "upright.png"], model))
    assert_equal(*answers)
