"""`inspect`: the same findings as ingest's, on real files, without running anything."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import subprocess
import sys

import pytest
from PIL import Image
from rich.console import Console

from pipeline import images
from pipeline.commands import inspect
from pipeline.config import Ingest
from pipeline.errors import DataRefused, UsageError
from pipeline.ingest import wire
from pipeline.ingest.scan import same_listing
from tests import pictures
from tests.framing import framed, record
from tests.made import class_folders


@pytest.fixture
def messy(tmp_path):
    """Two classes with a copy, a conflict, a bad file, a WebP and a stray file."""
    root = class_folders(tmp_path / "data", {"red": 40, "blue": 40})
    shutil.copy(root / "red" / "00001.png", root / "red" / "copy.png")
    shutil.copy(root / "red" / "00002.png", root / "blue" / "conflict.png")
    (root / "blue" / "empty.png").write_bytes(b"")
    (root / "blue" / "x.webp").write_bytes(pictures.converted()["lossy.webp"][0])
    (root / "labels.cache").write_bytes(b"")
    return root


def test_it_sees_what_ingest_sees(messy):
    seen = inspect.inspect(str(messy), Ingest())
    assert (seen.form, seen.files, seen.looked_at) == ("folders", 84, 84)
    assert seen.formats == {"png": 82, "webp": 1}
    assert seen.converted == {"webp": 1}
    assert (seen.duplicates, seen.ignored) == (1, ["labels.cache"])
    assert {reason: found.count for reason, found in seen.problems.items()} == {
        "empty": 1,
        "label_conflict": 2,
    }
    assert seen.problems["empty"].examples == ["blue/empty.png: the file has 0 bytes"]
    assert {name: sum(counts.values()) for name, counts in seen.per_class.items()} == {
        "red": 39,
        "blue": 41,
    }
    assert seen.width == (32, 32, 40) and seen.channels == {"3": 83}
    json.dumps(seen.to_dict())


def test_the_sheet_shows_what_the_limit_of_the_data_lets_in(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    monkeypatch.setitem(images.prepare.__kwdefaults__, "max_pixels", 1000)
    root = class_folders(tmp_path / "data", {"red": 2, "blue": 2})
    sheet = tmp_path / "sheet.png"
    seen = inspect.inspect(str(root), Ingest(max_pixels=2000), sheet=sheet)
    assert sum(sum(counts.values()) for counts in seen.per_class.values()) == 4
    assert sheet.exists()


def test_a_file_gets_the_seconds_that_are_set(tmp_path):
    for colour, label in enumerate(("red", "blue")):
        (tmp_path / label).mkdir()
        Image.new("1", (3000, 3000), colour).save(tmp_path / label / "large.png")
    seen = inspect.inspect(str(tmp_path), Ingest(file_seconds=1e-3))
    assert seen.problems["unreadable"].count == 2


def test_verifying_adds_the_contents_to_the_fingerprint(messy):
    seen = inspect.inspect(str(messy), Ingest())
    verified = inspect.inspect(str(messy), Ingest(), verify=True)
    assert "+" not in seen.fingerprint
    assert verified.fingerprint.startswith(seen.fingerprint + "+")
    assert same_listing(verified.fingerprint, seen.fingerprint)


def test_it_says_what_would_stop_a_run(messy):
    for number in range(10):
        (messy / "red" / f"bad{number}.png").write_bytes(b"x")
    seen = inspect.inspect(str(messy), Ingest())
    assert any("error_budget" in line and "exit 4" in line for line in seen.advice)
    with pytest.raises(DataRefused, match="no usable image .* no_label"):
        inspect.inspect(str(messy / "red"), Ingest())


def test_what_a_person_has_left_out_stops_no_run(messy, tmp_path):
    rows = [f"red/{number:05d}.png,remove" for number in range(10, 30)]
    file = tmp_path / "corrections.csv"
    file.write_text("\n".join(["path,action", *rows]))
    seen = inspect.inspect(str(messy), Ingest(corrections=str(file)))
    assert seen.problems["removed-by-correction"].count == 20
    assert not any("error_budget" in line for line in seen.advice)


@pytest.mark.parametrize("labels", [[b"cat", b"dog"], [b"cat\ndog"]])
def test_a_label_that_is_no_class_would_stop_a_run(tmp_path, labels):
    data = b"".join(framed(record("red", n)) + framed(record("blue", n)) for n in range(20))
    (tmp_path / "a.tfrecord").write_bytes(data + framed(record("red", 20, label=labels)))
    seen = inspect.inspect(str(tmp_path), Ingest())
    assert any("exit 4" in line and "a.tfrecord#" in line for line in seen.advice)


def test_what_looks_like_markup_is_told_as_it_is(tmp_path, capsys):
    root = class_folders(tmp_path / ":smile:", {"red": 2, "blue": 2})
    (root / "red").rename(root / "[b]:cat:")
    inspect.command(str(root), Ingest(), 0, None, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["data"] == str(root)
    assert sorted(told["per_class"]) == ["[b]:cat:", "blue"]
    inspect.command(str(root), Ingest(), 0, None)
    assert "[b]:cat:" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["sheet.jpg", "nowhere/sheet.png"])
def test_a_sheet_that_cant_be_written_is_refused_before_anything_is_read(tmp_path, name):
    with pytest.raises(UsageError, match="--sheet .*(not a .png file|there is no folder)"):
        inspect.command(str(tmp_path / "no data"), Ingest(), 0, tmp_path / name)


def test_a_sheet_that_is_a_folder_is_refused(tmp_path):
    (tmp_path / "sheet.png").mkdir()
    with pytest.raises(UsageError, match="sheet.png is a folder; name a file"):
        inspect.command(str(tmp_path / "no data"), Ingest(), 0, tmp_path / "sheet.png")


def test_a_sample_is_said_and_progress_told(messy):
    told = []
    seen = inspect.inspect(
        str(messy), Ingest(), sample=20, on_progress=lambda done, total: told.append((done, total))
    )
    assert (seen.looked_at, seen.files) == (20, 84)
    assert told[-1] == (20, 20)
    console = Console(file=io.StringIO(), width=100)
    inspect.show(seen, console)
    assert "looked into 20 of them" in console.file.getvalue()


def test_people_read_it_and_see_the_pictures(messy, tmp_path):
    sheet = tmp_path / "sheet.png"
    seen = inspect.inspect(str(messy), Ingest(), sheet=sheet)
    console = Console(file=io.StringIO(), width=120)
    inspect.show(seen, console)
    text = console.file.getvalue()
    for expected in ("folders, 84 images", "1 webp", "label_conflict", "blue/empty.png", "by hash"):
        assert expected in text
    with Image.open(sheet) as picture:
        assert picture.height > 2 * 96 and picture.width > 10 * 96
        assert len(picture.getcolors(1 << 24) or ()) > 1000


def test_records_are_inspected_too(tmp_path):
    data = b"".join(framed(record(label, n)) for n in range(20) for label in ("red", "blue"))
    (tmp_path / "a.tfrecord.gz").write_bytes(gzip.compress(data))
    (tmp_path / "b.tfrecord").write_bytes(framed(wire.pack({"other": [1]})))
    seen = inspect.inspect(str(tmp_path), Ingest())
    assert (seen.form, seen.looked_at) == ("tfrecords", 41)
    assert list(seen.per_class) == ["blue", "red"]
    assert "the record has no feature" in seen.problems["unreadable"].examples[0]


def test_it_imports_neither_tensorflow_nor_tfx():
    code = (
        "import sys, pipeline.commands.inspect; "
        "bad = {'tensorflow', 'tfx', 'apache_beam', 'keras'} & set(sys.modules); "
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
