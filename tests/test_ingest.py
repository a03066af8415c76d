"""Scanning class and split folders: what is found, ignored, refused, and its fingerprint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config import Ingest
from pipeline.errors import DataRefused
from pipeline.ingest import listing
from pipeline.ingest.scan import Scan, scan
from tests.listed import look, problems, put
from tests.made import class_folders


def test_class_folders_are_found(tmp_path):
    class_folders(tmp_path, {"red": 3, "blue": 2})
    found = scan(str(tmp_path), Ingest())
    assert (found.form, found.classes, found.files) == ("folders", ("blue", "red"), 5)
    assert found.per_class == {"blue": 2, "red": 3}
    assert found.majority == (32, 32, 3)
    assert found.data == str(tmp_path)
    assert found.splits == "by hash: 70/10/20"


@pytest.mark.parametrize(
    ("name", "options"), [("a.webp", {"lossless": True}), ("a.tif", {"compression": "tiff_lzw"})]
)
def test_the_size_of_large_files_is_found_wherever_it_stands(tmp_path, name, options):
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8)
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        Image.fromarray(noise).save(tmp_path / label / name, **options)
    assert (tmp_path / "cat" / name).stat().st_size > 262_144
    assert scan(str(tmp_path), Ingest()).majority == (400, 300, 3)


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


def test_where_all_of_it_is_links_the_refusal_says_what_allows_them(tmp_path):
    elsewhere = class_folders(tmp_path / "elsewhere", {"red": 1, "blue": 1})
    data = tmp_path / "data"
    data.mkdir()
    for label in ("red", "blue"):
        (data / label).symlink_to(elsewhere / label)
    with pytest.raises(DataRefused, match=r"2 outside, such as blue.*follow_links=true allows it"):
        look(data)
    assert len(look(data, follow_links=True).entries) == 2


def test_pipes_and_links_to_themselves_do_not_stop_it(tmp_path):
    class_folders(tmp_path, {"red": 2, "blue": 2})
    os.mkfifo(tmp_path / "red" / "pipe.png")
    (tmp_path / "loop").symlink_to("loop")
    found = look(tmp_path)
    assert problems(found) == {"red/pipe.png": "unreadable", "loop": "missing"}


@pytest.fixture
def unprivileged():
    """Gives up root's rights, for which no folder is locked, and returns a folder to work in."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        if user == 0:
            os.chown(name, 65534, -1)
            os.seteuid(65534)
        yield Path(name)
        os.seteuid(user)


def test_a_locked_folder_does_not_stop_it(unprivileged):
    for label in ("red", "blue"):
        put(unprivileged / label / "1.png")
    (unprivileged / "lost+found").mkdir(mode=0)
    found = look(unprivileged)
    assert (found.form, problems(found)) == ("folders", {"lost+found": "unreadable"})


def test_data_that_may_not_be_read_is_answered(unprivileged):
    locked = unprivileged / "photos"
    locked.mkdir(mode=0)
    for data in (str(locked), str(locked / "inside"), "/dev/null"):
        said = f"{data} (can't be read|.*expected a folder)"
        with pytest.raises(DataRefused, match=said), listing.readable(data):
            look(Path(data))


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
