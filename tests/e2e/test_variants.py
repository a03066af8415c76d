"""From a folder of images to exports/: variants beside the version that is served."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import made
from tests.e2e.command import safelight

NAMES = ["tflite-int8", "pruned"]


def settings(**more: object) -> list[str]:
    """Returns --set arguments; times say nothing on a busy machine."""
    given = {
        "train.preset": "mnist-cnn-small",
        "train.epochs": 4,
        "train.learning_rate": 0.01,
        "transform.normalize": "standard",
        "variants.prune_epochs": 1,
        "variants.max_drop": 0.1,
        "variants.max_latency_ratio": 100,
        "variants.names": json.dumps(NAMES),
        **more,
    }
    return [word for key, value in given.items() for word in ("--set", f"{key}={value}")]


@pytest.mark.slow
def test_from_a_folder_to_exports(tmp_path):
    data = made.class_folders(tmp_path / "data", dict.fromkeys(made.HUES, 60))
    workdir = tmp_path / "work"
    first = safelight("run", data, "--workdir", workdir, "--json", *settings())
    assert first.code == 0, first.stderr + first.stdout
    exports = {name: str(workdir / "exports" / name / "1") for name in NAMES}
    assert first.result["exports"] == exports
    told = json.loads(Path(exports["tflite-int8"], "published.json").read_text())
    assert told["blessed"] and told["run_id"] == first.result["run_id"]
    assert Path(exports["tflite-int8"], "labels.txt").read_text().split() == sorted(made.HUES)
    made.picture("red", 901).save(tmp_path / "red.png")
    asked = safelight("predict", tmp_path / "red.png", "--model", exports["pruned"], "--json")
    assert asked.result["predictions"][0]["label"] == "red", asked.stderr

    # Nothing has changed: all is found, nothing is made.
    again = safelight("run", data, "--workdir", workdir, "--json", *settings())
    assert again.code == 0 and again.result["outcome"] == "unchanged", again.stderr
    assert again.stages_in("complete") == set() and again.result["exports"] == exports

    # One more: it joins the version that is served.
    more = {"variants.names": json.dumps([*NAMES, "tflite-float16"])}
    third = safelight("run", data, "--workdir", workdir, "--json", *settings(**more))
    assert third.code == 0 and third.result["outcome"] == "unchanged", third.stderr
    assert third.stages_in("complete") == {"VariantMaker", "VariantPusher"}
    assert set(third.result["exports"]) == {*NAMES, "tflite-float16"}
    assert (workdir / "exports" / "tflite-float16" / "1" / "model.tflite").is_file()


@pytest.mark.slow
def test_a_model_that_is_not_blessed_has_no_variants(tmp_path):
    data = made.class_folders(tmp_path / "data", dict.fromkeys(made.HUES, 20))
    workdir = tmp_path / "work"
    ended = safelight(
        "run", data, "--workdir", workdir, "--json", *settings(**{"evaluate.min_accuracy": 1.0})
    )
    assert ended.code == 3 and ended.result["exports"] == {}, ended.stderr
    assert not (workdir / "exports").exists()
    assert ended.states()["VariantMaker"] == "complete"
