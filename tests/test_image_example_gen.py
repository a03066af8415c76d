"""ImageExampleGen as TFX runs it: real files in, shards and reports out, read by TFX's readers."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tfx.components.util import tfxio_utils
from tfx.types import artifact_utils, standard_artifacts

from components.image_example_gen import ImageExampleGen
from pipeline import events, features, images
from pipeline.errors import DataRefused
from pipeline.runs import RunDir
from tests.ingested import ingest
from tests.made import class_folders, picture


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of 120 images in three classes, with bad ones, and what ingest made of it."""
    root = class_folders(tmp_path_factory.mktemp("data"), {"red": 40, "green": 40, "blue": 40})
    (root / "red" / "empty.jpg").write_bytes(b"")
    (root / "blue" / "page.jpg").write_text("<!DOCTYPE html><html>Not found</html>")
    (root / "labels.cache").write_bytes(b"stray")
    (root / "red" / "Thumbs.db").write_bytes(b"stray")
    shutil.copy(root / "green" / "00001.png", root / "green" / "copy.png")
    return root, ingest(root, tmp_path_factory.mktemp("out"))


def test_every_file_is_accounted_for(folders):
    _, made = folders
    summary = made.summary
    assert summary["form"] == "folders"
    assert summary["classes"] == ["blue", "green", "red"]
    assert sum(summary["examples"].values()) == 120
    assert summary["quarantine_reasons"] == {"empty": 1, "not_an_image": 1}
    assert summary["duplicates"] == 1
    assert sorted(summary["ignored"]) == ["labels.cache", "red/Thumbs.db"]
    assert summary["files"] == 120 + summary["quarantined"] + summary["duplicates"]
    per_class = summary["per_class"]
    assert {name: sum(counts.values()) for name, counts in per_class.items()} == {
        "blue": 40,
        "green": 40,
        "red": 40,
    }
    assert made.reasons() == {b"red/empty.jpg": "empty", b"blue/page.jpg": "not_an_image"}


def test_tfx_readers_read_the_shards(folders):
    _, made = folders
    assert artifact_utils.decode_split_names(made.artifact.split_names) == list(features.SPLITS)
    factory = tfxio_utils.get_record_batch_factory_from_artifact([made.artifact], ["test"])
    from tfx_bsl.tfxio import dataset_options

    pattern = [str(Path(made.artifact.uri) / "Split-train" / "*")]
    options = dataset_options.RecordBatchesOptions(batch_size=32, num_epochs=1)
    batches = list(factory(pattern, options, None))
    assert sum(batch.num_rows for batch in batches) == made.summary["examples"]["train"]
    assert {"image", "label", "id", "sha256", "height", "brightness"} <= set(
        batches[0].schema.names
    )


def test_examples_hold_the_files_and_true_facts(folders):
    root, made = folders
    for split in features.SPLITS:
        records = made.records(split)
        assert len(records) == made.summary["examples"][split]
        for example in records:
            feature = example.features.feature
            path = root / os.fsdecode(feature["id"].bytes_list.value[0])
            data = path.read_bytes()
            assert feature["image"].bytes_list.value[0] == data
            assert feature["label"].bytes_list.value[0].decode() == path.parent.name
            pixels = np.asarray(Image.open(path)).astype(np.float64) / 255
            assert feature["height"].int64_list.value[0] == 32
            assert feature["channels"].int64_list.value[0] == 3
            assert feature["byte_size"].int64_list.value[0] == len(data)
            np.testing.assert_allclose(
                feature["channel_mean"].float_list.value, pixels.mean((0, 1)), rtol=1e-5
            )
            np.testing.assert_allclose(
                feature["channel_std"].float_list.value, pixels.std((0, 1)), rtol=1e-5
            )
            expected = images.digest(images.prepare(data).pixels).hex()
            assert feature["sha256"].bytes_list.value[0].decode() == expected


def test_images_parquet_agrees_with_the_shards(folders):
    _, made = folders
    rows = made.table("images")
    in_shards = [
        (example.features.feature["id"].bytes_list.value[0], split)
        for split in features.SPLITS
        for example in made.records(split)
    ]
    assert sorted((row["id"], row["split"]) for row in rows) == sorted(in_shards)
    assert Counter(row["format"] for row in rows) == {"png": 120}
    assert all(0 < row["brightness"] < 1 and row["sharpness"] > 0 for row in rows)


def test_the_same_data_gives_the_same_bytes(folders, tmp_path):
    root, made = folders
    assert ingest(root, tmp_path, workers=2).digest() == made.digest()


def test_new_images_move_none_of_the_others(folders, tmp_path):
    root, made = folders
    more = tmp_path / "more"
    shutil.copytree(root, more)
    for number in range(100, 120):
        picture("white", number).save(more / "red" / f"a{number}.png")
    after = ingest(more, tmp_path / "out").split_of()
    before = made.split_of()
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 20


def test_known_classes_keep_their_order(tmp_path):
    root = class_folders(tmp_path / "data", {"red": 30, "blue": 30, "green": 30})
    made = ingest(root, tmp_path / "out", known_classes=("red", "yellow", "green"))
    assert made.summary["classes"] == ["red", "yellow", "green", "blue"]
    assert made.summary["per_class"]["yellow"] == {"train": 0, "eval": 0, "test": 0}


def test_too_many_bad_files_are_refused_and_nothing_is_left(tmp_path):
    root = class_folders(tmp_path / "data", {"red": 30, "blue": 30})
    for number in range(6):
        (root / "red" / f"bad{number}.png").write_bytes(b"no image at all")
    with pytest.raises(DataRefused, match=r"6 of 66 files are bad \(9\.1%\)") as caught:
        ingest(root, tmp_path / "out")
    assert caught.value.reasons[0].startswith("6 not_an_image: red/bad0.png")
    assert list((tmp_path / "out" / "examples").iterdir()) == []
    assert list((tmp_path / "out" / "report").iterdir()) == []
    made = ingest(root, tmp_path / "out", error_budget=0.1)
    assert made.summary["quarantined"] == 6


def test_what_was_refused_stays_with_the_run(tmp_path):
    root = class_folders(tmp_path / "data", {"red": 30, "blue": 30})
    for number in range(6):
        (root / "red" / f"bad{number}.png").write_bytes(b"no image at all")
    run = RunDir(tmp_path / "run")
    run.root.mkdir()
    events.configure(run.events)
    try:
        with pytest.raises(DataRefused):
            ingest(root, tmp_path / "out")
    finally:
        events.configure(None)
    kept = run.refused("ImageExampleGen", "ingest_report")
    assert json.loads((kept / "summary.json").read_text())["quarantined"] == 6
    assert pq.read_table(kept / "quarantine.parquet").num_rows == 6
    assert list((tmp_path / "out" / "report").iterdir()) == []


def test_a_split_left_empty_is_refused(tmp_path):
    root = class_folders(tmp_path / "data", {"red": 2, "blue": 2})
    with pytest.raises(DataRefused, match="split is empty: 4 images"):
        ingest(root, tmp_path / "out", split="98/1/1")


def test_the_component_has_its_contract():
    node = ImageExampleGen(data="d", fingerprint="f", known_classes="[]", options="{}", code="c")
    assert node.id == "ImageExampleGen"
    assert set(node.outputs) == {"examples", "ingest_report"}
    assert node.outputs["examples"].type is standard_artifacts.Examples
