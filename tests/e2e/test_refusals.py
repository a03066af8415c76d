"""What can't be run gets a clear answer: a line, an exit code, no traceback."""

from __future__ import annotations

import json

import pytest

from tests import made
from tests.e2e.command import safelight


@pytest.fixture
def data(tmp_path):
    return made.class_folders(tmp_path / "colours", {"red": 4, "blue": 4})


def refused(ended, code: int, *words: str) -> None:
    assert ended.code == code, ended.stderr
    assert "Traceback" not in ended.stderr
    text = " ".join(ended.stderr.split())
    for word in words:
        assert word in text, text


def test_no_such_folder(tmp_path):
    workdir = tmp_path / "work"
    ended = safelight("run", tmp_path / "nowhere", "--workdir", workdir, "--json")
    refused(ended, 4, "nowhere")
    assert ended.result["outcome"] == "invalid_data" and ended.result["reasons"]
    assert not workdir.exists()


def test_no_class(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(safelight("run", tmp_path / "empty", "--workdir", tmp_path / "work"), 4, "empty")


def test_one_class(tmp_path):
    data = made.class_folders(tmp_path / "colours", {"red": 4})
    refused(safelight("run", data, "--workdir", tmp_path / "work"), 4, "red", "two")


def test_an_empty_split(tmp_path):
    made.class_folders(tmp_path / "colours" / "train", {"red": 4, "blue": 4})
    (tmp_path / "colours" / "test" / "red").mkdir(parents=True)
    refused(safelight("run", tmp_path / "colours", "--workdir", tmp_path / "work"), 4, "test")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epoch=3", ("train.epoch", "Did you mean 'epochs'?")),
        ("trian.epochs=3", ("trian", "Did you mean 'train'?")),
        ("train.epochs=many", ("train.epochs", "many", "integer")),
        ("train.preset=mnist-cn", ("mnist-cn", "Did you mean 'mnist-cnn'?")),
        ("ingest.split=70/30", ("ingest.split", "70/10/20")),
        ("epochs", ("section.key=value",)),
    ],
)
def test_a_wrong_key_or_value(data, tmp_path, override, words):
    ended = safelight("run", data, "--workdir", tmp_path / "work", "--set", override)
    refused(ended, 2, *words)


def test_an_unknown_profile(data, tmp_path):
    ended = safelight("run", data, "--workdir", tmp_path / "work", "--profile", "smok")
    refused(ended, 2, "Did you mean 'smoke'?")


def test_a_workdir_that_is_something_else(data, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    refused(safelight("run", data, "--workdir", tmp_path / "mine"), 2, "mine", "safelight.json")


def test_a_workdir_from_elsewhere(data, tmp_path):
    (tmp_path / "moved").mkdir()
    marker = {"format": 1, "path": "/somewhere/else"}
    (tmp_path / "moved" / "safelight.json").write_text(json.dumps(marker))
    refused(safelight("run", data, "--workdir", tmp_path / "moved"), 2, "/somewhere/else")


def test_history_without_a_workdir(tmp_path):
    refused(safelight("history", "--workdir", tmp_path / "none"), 2, "none", "safelight run")


def test_predict_without_a_model(data, tmp_path):
    refused(safelight("predict", data, "--model", tmp_path / "none"), 2, "none")


def test_debug_shows_where_it_came_from(tmp_path):
    ended = safelight("--debug", "history", "--workdir", tmp_path / "none")
    assert ended.code == 2 and "Traceback" in ended.stderr
