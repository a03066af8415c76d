"""Listing and scanning: every form of data, every thing that is wrong with it, on real files."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import struct
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import Ingest
from pipeline.errors import DataRefused
from pipeline.ingest import decide, listing, near, plan, records, splits, wire
from pipeline.ingest.entries import Entry, Ignored, Listing, path_hash, shown
from pipeline.ingest.scan import Scan, scan
from tests import pictures
from tests.made import class_folders, picture

PNG = pictures.kept()["grey.png"]


def put(path: Path, data: bytes = PNG) -> None:
    """Writes a file, and the folders above it."""
    file = Path(os.fsdecode(path))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


def look(data: Path, **options: object) -> Listing:
    return listing.read(str(data), Ingest(**options))


def problems(found: Listing) -> dict[str, str]:
    return {shown(problem.path): problem.reason for problem in found.problems}


# Class and split folders.


def test_class_folders_are_found(tmp_path):
    class_folders(tmp_path, {"red": 3, "blue": 2})
    found = scan(str(tmp_path), Ingest())
    assert (found.form, found.classes, found.files) == ("folders", ("blue", "red"), 5)
    assert found.per_class == {"blue": 2, "red": 3}
    assert found.majority == (32, 32, 3)
    assert found.data == str(tmp_path)
    assert found.splits == "by hash: 70/10/20"


def test_a_scan_survives_json(tmp_path):
    class_folders(tmp_path, {"red": 3, "blue": 2})
    found = scan(str(tmp_path), Ingest())
    assert Scan.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_nested_class_folders_belong_to_the_top_one_or_are_classes(tmp_path):
    for name in ("animals/cat/1.png", "animals/dog/deep/2.png", "cars/3.png"):
        put(tmp_path / name)
    assert {entry.label for entry in look(tmp_path).entries} == {"animals", "cars"}
    paths = look(tmp_path, label_from="path")
    assert {entry.label for entry in paths.entries} == {"animals/cat", "animals/dog/deep", "cars"}


@pytest.mark.parametrize("name", ["val", "valid", "validation", "eval", "test", "Test"])
def test_split_folders_are_found_by_their_names(tmp_path, name):
    for split in ("train", name):
        for label in ("a", "b"):
            put(tmp_path / split / label / "1.png")
    found = look(tmp_path)
    assert found.form == "splits"
    assert {entry.label for entry in found.entries} == {"a", "b"}
    expected = "test" if name.lower() == "test" else "eval"
    assert found.given == {"train", expected}


def test_stray_and_system_files_are_ignored_and_said(tmp_path):
    class_folders(tmp_path, {"red": 2, "blue": 2})
    stray = ["labels.cache", "README.md", "red/.DS_Store", "red/Thumbs.db", "blue/._1.png"]
    for name in [*stray, "__MACOSX/red/1.png", ".git/config", "red/notes.txt"]:
        put(tmp_path / name, b"stray")
    found = scan(str(tmp_path), Ingest())
    assert found.files == 4
    assert set(found.ignored) == {*stray, "__MACOSX", ".git", "red/notes.txt"}
    assert found.ignored_count == 8


def test_an_image_outside_all_class_folders_has_no_label(tmp_path):
    class_folders(tmp_path, {"red": 2, "blue": 2})
    put(tmp_path / "sheet.png")
    assert problems(look(tmp_path)) == {"sheet.png": "no_label"}


@pytest.mark.parametrize(
    "name",
    [b"with space.png", b"line\nbreak.png", "Füße–日本.png".encode(), b"caf\xe9.png", b"-rf *.png"],
)
def test_names_of_every_kind_work(tmp_path, name):
    for label in (b"one", b"two \xff words"):
        put(tmp_path / os.fsdecode(label) / os.fsdecode(name))
    found = look(tmp_path)
    assert {entry.path.split(b"/")[1] for entry in found.entries} == {name}
    assert {entry.label for entry in found.entries} == {"one", "two \\xff words"}
    json.dumps(scan(str(tmp_path), Ingest()).to_dict()).encode("utf-8")


def test_class_names_are_compared_in_one_normal_form(tmp_path):
    for number, form in enumerate(("NFC", "NFD")):
        put(tmp_path / unicodedata.normalize(form, "café") / f"{number}.png")
    put(tmp_path / "tea" / "1.png")
    assert {entry.label for entry in look(tmp_path).entries} == {"café", "tea"}


def test_a_class_name_with_a_line_break_is_refused(tmp_path):
    class_folders(tmp_path, {"red": 1})
    put(tmp_path / "two\nlines" / "1.png")
    with pytest.raises(DataRefused, match="line break"):
        look(tmp_path)


def test_links_that_leave_the_data_are_quarantined(tmp_path):
    root = tmp_path / "data"
    class_folders(root, {"red": 2, "blue": 2})
    class_folders(tmp_path / "elsewhere", {"green": 2})
    (root / "red" / "away.png").symlink_to(tmp_path / "elsewhere" / "green" / "00000.png")
    (root / "red" / "inside.png").symlink_to(root / "blue" / "00000.png")
    (root / "red" / "gone.png").symlink_to(tmp_path / "nothing.png")
    (root / "green").symlink_to(tmp_path / "elsewhere" / "green")
    (root / "blue" / "loop").symlink_to(root)
    found = look(root)
    assert problems(found) == {
        "green": "outside",
        "red/away.png": "outside",
        "red/gone.png": "missing",
    }
    assert len(found.entries) == 5
    followed = look(root, follow_links=True)
    assert problems(followed) == {"red/gone.png": "missing"}
    assert {entry.label for entry in followed.entries} == {"red", "blue", "green"}


def test_pipes_and_locked_folders_do_not_stop_it(tmp_path):
    class_folders(tmp_path, {"red": 2, "blue": 2})
    os.mkfifo(tmp_path / "red" / "pipe.png")
    found = look(tmp_path)
    assert problems(found) == {"red/pipe.png": "unreadable"}


# Nothing to train on.


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ([], {}, "There is no image in"),
        (["README.md"], {}, "ignored: README.md"),
        (["1.png"], {}, "1 no_label"),
        (["cats/1.png", "cats/2.png"], {}, "one class, 'cats'"),
        (["all/cats/1.png", "all/dogs/2.png"], {}, "Did you mean the folder inside"),
        (["train/cats/1.png", "train/dogs/2.png", "val/.keep"], {}, "The eval split of"),
        (["val/cats/1.png", "test/dogs/2.png"], {}, "no train split"),
        (["train/cats/1.png", "dogs/2.png"], {}, "mixes split folders"),
        (["train/1.png", "test/2.png"], {}, "2 no_label"),
        (["a/1.png", "b/1.png"], {"manifest": "mine.csv"}, "no manifest mine.csv"),
        (["manifest.csv", "manifest.jsonl"], {}, "2 manifests"),
    ],
)
def test_nothing_to_train_on_is_refused(tmp_path, files, options, message):
    for name in files:
        put(tmp_path / name)
    with pytest.raises(DataRefused, match=message) as caught:
        look(tmp_path, **options)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("/no/such/folder", "There is no folder"),
        ("gs://bucket/images", r"safelight\[gcs\]"),
        ("s3://bucket/images", r"safelight\[s3\]"),
        ("ftp://host/images", "no path that Safelight reads"),
    ],
)
def test_data_that_is_not_there_is_refused(data, message):
    with pytest.raises(DataRefused, match=message):
        listing.read(data, Ingest())


def test_a_single_file_is_refused_and_an_archive_explained(tmp_path):
    put(tmp_path / "images.zip", b"PK")
    with pytest.raises(DataRefused, match="Unpack the archive first"):
        look(tmp_path / "images.zip")


def test_a_mixed_folder_can_be_decided(tmp_path):
    for name in ("train/cats/1.png", "train/dogs/1.png", "dogs/2.png"):
        put(tmp_path / name)
    assert {entry.label for entry in look(tmp_path, form="folders").entries} == {"train", "dogs"}
    named = look(tmp_path, form="splits")
    assert {entry.label for entry in named.entries} == {"cats", "dogs"}
    assert named.ignored.names == ["dogs/2.png"]


# The fingerprint.


def test_the_fingerprint_follows_the_data(tmp_path):
    class_folders(tmp_path, {"red": 2, "blue": 2})
    first = scan(str(tmp_path), Ingest()).fingerprint
    assert scan(str(tmp_path), Ingest()).fingerprint == first
    os.utime(tmp_path / "red" / "00000.png", ns=(1, 1))
    touched = scan(str(tmp_path), Ingest()).fingerprint
    (tmp_path / "red" / "00000.png").rename(tmp_path / "red" / "x.png")
    renamed = scan(str(tmp_path), Ingest()).fingerprint
    assert len({first, touched, renamed}) == 3


def test_verifying_sees_what_size_and_time_hide(tmp_path):
    class_folders(tmp_path, {"red": 2, "blue": 2})
    path = tmp_path / "red" / "00000.png"
    before = [scan(str(tmp_path), Ingest(), verify).fingerprint for verify in (False, True)]
    state, data = path.stat(), bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    after = [scan(str(tmp_path), Ingest(), verify).fingerprint for verify in (False, True)]
    assert before[0] == after[0] and before[1] != after[1]


def test_max_images_takes_the_same_ones_and_mixes_classes(tmp_path):
    class_folders(tmp_path, {"red": 30, "blue": 30})
    small = look(tmp_path, max_images=20)
    assert len(small.entries) == 20
    assert {entry.label for entry in small.entries} == {"red", "blue"}
    more = look(tmp_path, max_images=40)
    assert {entry.path for entry in small.entries} < {entry.path for entry in more.entries}


def test_max_images_thins_out_known_problems_too(tmp_path):
    class_folders(tmp_path, {"red": 40, "blue": 40})
    for number in range(40):
        (tmp_path / "red" / f"gone{number}.png").symlink_to(tmp_path / "nothing")
    small = look(tmp_path, max_images=20)
    assert 2 <= len(small.problems) <= 22
    assert {problem.reason for problem in small.problems} == {"missing"}


def test_scanning_imports_neither_tensorflow_nor_tfx(tmp_path):
    class_folders(tmp_path, {"red": 2, "blue": 2})
    code = (
        "import sys; from pipeline.config import Ingest; from pipeline.ingest.scan import scan; "
        f"scan({str(tmp_path)!r}, Ingest()); "
        "bad = {'tensorflow', 'tfx', 'apache_beam', 'pyarrow', 'keras'} & set(sys.modules); "
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# Manifests.


def manifest(root: Path, text: str, name: str = "manifest.csv") -> Path:
    """Writes a manifest beside four images, 1.png to 4.png."""
    for number in range(1, 5):
        put(root / "pictures" / f"{number}.png")
    (root / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    return root


ROWS = "pictures/1.png,cat\npictures/2.png,dog\npictures/3.png,cat\npictures/4.png,dog\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("manifest.csv", "path,label\n" + ROWS),
        ("manifest.csv", "\ufeffFile_Name;Class\n" + ROWS.replace(",", ";")),
        ("metadata.csv", "file_name,label\n" + ROWS),
        ("manifest.tsv", "image\tcategory\n" + ROWS.replace(",", "\t")),
        (
            "manifest.jsonl",
            "".join(
                json.dumps({"path": f"pictures/{n}.png", "label": "cat" if n % 2 else "dog"}) + "\n"
                for n in range(1, 5)
            ),
        ),
    ],
)
def test_manifests_are_read(tmp_path, name, text):
    found = look(manifest(tmp_path, text, name))
    assert found.form == "manifest"
    assert [(entry.path, entry.label) for entry in found.entries] == [
        (b"pictures/1.png", "cat"),
        (b"pictures/2.png", "dog"),
        (b"pictures/3.png", "cat"),
        (b"pictures/4.png", "dog"),
    ]
    assert look(tmp_path / name).entries == found.entries


def test_a_manifest_names_splits_groups_targets_and_slices(tmp_path):
    header = "where,what,when,who,severity,camera\n"
    rows = [
        "pictures/1.png,cat,train,ann,0.5,A",
        "pictures/2.png,dog,VALID,bob,1e3,",
        "pictures/3.png,cat,test,,-2,B",
        "pictures/4.png,dog,,ann,nan,B",
    ]
    found = look(
        manifest(tmp_path, header + "\n".join(rows)),
        path_column="where",
        label_column="what",
        split_column="when",
        group_column="who",
        targets=["severity"],
        slices=["camera"],
    )
    assert [(entry.split, entry.group, entry.extra) for entry in found.entries] == [
        ("train", "ann", (("target_severity", 0.5), ("slice_camera", "A"))),
        ("eval", "bob", (("target_severity", 1000.0), ("slice_camera", "missing"))),
        ("test", None, (("target_severity", -2.0), ("slice_camera", "B"))),
    ]
    assert problems(found) == {"pictures/4.png": "bad_target"}


def test_bad_rows_are_quarantined_with_a_reason(tmp_path):
    put(tmp_path / "outside.png")
    root = tmp_path / "data"
    (root / "pictures").mkdir(parents=True)
    (root / "pictures" / "away.png").symlink_to(tmp_path / "outside.png")
    text = (
        "path,label\n"
        + ROWS
        + (
            "pictures/5.png,cat\n"
            "../outside.png,cat\n"
            "pictures/away.png,cat\n"
            "pictures/4.png,\n"
            ",cat\n"
            "pictures,cat\n"
            "pictures/1.png,cat,too,many\n"
        )
    )
    found = look(manifest(root, text))
    assert len(found.entries) == 4
    assert problems(found) == {
        "pictures/5.png": "missing",
        "../outside.png": "outside",
        "pictures/away.png": "outside",
        "pictures/4.png": "no_label",
        "manifest.csv:10": "missing",
        "pictures": "unreadable",
        "manifest.csv:12": "unreadable",
    }


def test_bad_json_lines_are_quarantined(tmp_path):
    good = [json.dumps({"path": f"pictures/{n}.png", "label": n % 2}) for n in range(1, 5)]
    lines = [*good, "{not json", "[1, 2]", json.dumps({"path": "pictures/1.png", "label": None})]
    found = look(manifest(tmp_path, "\n".join(lines), "manifest.jsonl"))
    assert {entry.label for entry in found.entries} == {"0", "1"}
    assert problems(found) == {
        "manifest.jsonl:5": "unreadable",
        "manifest.jsonl:6": "unreadable",
        "pictures/1.png": "no_label",
    }


def test_a_manifest_spells_any_file_name(tmp_path):
    raw = b"caf\xe9 \xe6\x97\xa5,1.png"
    put(tmp_path / "pictures" / os.fsdecode(raw))
    quoted = b'"pictures/' + raw + b'",cat\n'
    text = ("path,label\n" + ROWS).encode() + quoted
    found = look(manifest(tmp_path, os.fsdecode(text)))
    assert b"pictures/" + raw in {entry.path for entry in found.entries}


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "has no row"),
        ("path,label\n", {}, "has no row"),
        ("file,kind\n" + ROWS, {}, "expected one of label, class"),
        ("path,label\n" + ROWS, {"label_column": "lable"}, "no column 'lable'"),
        ("path,label\n" + ROWS, {"targets": ["age"]}, "no column 'age'"),
        ("path,label,split\npictures/1.png,cat,holdout\n", {}, "unknown split 'holdout'"),
        ("path,labels\n" + ROWS, {}, "multi-label"),
        ("path,label\n" + ROWS + "pictures/1.png,cat|dog\n", {}, "multi-label"),
        ("path,label\n" + ROWS + "pictures/1.png,dog\npictures/2.png,cat\n", {}, "multi-label"),
        ("path,label\n" + ROWS.replace("cat", '"two\nlines"'), {}, "line break"),
        ("path,label\n" + ROWS.replace("dog", "cat"), {}, "one class"),
    ],
)
def test_manifests_that_cant_be_used_are_refused(tmp_path, text, options, message):
    with pytest.raises(DataRefused, match=message):
        look(manifest(tmp_path, text), **options)


def test_a_list_of_labels_is_multi_label_data(tmp_path):
    line = json.dumps({"path": "pictures/1.png", "label": ["cat", "dog"]})
    with pytest.raises(DataRefused, match="line 1, has 2 labels: this is multi-label data"):
        look(manifest(tmp_path, line, "manifest.jsonl"))


_CELLS = st.text(max_size=12) | st.sampled_from(
    ["pictures/1.png", "../x", "/etc/passwd", "cat", "dog", "", "train", '"', "nan", "\0", "a,b"]
)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(st.lists(_CELLS, max_size=5), max_size=6),
    jsonl=st.booleans(),
    raw=st.binary(max_size=60),
)
def test_any_manifest_gives_a_listing_or_a_refusal(tmp_path, rows, jsonl, raw):
    """Whatever stands in it: no other exception, and each row becomes an entry or a problem."""
    root = manifest(tmp_path, "")
    header = ["path", "label", "split", "group"]
    if jsonl:
        lines = [json.dumps(dict(zip(header, row, strict=False))).encode() for row in rows]
        name = "manifest.jsonl"
    else:
        name = "manifest.csv"
        cells = [header, *rows]
        lines = [",".join(row).encode("utf-8", "surrogatepass") for row in cells]
    for old in root.glob("manifest.*"):
        old.unlink()
    (root / name).write_bytes(b"\n".join([*lines, raw]))
    try:
        found = look(root)
    except DataRefused:
        return
    for entry in found.entries:
        assert entry.label and (root / os.fsdecode(entry.path)).is_file()


# TFRecords.


def framed(data: bytes) -> bytes:
    """Returns a record as TensorFlow frames it."""
    length = struct.pack("<Q", len(data))
    head = length + struct.pack("<I", records.masked(records.crc32c(length)))
    return head + data + struct.pack("<I", records.masked(records.crc32c(data)))


def record(label: str, number: int) -> bytes:
    encoded = pictures.encoded(picture(label, number), "PNG")
    return wire.pack({"image/encoded": [encoded], "image/class/text": [label.encode()]})


def test_records_are_indexed_by_their_framing(tmp_path):
    first, second = framed(record("red", 1)), framed(record("blue", 2))
    put(tmp_path / "train-00000-of-00002", first + second)
    put(tmp_path / "validation-00000-of-00001.gz", gzip.compress(first))
    put(tmp_path / "notes.txt", b"stray")
    found = look(tmp_path)
    assert found.form == "tfrecords"
    assert [(entry.path, entry.offset, entry.split) for entry in found.entries] == [
        (b"train-00000-of-00002", 0, "train"),
        (b"train-00000-of-00002", len(first), "train"),
        (b"validation-00000-of-00001.gz", 0, "eval"),
    ]
    assert found.ignored.names == ["notes.txt"]
    assert scan(str(tmp_path), Ingest()).classes is None


def test_damaged_record_files_keep_what_is_whole(tmp_path):
    whole = framed(record("red", 1))
    put(tmp_path / "cut.tfrecord", whole + whole[:-7])
    put(tmp_path / "garbage.tfrecord", whole + b"x" * 100)
    put(tmp_path / "packed.tfrecord.gz", gzip.compress(whole)[:-20])
    put(tmp_path / "good.tfrecords", whole)
    found = look(tmp_path)
    assert sorted(entry.path for entry in found.entries) == [
        b"cut.tfrecord",
        b"garbage.tfrecord",
        b"good.tfrecords",
    ]
    assert problems(found) == {
        "cut.tfrecord": "truncated",
        "garbage.tfrecord": "unreadable",
        "packed.tfrecord.gz": "truncated",
    }


def test_checksums_are_those_of_tensorflow():
    assert records.crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    assert records.fast_crc32c(b"123456789") in (None, 0xE3069283)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_parse_as_an_example_or_are_refused(data):
    with contextlib.suppress(wire.WireError):
        wire.unpack(data)


def test_the_wire_format_is_tensorflows():
    import tensorflow as tf

    features = {
        "b": [b"", b"\xff" * 300],
        "i": [0, 1, -1, 2**63 - 1, -(2**63)],
        "f": [0.5, -1.25],
        "none": [],
    }
    data = wire.pack(features)
    example = tf.train.Example.FromString(data)
    assert list(example.features.feature["b"].bytes_list.value) == features["b"]
    assert list(example.features.feature["i"].int64_list.value) == features["i"]
    assert list(example.features.feature["f"].float_list.value) == features["f"]
    assert wire.unpack(data) == features
    assert wire.unpack(example.SerializeToString()) == features


# Splits, plans, decisions.


def test_splits_by_hash_have_their_shares_and_never_change():
    rule = splits.Rule((0.7, 0.1, 0.2))
    found = [rule.split_of(None, b"%d" % number) for number in range(20_000)]
    shares = [found.count(name) / len(found) for name in ("train", "eval", "test")]
    np.testing.assert_allclose(shares, (0.7, 0.1, 0.2), atol=0.01)
    # Pinned: another hash would move images between the splits of data seen before.
    assert "".join(split[1] for split in found[:24]) == "rrerrrerrrrrrrrrreerrrre"


@pytest.mark.parametrize(
    ("given_by_data", "expected"),
    [
        ({"train", "eval", "test"}, {"train": {"train"}, "eval": {"eval"}, "test": {"test"}}),
        ({"train", "eval"}, {"train": {"train", "eval"}, "eval": {"test"}}),
        ({"train", "test"}, {"train": {"train", "eval"}, "test": {"test"}}),
        ({"train"}, {"train": {"train", "eval", "test"}}),
    ],
)
def test_given_splits_are_kept_and_missing_ones_carved(given_by_data, expected):
    rule = splits.Rule((0.7, 0.1, 0.2), frozenset(given_by_data))
    for name, allowed in expected.items():
        found = {rule.split_of(name, b"%d" % number) for number in range(500)}
        assert found == allowed
    assert rule.describe()


def test_plans_mix_classes_and_hold_their_size(tmp_path):
    entries = [Entry(b"%d/%d.png" % (n % 2, n), 1000, 0, str(n % 2)) for n in range(1000)]
    found = Listing("folders", tmp_path, entries, [], Ignored())
    rule = splits.Rule((0.7, 0.1, 0.2))
    cut = plan.pieces(found, rule, shard_bytes=200_000)
    assert sorted(entry.path for piece in cut for entry in piece) == sorted(e.path for e in entries)
    assert all(0.3 < sum(e.label == "0" for e in part) / len(part) < 0.7 for part in cut[:-1])
    assert all(len(part) * 1600 <= 200_000 / 0.7 for part in cut)
    random.Random(1).shuffle(entries)
    assert plan.pieces(found, rule, shard_bytes=200_000) == cut
    plan.save(cut, tmp_path)
    assert plan.load(tmp_path, 1) == cut[1]


@given(st.lists(st.integers(1, 250), max_size=30))
def test_parts_are_joined_to_shards_in_order(sizes):
    runs = list(plan.groups_of_shards(sizes, least=100, most=200))
    assert [index for run in runs for index in run] == list(range(len(sizes)))
    totals = [sum(sizes[index] for index in run) for run in runs]
    assert all(total <= 200 or len(run) == 1 for total, run in zip(totals, runs, strict=True))
    for total, run, after in zip(totals, runs, runs[1:], strict=False):
        assert total >= 100 or total + sizes[after[0]] > 200, (run, totals)


def index_of(rows: list[tuple[int, str, str, str | None]]) -> decide.Index:
    """Builds an index from (pixels, label, split, group); ids are the positions."""
    labels = sorted({row[1] for row in rows})
    groups = sorted({row[3] for row in rows if row[3] is not None})
    return decide.Index(
        sha256=np.array([[row[0], 0, 1, 2] for row in rows], np.uint64).reshape(-1, 4),
        labels=np.array([labels.index(row[1]) for row in rows], np.int32),
        splits=np.array([("train", "eval", "test").index(row[2]) for row in rows], np.int8),
        groups=np.array([-1 if r[3] is None else groups.index(r[3]) for r in rows], np.int32),
        ids=lambda position: b"%03d" % position,
        label_names=labels,
        group_names=groups,
    )


def test_decisions_are_removals_of_the_right_ones():
    made = decide.decide(
        index_of(
            [
                (1, "a", "train", None),  # 0: kept, the first
                (1, "a", "train", None),  # 1: a duplicate
                (2, "a", "train", None),  # 2: stands in test too
                (2, "a", "test", None),  # 3
                (3, "a", "train", None),  # 4: a conflict with 5
                (3, "b", "train", None),  # 5
                (4, "a", "train", "g"),  # 6: a conflict with 7
                (4, "a", "train", "h"),  # 7
                (5, "a", "train", None),  # 8: the same without a group gives way
                (5, "a", "train", "g"),  # 9: straddles with 10
                (6, "a", "test", "g"),  # 10
                (7, "b", "eval", None),  # 11
            ]
        )
    )
    expected = [
        decide.KEEP,
        decide.DUPLICATE,
        decide.SPLIT_DUPLICATE,
        decide.KEEP,
        *[decide.CONFLICT] * 4,
        decide.DUPLICATE,
        decide.GROUP_STRADDLES,
        decide.KEEP,
        decide.KEEP,
    ]
    assert made.codes.tolist() == expected
    assert {(p.path, p.reason) for p in made.problems} == {
        (b"004", "label_conflict"),
        (b"005", "label_conflict"),
        (b"006", "group_conflict"),
        (b"007", "group_conflict"),
    }
    assert "'b' too: 005" in made.problems[0].detail


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 5),
            st.sampled_from("ab"),
            st.sampled_from(("train", "eval", "test")),
            st.sampled_from((None, "g", "h")),
        ),
        max_size=20,
    )
)
def test_after_deciding_no_image_and_no_group_stands_twice(rows):
    index = index_of(rows)
    made = decide.decide(index)
    kept = [row for row, code in zip(rows, made.codes, strict=True) if code == decide.KEEP]
    assert len({row[0] for row in kept}) == len(kept)
    for group in ("g", "h"):
        assert len({row[2] for row in kept if row[3] == group}) <= 1
    for pixels in {row[0] for row in rows}:
        same = [row for row in rows if row[0] == pixels]
        agree = len({r[1] for r in same}) == 1 and len({r[3] for r in same} - {None}) <= 1
        if not agree:
            assert pixels not in {row[0] for row in kept}
    assert decide.decide(index).codes.tolist() == made.codes.tolist()


def test_near_duplicates_are_found_across_splits_and_confirmed():
    rng = np.random.default_rng(3)
    hashes = rng.integers(0, 2**63, 400, dtype=np.uint64)
    thumbs = rng.integers(0, 256, (400, 768)).astype(np.uint8)
    sides = np.array([0] * 300 + [2] * 100, np.int8)
    for train, test, bits in ((5, 310, 0), (6, 320, 4), (7, 330, 5)):
        hashes[test] = hashes[train] ^ np.uint64(sum(1 << (12 * bit) for bit in range(bits)))
        thumbs[test] = thumbs[train]
    hashes[340] = hashes[8]  # the same hash, another picture
    hashes[9], thumbs[9] = hashes[10], thumbs[10]  # the same, but in one split
    found = near.pairs(hashes, sides, thumbs, np.arange(400))
    assert [(pair.nearer, pair.further, pair.distance) for pair in found] == [
        (5, 310, 0),
        (6, 320, 4),
    ]


def test_path_hashes_never_change():
    assert path_hash(b"red/1.png").hex() == "21b4b126e03da943"
