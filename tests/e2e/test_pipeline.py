"""The whole pipeline on real files, through the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import ImageOps

from tests import made
from tests.e2e.command import STAGES, safelight

SET = ("--profile", "smoke", "--set", "train.epochs=4")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    counts = dict.fromkeys(made.HUES, 60)
    return made.class_folders(tmp_path_factory.mktemp("data") / "colours", counts)


@pytest.fixture(scope="module")
def first(data, tmp_path_factory):
    """A workdir in which one run has ended, and how it ended."""
    workdir = tmp_path_factory.mktemp("first") / "work"
    return workdir, safelight("run", data, "--workdir", workdir, *SET, "--json")


def test_a_folder_goes_in_and_a_served_model_comes_out(first):
    workdir, ended = first
    assert ended.code == 0, ended.stderr
    result = ended.result
    assert result["outcome"] == "pushed" and result["version"] == 1
    assert list(ended.states()) == STAGES and ended.stages_in("complete") == set(STAGES)
    assert sum(result["examples"].values()) == 240 and result["quarantined"] == 0
    assert result["metrics"]["accuracy"] > 0.9
    pushed = Path(result["pushed_to"])
    assert pushed == workdir / "serving" / "model" / "1"
    assert (pushed / "saved_model.pb").is_file()
    assert (pushed / "assets.extra" / "tf_serving_warmup_requests").stat().st_size > 0
    facts = json.loads((pushed / "assets.extra" / "model.json").read_text())
    assert facts["classes"] == sorted(made.HUES)
    registry = json.loads((workdir / "serving" / "model" / "registry.json").read_text())
    assert registry["current"] == 1 and registry["versions"][0]["run_id"] == result["run_id"]


def test_people_are_told_what_happened_and_not_what_tensorflow_says(first):
    workdir, ended = first
    for word in ("Pushed", "accuracy", "safelight predict", str(workdir / "serving")):
        assert word in ended.stderr
    for chatter in ("WARNING", "absl", "tensorflow/core", "INFO:"):
        assert chatter not in ended.stderr
    assert len(ended.stdout.splitlines()) == 1


def test_the_pushed_model_predicts(first, data, tmp_path):
    workdir, _ = first
    new = made.class_folders(tmp_path / "new", {"red": 3, "blue": 3})
    for path in new.rglob("*.png"):
        made.picture(path.parent.name, 1000 + int(path.stem)).save(path)
    output = tmp_path / "out.csv"
    ended = safelight("predict", new, "--workdir", workdir, "--output", output, "--json")
    assert ended.code == 0, ended.stderr
    rows = ended.result["predictions"]
    assert len(rows) == 6
    assert all(Path(row["path"]).parent.name == row["label"] for row in rows)
    assert len(output.read_text().splitlines()) == 7


def test_an_unchanged_second_run_is_all_cached_and_pushes_nothing(first, data):
    workdir, before = first
    ended = safelight("run", data, "--workdir", workdir, *SET, "--json")
    assert ended.code == 0, ended.stderr
    assert ended.stages_in("cached") == set(STAGES)
    assert ended.result["outcome"] == "unchanged" and ended.result["version"] == 1
    assert ended.result["pushed_to"] == before.result["pushed_to"]
    assert not (workdir / "serving" / "model" / "2").exists()


def test_a_threshold_that_is_not_reached_blocks_and_trains_nothing(first, data):
    workdir, _ = first
    # Not even a perfect model has a lower bound of 1 on so few images.
    ended = safelight(
        "run", data, "--workdir", workdir, *SET, "--set", "evaluate.min_accuracy=1.0", "--json"
    )
    assert ended.code == 3, ended.stderr
    assert ended.result["outcome"] == "not_blessed" and ended.result["pushed_to"] is None
    assert any("accuracy" in reason for reason in ended.result["reasons"])
    # ValidationGate asks whether so few images can show it, and TFMA validates it. The champion is
    # now version 1 where the first run had none: what compares runs again too.
    assert ended.stages_in("complete") <= {
        "ValidationGate",
        "Evaluator",
        "Predictor",
        "ServingCheck",
        "BlessingGate",
        "Pusher",
    }
    assert "BlessingGate" in ended.stages_in("complete")
    assert not (workdir / "serving" / "model" / "2").exists()


def test_a_change_of_training_leaves_the_data_cached(first, data):
    workdir, _ = first
    ended = safelight(
        "run", data, "--workdir", workdir, *SET, "--set", "train.learning_rate=0.002", "--json"
    )
    assert ended.code in (0, 3), ended.stderr
    untouched = STAGES[: STAGES.index("Trainer")]
    assert ended.stages_in("cached") == set(untouched)


def test_history_lists_the_runs(first):
    workdir, before = first
    ended = safelight("history", "--workdir", workdir)
    assert before.result["run_id"] in ended.stdout and "Pushed" in ended.stdout


def test_a_model_that_was_deleted_from_serving_is_pushed_again(first, data):
    workdir, _ = first
    shutil.rmtree(workdir / "serving")
    ended = safelight("run", data, "--workdir", workdir, *SET, "--json")
    assert ended.code == 0 and ended.result["outcome"] == "pushed", ended.stderr
    assert ended.stages_in("complete") == {"Pusher"}
    assert (workdir / "serving" / "model" / "1" / "saved_model.pb").is_file()


def test_new_images_rerun_everything_and_keep_the_class_order(first, data):
    """The last one: it changes the data of those before it."""
    workdir, _ = first
    (data / "amber").mkdir()
    for number in range(60):
        picture = ImageOps.invert(made.picture("white", number))
        picture.save(data / "amber" / f"{number:05d}.png")
    ended = safelight("run", data, "--workdir", workdir, *SET, "--json")
    assert ended.code == 0, ended.stderr
    assert "ImageExampleGen" in ended.stages_in("complete")
    facts = Path(ended.result["pushed_to"]) / "assets.extra" / "model.json"
    assert json.loads(facts.read_text())["classes"] == [*sorted(made.HUES), "amber"]
