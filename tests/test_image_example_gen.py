"""ImageExampleGen as TFX runs it: real files in, shards and reports out, read by TFX's readers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from PIL import Image
from tfx.components.util import tfxio_utils
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.types import artifact_utils, standard_artifacts

from components.artifacts import IngestReport
from components.image_example_gen import Executor, ImageExampleGen
from pipeline import features, images
from pipeline.config import Ingest
from pipeline.errors import DataRefused
from pipeline.ingest import wire
from pipeline.ingest.scan import scan
from tests import pictures
from tests.made import class_folders, picture

BEAM_ARGS = ["--runner=DirectRunner", "--direct_running_mode=in_memory"]


@dataclass(frozen=True)
class Ingested:
    """The artifacts of one ingest, opened."""

    artifact: standard_artifacts.Examples
    report: Path
    summary: dict[str, Any]

    def shards(self, split: str) -> list[Path]:
        return sorted((Path(self.artifact.uri) / f"Split-{split}").iterdir())

    def records(self, split: str) -> list[tf.train.Example]:
        paths = [str(path) for path in self.shards(split)]
        return [
            tf.train.Example.FromString(record.numpy()) for record in tf.data.TFRecordDataset(paths)
        ]

    def table(self, name: str) -> list[dict[str, Any]]:
        return pq.read_table(self.report / f"{name}.parquet").to_pylist()

    def split_of(self) -> dict[bytes, str]:
        return {row["id"]: row["split"] for row in self.table("images")}

    def reasons(self) -> dict[bytes, str]:
        return {row["path"]: row["reason"] for row in self.table("quarantine")}

    def digest(self) -> str:
        total = hashlib.sha256()
        for split in features.SPLITS:
            for path in self.shards(split):
                total.update(path.name.encode() + path.read_bytes())
        return total.hexdigest()


def ingest(data: Path, out: Path, known_classes: tuple[str, ...] = (), **options: Any) -> Ingested:
    """Runs the executor as the component would."""
    settings = Ingest(**options)
    examples, report = standard_artifacts.Examples(), IngestReport()
    examples.uri, report.uri = str(out / "examples"), str(out / "report")
    executor = Executor(
        BaseBeamExecutor.Context(make_beam_pipeline_fn=lambda: beam.Pipeline(argv=BEAM_ARGS))
    )
    executor.Do(
        {},
        {"examples": [examples], "ingest_report": [report]},
        {
            "data": str(data),
            "fingerprint": scan(str(data), settings).fingerprint,
            "known_classes": json.dumps(known_classes),
            "options": settings.model_dump_json(),
            "code": "test",
        },
    )
    summary = json.loads((out / "report" / "summary.json").read_text())
    return Ingested(examples, out / "report", summary)


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


def test_a_split_left_empty_is_refused(tmp_path):
    root = class_folders(tmp_path / "data", {"red": 2, "blue": 2})
    with pytest.raises(DataRefused, match="split is empty: 4 images"):
        ingest(root, tmp_path / "out", split="98/1/1")


def test_given_splits_are_kept_and_one_held_out_becomes_test(tmp_path):
    for name, start in (("train", 0), ("validation", 100)):
        for label in ("red", "blue"):
            folder = tmp_path / "data" / name / label
            folder.mkdir(parents=True)
            for number in range(40):
                picture(label, start + number).save(folder / f"{number}.png")
    made = ingest(tmp_path / "data", tmp_path / "one")
    splits = made.split_of()
    assert made.summary["form"] == "splits"
    assert {split for name, split in splits.items() if name.startswith(b"validation")} == {"test"}
    trained = Counter(split for name, split in splits.items() if name.startswith(b"train"))
    assert set(trained) == {"train", "eval"} and trained["train"] > 4 * trained["eval"] / 2
    for label in ("red", "blue"):
        target = tmp_path / "data" / "test" / label
        target.mkdir(parents=True)
        for number in range(10):
            shutil.copy(tmp_path / "data" / "validation" / label / f"{number}.png", target)
    both = ingest(tmp_path / "data", tmp_path / "two")
    # What stands in test too is dropped from the training side, which here is eval.
    assert both.summary["split_duplicates"] == 20
    assert both.summary["examples"] == {"train": 80, "eval": 60, "test": 20}
    pairs = [row for row in both.table("duplicates") if row["kind"] == "split_duplicate"]
    assert {(row["split"], row["other_split"], row["dropped"]) for row in pairs} == {
        ("eval", "test", True)
    }


def test_contradictions_are_quarantined_and_both_named(tmp_path):
    root = class_folders(tmp_path / "data", {"red": 40, "blue": 40})
    shutil.copy(root / "red" / "00003.png", root / "blue" / "same.png")
    made = ingest(root, tmp_path / "out")
    assert made.reasons() == {
        b"red/00003.png": "label_conflict",
        b"blue/same.png": "label_conflict",
    }
    details = [row["detail"] for row in made.table("quarantine")]
    assert details == [
        "the same pixels stand under 'red' too: red/00003.png",
        "the same pixels stand under 'blue' too: blue/same.png",
    ]
    assert not made.split_of().keys() & made.reasons().keys()
    assert sum(made.summary["examples"].values()) == 79


def test_a_manifest_with_groups_targets_and_slices(tmp_path):
    root = class_folders(tmp_path / "data", {"red": 60, "blue": 60})
    lines = ["path,label,group,severity,camera"]
    for label in ("red", "blue"):
        for number in range(60):
            group = "" if number % 5 == 0 else f"{label}{number // 6}"
            lines.append(f"{label}/{number:05d}.png,{label},{group},{number / 10},cam{number % 3}")
    # The same picture in two groups, and once more without a group.
    shutil.copy(root / "red" / "00001.png", root / "red" / "twin.png")
    shutil.copy(root / "red" / "00002.png", root / "red" / "again.png")
    lines += ["red/twin.png,red,other,1,cam0", "red/again.png,red,,1,cam0"]
    (root / "manifest.csv").write_text("\n".join(lines))
    made = ingest(root, tmp_path / "out", targets=["severity"], slices=["camera"])
    assert made.summary["form"] == "manifest"
    assert made.summary["quarantine_reasons"] == {"group_conflict": 2}
    assert made.summary["duplicates"] == 1
    by_group: dict[str, set[str]] = {}
    for row in made.table("images"):
        if row["group"] is not None:
            by_group.setdefault(row["group"], set()).add(row["split"])
    assert len(by_group) == 20 and all(len(found) == 1 for found in by_group.values())
    assert len({split for found in by_group.values() for split in found}) > 1
    kept = {row["id"] for row in made.table("images")}
    assert b"red/00002.png" in kept and b"red/again.png" not in kept
    row = next(row for row in made.table("images") if row["id"] == b"blue/00007.png")
    assert (row["target_severity"], row["slice_camera"], row["group"]) == (0.7, "cam1", "blue1")
    example = next(
        example
        for example in made.records(row["split"])
        if example.features.feature["id"].bytes_list.value[0] == b"blue/00007.png"
    )
    feature = example.features.feature
    assert feature["target_severity"].float_list.value[0] == pytest.approx(0.7)
    assert feature["slice_camera"].bytes_list.value[0] == b"cam1"
    assert feature["group"].bytes_list.value[0] == b"blue1"


def test_a_group_that_stands_in_two_given_splits_leaves_the_training_side(tmp_path):
    root = class_folders(tmp_path / "data", {"red": 30, "blue": 30})
    lines = ["path,label,group,split"]
    for label in ("red", "blue"):
        for number in range(30):
            split = ("train", "train", "val", "test")[number % 4]
            lines.append(f"{label}/{number:05d}.png,{label},{label}{number // 15}-{split},{split}")
    lines = [line.replace("red0-train", "red0-test") for line in lines]
    (root / "manifest.csv").write_text("\n".join(lines))
    made = ingest(root, tmp_path / "out")
    dropped = sum("red0-test,train" in line for line in lines)
    assert made.summary["group_straddles"] == dropped > 0
    splits = {row["split"] for row in made.table("images") if row["group"] == "red0-test"}
    assert splits == {"test"}


@pytest.mark.parametrize("packed", [False, True])
def test_records_of_another_pipeline_are_read(tmp_path, packed):
    options = tf.io.TFRecordOptions(compression_type="GZIP" if packed else "")
    for name, start in (("train", 0), ("validation", 100)):
        path = tmp_path / "data" / f"{name}-00000-of-00001"
        path.parent.mkdir(exist_ok=True)
        with tf.io.TFRecordWriter(str(path), options) as writer:
            for number in range(60):
                label = ("red", "blue")[number % 2]
                image = pictures.encoded(picture(label, start + number), "JPEG")
                values = {
                    "image/encoded": [image if number != 7 else b"damaged"],
                    "image/class/text": [label.encode()] if number != 9 else [],
                    "image/class/label": [number % 2] if number != 9 else [],
                }
                writer.write(wire.pack(values))
    made = ingest(tmp_path / "data", tmp_path / "out")
    summary = made.summary
    assert (summary["form"], summary["classes"]) == ("tfrecords", ["blue", "red"])
    assert summary["quarantine_reasons"] == {"no_label": 2, "not_an_image": 2}
    assert sum(summary["examples"].values()) == 116 and summary["examples"]["test"] == 58
    assert all(
        name.startswith(b"train-00000-of-00001#")
        for name, split in made.split_of().items()
        if split == "train"
    )


def test_records_with_features_of_other_names(tmp_path):
    path = tmp_path / "data" / "mine.tfrecord"
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for number in range(60):
            image = pictures.encoded(picture(("red", "blue")[number % 2], number), "PNG")
            writer.write(
                wire.pack({"jpg": [image], "cls": [number % 2], "who": [b"%d" % (number // 4)]})
            )
    names = {"record_image": "jpg", "record_label": "cls", "record_group": "who"}
    made = ingest(path, tmp_path / "out", **names)
    assert made.summary["classes"] == ["0", "1"]
    assert len({row["group"] for row in made.table("images")}) == 15
    with pytest.raises(DataRefused, match="60 unreadable"):
        ingest(path, tmp_path / "again")


def test_records_with_several_labels_are_refused_by_name(tmp_path):
    path = tmp_path / "data" / "mine.tfrecord"
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        image = pictures.encoded(picture("red", 1), "PNG")
        writer.write(wire.pack({"image/encoded": [image], "label": [b"cat", b"dog"]}))
    with pytest.raises(DataRefused, match="multi-label data"):
        ingest(path, tmp_path / "out")


def near_twins(root: Path) -> Path:
    """Writes split folders in which ten images of test are recompressed ones of train."""
    for label in ("red", "blue"):
        for split, start, end in (("train", 0, 40), ("val", 50, 60), ("test", 70, 80)):
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(start, end):
                source = scene(label, number)
                source.save(folder / f"{number}.png")
        for number in range(5):
            source = scene(label, number)
            source.resize((80, 80)).save(root / "test" / label / f"twin{number}.jpg", quality=80)
    return root


def scene(label: str, number: int) -> Image.Image:
    """Returns a picture with large shapes, as photographs have and noise has not."""
    rng = np.random.default_rng([number, len(label)])
    small = rng.integers(0, 256, (5, 5, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC)


def test_near_duplicates_are_reported_dropped_or_left_alone(tmp_path):
    root = near_twins(tmp_path / "data")
    reported = ingest(root, tmp_path / "report")
    assert reported.summary["near_duplicates"] == {"mode": "report", "pairs": 10, "dropped": 0}
    rows = [row for row in reported.table("duplicates") if row["kind"] == "near_duplicate"]
    pairs = {(row["id"], row["other_id"]) for row in rows}
    assert (b"train/red/3.png", b"test/red/twin3.jpg") in pairs and len(pairs) == 10
    assert all((row["split"], row["other_split"]) == ("train", "test") for row in rows)
    dropped = ingest(root, tmp_path / "drop", near_duplicates="drop")
    assert dropped.summary["near_duplicates"] == {"mode": "drop", "pairs": 10, "dropped": 10}
    assert dropped.summary["examples"]["train"] == reported.summary["examples"]["train"] - 10
    assert b"train/red/3.png" not in dropped.split_of()
    off = ingest(root, tmp_path / "off", near_duplicates="off")
    assert off.summary["near_duplicates"] == {"mode": "off", "pairs": 0, "dropped": 0}


def test_every_kind_of_file_is_taken_in(tmp_path):
    """One real file of each kind among others; what shows the same pixels is kept once."""
    root = class_folders(tmp_path / "data", {"red": 50, "blue": 50}, size=(40, 28))
    every = {**pictures.kept(), **{name: data for name, (data, _) in pictures.converted().items()}}
    for name, data in every.items():
        (root / "red" / name).write_bytes(data)
    made = ingest(root, tmp_path / "out")
    assert made.summary["quarantined"] == 0
    equal = {row["id"] for row in made.table("duplicates") if row["kind"] == "duplicate"}
    seen = made.split_of().keys() | equal
    assert {f"red/{name}".encode() for name in every} <= seen
    assert len(seen) == made.summary["files"] == 100 + len(every)
    assert {"webp", "orientation", "bmp"} <= set(made.summary["converted"])
    for split in features.SPLITS:
        for example in made.records(split):
            feature = example.features.feature
            form = feature["format"].bytes_list.value[0].decode()
            assert images.headers.sniff(feature["image"].bytes_list.value[0]) == form


BAD_FILES = {
    "empty": b"",
    "truncated": pictures.kept()["rgb.png"][:-200],
    "not_an_image": b"<html>404</html>",
    "unsupported": b"\0\0\0\x1cftypheic" + bytes(40),
    "too_small": pictures.encoded(Image.new("RGB", (3, 200)), "PNG"),
    "bomb": pictures.announcing(50_000, 50_000),
    "unreadable": pictures.kept()["rgb.png"].replace(b"IHDR", b"IHDX"),
}


def test_every_reason_reaches_the_quarantine(tmp_path):
    root = class_folders(tmp_path / "data", {"red": 60, "blue": 60})
    for reason, data in BAD_FILES.items():
        (root / "red" / f"{reason}.png").write_bytes(data)
    (tmp_path / "elsewhere.png").write_bytes(pictures.kept()["rgb.png"])
    (root / "red" / "outside.png").symlink_to(tmp_path / "elsewhere.png")
    (root / "red" / "missing.png").symlink_to(root / "nothing.png")
    (root / "no_label.png").write_bytes(pictures.kept()["rgb.png"])
    made = ingest(root, tmp_path / "out", error_budget=0.1)
    assert {Path(os.fsdecode(path)).stem: why for path, why in made.reasons().items()} == {
        reason: reason for reason in (*BAD_FILES, "outside", "missing", "no_label")
    }
    labels = {row["reason"]: row["label"] for row in made.table("quarantine")}
    assert labels["bomb"] == "red" and labels["no_label"] is None
    assert all(row["detail"] for row in made.table("quarantine"))


def test_the_component_has_its_contract():
    node = ImageExampleGen(data="d", fingerprint="f", known_classes="[]", options="{}", code="c")
    assert node.id == "ImageExampleGen"
    assert set(node.outputs) == {"examples", "ingest_report"}
    assert node.outputs["examples"].type is standard_artifacts.Examples
