"""Every form of data and every kind of file, through ImageExampleGen to the artifacts."""

from __future__ import annotations

import io
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pipeline import features, images
from pipeline.errors import DataRefused
from pipeline.ingest import thumbnail, wire
from tests import pictures
from tests.ingested import ingest
from tests.made import class_folders, picture


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
    shown = [images.prepare(row["thumbnail"]).pixels for row in made.table("quarantine")]
    here = images.prepare((root / "red" / "00003.png").read_bytes()).pixels
    assert all(np.abs(pixels.astype(int) - here).mean() < 25 for pixels in shown)
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


@pytest.mark.parametrize(
    ("labels", "message"),
    [([b"cat", b"dog"], "multi-label data"), ([b"cat\ndog"], "line break")],
)
def test_records_with_labels_that_are_no_class_are_refused_by_name(tmp_path, labels, message):
    path = tmp_path / "data" / "mine.tfrecord"
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        image = pictures.encoded(picture("red", 1), "PNG")
        writer.write(wire.pack({"image/encoded": [image], "label": labels}))
    with pytest.raises(DataRefused, match=message):
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
    drawn = {row["reason"]: row["thumbnail"] for row in made.table("quarantine")}
    assert {reason for reason, picture in drawn.items() if picture} == {"truncated", "too_small"}
    with Image.open(io.BytesIO(drawn["too_small"])) as picture:
        assert picture.size == (1, 64)


def test_thumbnails_show_what_there_is_and_no_bomb():
    whole = np.full((300, 400, 3), (220, 50, 40), np.uint8)
    encoded = pictures.encoded(Image.fromarray(whole), "JPEG")
    picture = thumbnail.draw(encoded[: len(encoded) // 2])
    assert picture is not None and len(picture) < 4096
    with Image.open(io.BytesIO(picture)) as image:
        assert image.size == (64, 48)
        red, green, blue = image.getpixel((32, 2))
        assert red > 180 and green < 90 and blue < 90
    assert thumbnail.draw(b"<html>404</html>") is None
    assert thumbnail.draw(pictures.announcing(50_000, 50_000)) is None
    assert thumbnail.draw(pictures.kept()["rgb.png"][:20]) is None
