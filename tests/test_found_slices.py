"""Slices that are found: buckets of real facts, floors that hold many at once, refused columns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import ImageEnhance

from pipeline import config as configuration
from pipeline.blessing import slices
from pipeline.blessing.buckets import found_in
from pipeline.config import Evaluate, Ingest
from pipeline.errors import ConfigError, DataRefused
from pipeline.evaluator.predictions import Predictions, read
from pipeline.ingest.scan import scan
from tests import made


def facts_of(images: int = 200, **columns) -> pa.Table:
    """Facts of made images: brightness from 0 up to 1, everything else as given."""
    held = {
        "id": pa.array([f"a/{row}.png".encode() for row in range(images)], pa.binary()),
        "label": pa.array(["a" if row % 2 else "b" for row in range(images)]),
        "brightness": pa.array(np.linspace(0, 1, images, dtype=np.float32)),
    }
    return pa.table({**held, **{name: pa.array(values) for name, values in columns.items()}})


def predictions_of(facts: pa.Table, right: np.ndarray, version: int | None = None) -> Predictions:
    """Predictions with these images right, bool [images]."""
    labels = facts["label"].to_pylist()
    predicted = [
        label if ok else "ab"[label == "a"] for label, ok in zip(labels, right, strict=True)
    ]
    rows = np.array([[0.9, 0.1] if name == "a" else [0.1, 0.9] for name in predicted], np.float32)
    ids = facts["id"].to_pylist()
    return Predictions("f", version, ("a", "b"), ids, labels, predicted, rows)


def names(buckets) -> list[tuple[str, str, int]]:
    return [(bucket.feature, bucket.name, len(bucket.rows)) for bucket in buckets]


def test_numbers_are_cut_at_the_quartiles_and_the_name_has_the_edges():
    assert names(found_in(facts_of(), None, 30)) == [
        ("brightness", "below 0.251", 50),
        ("brightness", "0.251 to 0.503", 50),
        ("brightness", "0.503 to 0.754", 50),
        ("brightness", "from 0.754", 50),
    ]


def test_cuts_that_fall_together_are_one_and_small_buckets_join_their_neighbour():
    sizes = [28] * 150 + [64] * 40 + [65] * 10
    facts = facts_of(width=sizes, height=sizes[::-1]).drop(["brightness"])
    # The shorter side is 28 for all but none is cut off: one size says nothing.
    assert found_in(facts, None, 30) == []
    facts = facts_of(width=sizes, height=[90] * 200).drop(["brightness"])
    assert names(found_in(facts, None, 30)) == [
        ("resolution", "below 64", 150),
        ("resolution", "from 64", 50),
    ]
    assert found_in(facts, None, 60) == []


def test_edges_that_print_alike_get_more_digits():
    close = (0.5 + np.arange(200) / 1e6).astype(np.float64)
    found = found_in(facts_of(contrast=close), ["contrast"], 30)
    assert len({bucket.name for bucket in found}) == 4


def test_columns_of_a_manifest_and_their_rare_values():
    cameras = ["A"] * 120 + ["B"] * 70 + ["C"] * 10
    shadows = [None] * 100 + ["brightness"] * 100
    facts = facts_of(slice_camera=cameras, slice_brightness=shadows)
    assert names(found_in(facts, ["camera"], 30)) == [("camera", "A", 120), ("camera", "B", 70)]
    # A column that is called like a fact keeps its prefix.
    assert names(found_in(facts, ["slice_brightness"], 30)) == [
        ("slice_brightness", "(missing)", 100),
        ("slice_brightness", "brightness", 100),
    ]
    assert len({bucket.feature for bucket in found_in(facts, None, 30)}) == 3


def test_a_column_of_many_values_keeps_the_twenty_most_frequent():
    values = [str(row % 25) for row in range(1000)] + ["often"] * 100
    assert len(found_in(facts_of(1100, slice_day=values), ["day"], 30)) == 20


def test_sources_are_folders_and_archives_but_not_classes():
    def sources(ids: list[str]) -> set[str]:
        facts = facts_of(len(ids)).drop(["id"])
        held = facts.append_column("id", pa.array([name.encode() for name in ids], pa.binary()))
        return {bucket.name for bucket in found_in(held, ["source"], 30)}

    labels = ["b", "a"] * 60
    by_class = [f"{label}/{row}.png" for row, label in enumerate(labels)]
    assert sources(by_class) == set()
    inner = [f"test/{label}/cam{row % 3}/{row}.png" for row, label in enumerate(labels)]
    assert sources(inner) == {"cam0", "cam1", "cam2"}
    archives = [
        f"{'old' if row < 60 else 'new'}-0000{row % 2}-of-00002#{row}" for row in range(120)
    ]
    assert sources(archives) == {"old", "new"}


def test_spans_of_a_window_are_slices():
    spans = [
        {"name": "span-1", "golden": False, "judged": False, "examples": {"train": 9, "test": 7}},
        {"name": "golden", "golden": True, "judged": True, "examples": {"train": 60, "test": 40}},
        {"name": "span-2", "golden": False, "judged": True, "examples": {"train": 9, "test": 100}},
    ]
    found = found_in(slices.with_spans(facts_of(), spans), ["span"], 30)
    assert {bucket.name: bucket.rows[0] for bucket in found} == {"golden": 0, "span-2": 100}


def test_the_worst_slice_comes_first_and_holds_nothing_up():
    facts = facts_of(400)
    right = np.arange(400) >= 60  # the 60 darkest are wrong
    checks, told = slices.judge(predictions_of(facts, right), None, facts, Evaluate())
    assert checks == []
    first = told["slices"][0]
    assert (first["feature"], first["bucket"], first["examples"]) == (
        "brightness",
        "below 0.251",
        100,
    )
    assert first["accuracy"] == 0.4 and first["lower"] < 0.4 < first["upper"] < 0.5
    assert first["champion"] is None and first["passed"]
    assert [row["accuracy"] for row in told["slices"][1:]] == [1, 1, 1]
    json.dumps(told, allow_nan=False)


def test_a_floor_is_held_to_each_slice():
    facts = facts_of(400)
    predictions = predictions_of(facts, np.arange(400) >= 60)
    [check], told = slices.judge(predictions, None, facts, Evaluate(min_slice_accuracy=0.6))
    assert not check.passed and (check.name, check.value) == ("slices", 0.4)
    # The bound holds for all four together, the interval for this one.
    assert check.interval is not None and check.interval[1] < check.bound < check.threshold == 0.6
    assert "(for 4 slices together) at most 51.69%" in check.message
    assert "brightness below 0.251" in check.message
    assert "evaluate.min_slice_accuracy" in check.message
    assert [row["passed"] for row in told["slices"]] == [False, True, True, True]
    [check], _ = slices.judge(predictions, None, facts, Evaluate(min_slice_accuracy=0.45))
    assert check.passed and check.value == 0.4  # 40 of 100 may be 45 % by luck


def test_luck_among_many_slices_is_no_finding():
    # 34 of 50 right, where 80 % are expected, come by luck to one camera in thirty: and there are
    # twenty of them.
    cameras = np.repeat(np.arange(20), 50)
    right = np.tile(np.arange(50) < 41, 20)
    right[:50] = np.arange(50) < 34
    facts = facts_of(1000, slice_camera=[str(name) for name in cameras]).drop(["brightness"])
    predictions = predictions_of(facts, right)
    [check], _ = slices.judge(predictions, None, facts, Evaluate(min_slice_accuracy=0.8))
    assert check.passed and check.value == 0.68
    assert check.interval is not None and check.bound is not None
    assert check.interval[1] < 0.8 <= check.bound  # but for the correction, it would fail


def test_a_loss_against_the_champion_on_one_slice():
    facts = facts_of(400)
    ours = np.arange(400) >= 30
    theirs = np.ones(400, np.bool_)
    theirs[200:230] = False  # all in all, the models are equally good
    champion = predictions_of(facts, theirs, version=3)
    options = Evaluate(max_slice_regression=0.1)
    [check], told = slices.judge(predictions_of(facts, ours), champion, facts, options)
    assert not check.passed and check.name == "slice_regression"
    assert check.value == check.bound == pytest.approx(-0.3) and check.threshold == -0.1
    assert told["slices"][0]["champion"] == 1.0 and not told["slices"][0]["passed"]
    [check], _ = slices.judge(
        predictions_of(facts, ours), champion, facts, Evaluate(max_slice_regression=0.4)
    )
    assert check.passed
    # Three images lost are no certain loss, whatever the margin.
    few = np.arange(400) >= 3
    [check], _ = slices.judge(
        predictions_of(facts, few), champion, facts, Evaluate(max_slice_regression=0.0)
    )
    assert check.passed


def test_floors_fail_where_nothing_is_known_about_the_images():
    facts = facts_of()
    predictions = predictions_of(facts, np.ones(200, np.bool_))
    assert slices.judge(predictions, None, None, Evaluate()) == ([], {})
    [check], _ = slices.judge(predictions, None, None, Evaluate(min_slice_accuracy=0.1))
    assert not check.passed and "images.parquet" in check.message
    [check], _ = slices.judge(predictions, None, facts[::-1], Evaluate(min_slice_accuracy=0.1))
    assert not check.passed
    [check], told = slices.judge(
        predictions, None, facts, Evaluate(min_slice_accuracy=0.1, min_slice_images=150)
    )
    assert check.passed and "none was judged" in check.message and told == {"slices": []}


def test_slices_can_be_switched_off():
    facts = facts_of()
    predictions = predictions_of(facts, np.ones(200, np.bool_))
    assert slices.judge(predictions, None, facts, Evaluate(slices=())) == ([], {})
    with pytest.raises(ConfigError, match="nothing would be judged"):
        configuration.load(overrides=["evaluate.slices=[]", "evaluate.min_slice_accuracy=0.5"])


def test_ten_thousand_images_of_many_words():
    words = [f"camera{row % 12}" for row in range(10_000)]
    more = {name: np.random.default_rng(1).random(10_000) for name in ("contrast", "sharpness")}
    facts = facts_of(10_000, slice_camera=words, **more)
    predictions = predictions_of(facts, np.arange(10_000) % 7 > 0)
    _, told = slices.judge(predictions, predictions, facts, Evaluate(min_slice_accuracy=0.5))
    assert len(told["slices"]) == 24


# What evaluate.slices asks of the data.


def test_a_column_that_is_sliced_by_is_carried_along():
    effective = configuration.load(overrides=['evaluate.slices=["brightness","camera"]'])
    assert effective.config.ingest.slices == ("camera",)
    with pytest.raises(ConfigError, match="Did you mean 'sharpness'"):
        configuration.load(overrides=['evaluate.slices=["sharpnes"]', "ingest.form=folders"])


def test_a_column_that_is_not_there_is_refused_before_anything_is_read(tmp_path):
    root = made.class_folders(tmp_path / "data", {"red": 3, "blue": 3})
    with pytest.raises(DataRefused, match="no manifest.*Did you mean 'brightness'"):
        scan(str(root), Ingest(slices=("brighness",)))
    rows = [f"{label}/0000{number}.png" for label in ("red", "blue") for number in range(3)]
    table = "\n".join(["path,label,camera", *(f"{row},{row.split('/')[0]},A" for row in rows)])
    (root / "manifest.csv").write_text(table)
    assert scan(str(root), Ingest(slices=("camera",))).files == 6
    with pytest.raises(DataRefused, match="no column 'camra'.*Did you mean 'camera'"):
        scan(str(root), Ingest(slices=("camra",)))
    (root / "manifest.csv").unlink()
    lines = [json.dumps({"path": row, "label": row.split("/")[0], "camera": "A"}) for row in rows]
    (root / "manifest.jsonl").write_text("\n".join(lines))
    assert scan(str(root), Ingest(slices=("camera",))).files == 6
    with pytest.raises(DataRefused, match="no column 'camra'.*Did you mean 'camera'"):
        scan(str(root), Ingest(slices=("camra",)))


# From image files to the slice that the model fails on.


def write_dark_and_bright(root: Path) -> Path:
    """Writes white and green pictures; every fourth is dark, and of another camera."""
    lines = ["path,label,split,camera"]
    for label in ("white", "green"):
        (root / label).mkdir(parents=True)
        for number in range(100):
            dark = number % 4 == 0
            image = made.picture(label, number)
            if dark:
                image = ImageEnhance.Brightness(image).enhance(0.3)
            image.save(root / label / f"{number:03d}.png")
            split = {0: "train", 1: "val"}.get(number // 10, "test")
            camera = "night" if dark else "day"
            lines.append(f"{label}/{number:03d}.png,{label},{split},{camera}")
    (root / "manifest.csv").write_text("\n".join(lines))
    return root


def test_a_model_that_fails_in_the_dark_is_found(tmp_path):
    from tfx.types.standard_artifacts import Model

    from components import artifacts
    from components.predictor import Predictor
    from tests import exports
    from tests.ingested import ingest

    root = write_dark_and_bright(tmp_path / "data")
    found = ingest(root, tmp_path / "ingested", slices=["camera"])
    # It tells colours apart by their distance: a dark white is nearer to green.
    exports.save_model(tmp_path / "model" / "Format-Serving", classes=("green", "white"))
    Predictor.test_call(
        examples=found.artifact,
        model=exports.artifact(Model, tmp_path / "model"),
        predictions=exports.artifact(artifacts.Predictions, tmp_path / "predictions"),
        champion_predictions=exports.artifact(artifacts.Predictions, tmp_path / "champion"),
        champion="",
        code="",
    )
    predictions = read(tmp_path / "predictions")
    assert predictions is not None and len(predictions.ids) == 160
    table = pq.read_table(found.report / "images.parquet")
    facts = table.filter(pc.equal(table["split"], "test"))
    options = Evaluate(min_slice_accuracy=0.8)
    [check], told = slices.judge(predictions, None, facts, options)
    assert not check.passed
    blamed = {(row["feature"], row["bucket"]) for row in told["slices"] if not row["passed"]}
    assert ("camera", "night") in blamed
    assert any(name == "brightness" and bucket.startswith("below") for name, bucket in blamed)
    assert ("camera", "day") not in blamed
    assert told["slices"][0]["accuracy"] == pytest.approx(0.5, abs=0.05)
