"""The demo's digits: all there, the right way up, and never half-written."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import config
from pipeline.commands import demo
from pipeline.errors import SafelightError, UsageError

pytestmark = pytest.mark.current


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    return demo.write_digits(tmp_path_factory.mktemp("demo") / "data")


@pytest.fixture
def copy(digits, tmp_path) -> Path:
    return Path(shutil.copytree(digits, tmp_path / "data"))


def test_there_are_five_hundred_grey_pictures_of_each_digit(digits):
    assert sorted(path.name for path in digits.iterdir()) == list(demo.CLASSES)
    for name in demo.CLASSES:
        files = sorted(path.name for path in (digits / name).iterdir())
        assert files == [f"{number:05d}.png" for number in range(500)]
    with Image.open(digits / "3" / "00042.png") as picture:
        assert (picture.mode, picture.size, picture.format) == ("L", (28, 28), "PNG")


def test_the_files_hold_the_pixels_of_the_wheel(digits):
    pixels, labels = demo.read_digits()
    for digit in (0, 9):
        with Image.open(digits / str(digit) / "00007.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), pixels[labels == digit][7])


def test_they_are_upright_ink_is_bright_and_ones_are_thin():
    pixels, labels = demo.read_digits()
    mean = pixels[labels == 1].mean(axis=0)
    assert mean[:, 12:16].mean() > 5 * mean[:, :8].mean()
    assert pixels.max() == 255
    assert pixels[:, 0, 0].max() == 0


def test_a_complete_folder_is_left_as_it_is(copy):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*.png")}
    assert demo.write_digits(copy) == copy
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*.png")} == before


def test_a_folder_with_pictures_missing_is_made_again_with_the_same_bytes(copy, digits):
    (copy / "4" / "00100.png").unlink()
    shutil.rmtree(copy / "5")
    demo.write_digits(copy)
    for name in ("4/00100.png", "5/00499.png"):
        assert (copy / name).read_bytes() == (digits / name).read_bytes()


def test_what_a_killed_run_left_beside_is_no_hindrance(tmp_path):
    leftover = tmp_path / ".data.incoming" / "0"
    leftover.mkdir(parents=True)
    (leftover / "00000.png").write_bytes(b"half")
    demo.write_digits(tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_files_of_somebody_else_are_never_removed(tmp_path):
    photo = tmp_path / "data" / "holiday" / "beach.jpg"
    photo.parent.mkdir(parents=True)
    photo.write_bytes(b"dear")
    with pytest.raises(UsageError, match=r"did not write \(holiday, holiday/beach.jpg\)"):
        demo.write_digits(tmp_path / "data")
    assert photo.read_bytes() == b"dear"


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(UsageError, match="is a file; expected a folder"):
        demo.write_digits(tmp_path / "data")


def test_a_damaged_wheel_is_answered_with_the_fix(tmp_path, monkeypatch):
    packed = tmp_path / "data" / "data" / "mnist_5k.csv.gz"
    packed.parent.mkdir(parents=True)
    packed.write_bytes(b"not packed")
    monkeypatch.setattr(demo.resources, "files", lambda _: tmp_path)
    with pytest.raises(SafelightError, match="make setup"):
        demo.read_digits()


def test_the_overrides_are_keys_that_exist():
    effective = config.load(None, demo.OVERRIDES)
    assert effective.config.ingest.shares == pytest.approx((0.75, 0.05, 0.2))
    assert effective.config.push.model_name == "digits"
