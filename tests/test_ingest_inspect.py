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

from pipeline.commands import inspect
from pipeline.config import Ingest
from pipeline.errors import DataRefused
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
