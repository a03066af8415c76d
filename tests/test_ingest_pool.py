"""The decoding children: order, crashes, hangs, memory, and children that never start."""

from __future__ import annotations

import os
import sys
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from pipeline.errors import SafelightError
from pipeline.ingest import child, pool
from pipeline.ingest.child import Bad, Good, Result, Settings
from pipeline.ingest.entries import Entry
from pipeline.ingest.pool import Pool, chunks
from tests import pictures

# Stands in for a decoder with a bug: what a child imports first makes `prepare` fall over.
FRAGILE = """
import ctypes, time
from pipeline import images
prepare = images.prepare
def fragile(data, **options):
    if data.endswith(b"CRASH"):
        ctypes.string_at(0)
    if data.endswith(b"HANG"):
        time.sleep(600)
    if data.endswith(b"GREEDY"):
        bytearray(1 << 42)
    return prepare(data, **options)
images.prepare = fragile
"""

# Stands in for a child that is at a chunk for long, and says after each part that it is there.
SLOW = """#!{python} -S
import pickle, struct, sys, time
def receive():
    return sys.stdin.buffer.read(struct.unpack("<Q", sys.stdin.buffer.read(8))[0])
def send(message):
    sys.stdout.buffer.write(struct.pack("<Q", len(message)) + message)
    sys.stdout.buffer.flush()
receive()
send(b"")
receive()
for part in range(3):
    time.sleep(0.5)
    send(b"")
send(pickle.dumps([("unreadable", "the chunk's own answer", "label", None)]))
sys.stdin.buffer.read()
"""


@pytest.fixture
def fragile(tmp_path, monkeypatch):
    """Gives every child started in this test a decoder that some files bring down."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(FRAGILE)
    monkeypatch.syspath_prepend(str(folder))


def entries(root: Path, files: dict[str, bytes]) -> list[Entry]:
    made = []
    for name, data in files.items():
        (root / name).write_bytes(data)
        made.append(Entry(name.encode(), len(data), 0, "label"))
    return made


def decode(root: Path, made: list[Entry], workers: int = 1, timeout: float = 60) -> list[Result]:
    settings = Settings(os.fsencode(root), min_side=4, max_pixels=1_000_000)
    with Pool(workers, settings, timeout) as children:
        return [result for part in children.map(chunks(made)) for result in part]


def good(count: int, start: int = 0) -> dict[str, bytes]:
    return {
        f"{number:04d}.png": pictures.encoded(pictures.photograph(number), "PNG")
        for number in range(start, start + count)
    }


def test_results_come_in_order_from_several_children(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "CHUNK_FILES", 3)
    made = entries(tmp_path, good(40))
    results = decode(tmp_path, made, workers=3)
    assert all(isinstance(result, Good) for result in results)
    again = decode(tmp_path, made, workers=1)
    assert results == again
    for entry, result in zip(made, results, strict=True):
        assert isinstance(result, Good) and entry.path in result.record


def test_a_crash_costs_the_culprit_alone(tmp_path, fragile, monkeypatch):
    monkeypatch.setattr(pool, "CHUNK_FILES", 8)
    files = {**good(12), "bad.png": b"anything CRASH", **good(12, start=20)}
    results = decode(tmp_path, entries(tmp_path, files), workers=2)
    bad = [(place, result) for place, result in enumerate(results) if isinstance(result, Bad)]
    assert [(place, result.reason) for place, result in bad] == [(12, "unreadable")]
    assert bad[0][1].detail == "the decoder crashed (SIGSEGV)"
    assert len(results) == 25


def test_a_hang_costs_the_culprit_alone(tmp_path, fragile):
    files = {**good(3), "bad.png": b"anything HANG", **good(3, start=20)}
    results = decode(tmp_path, entries(tmp_path, files), timeout=6)
    assert [isinstance(result, Bad) for result in results] == [False] * 3 + [True] + [False] * 3
    assert isinstance(results[3], Bad) and results[3].detail == "decoding took longer than 6 s"


def test_greed_for_memory_is_bounded(tmp_path, fragile):
    results = decode(tmp_path, entries(tmp_path, {**good(1), "bad.png": b"GREEDY"}))
    assert isinstance(results[0], Good)
    assert isinstance(results[1], Bad) and "more memory" in results[1].detail


def test_large_images_in_small_files_are_not_held_all_at_once(tmp_path):
    page = pictures.encoded(Image.new("1", (1600, 1600)), "PNG")
    made = entries(tmp_path, {f"{number}.png": page for number in range(40)})
    assert len(list(chunks(made))) == 1
    settings = Settings(os.fsencode(tmp_path), min_side=4, max_pixels=50_000_000)
    parts: list[int] = []
    tracemalloc.start()
    try:
        results = child.work(made, settings, lambda: parts.append(1))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(results) == 40 and all(isinstance(result, Good) for result in results)
    assert most < 40 * 1600 * 1600 and parts


def test_a_chunk_that_tells_of_its_parts_may_take_longer_than_one_file(tmp_path, monkeypatch):
    slow = tmp_path / "slow-child"
    slow.write_text(SLOW.format(python=sys.executable))
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    [result] = decode(tmp_path, entries(tmp_path, good(1)), timeout=1)
    assert isinstance(result, Bad) and result.detail == "the chunk's own answer"


def test_files_that_vanish_or_are_locked_are_quarantined(tmp_path):
    made = entries(tmp_path, good(2))
    (tmp_path / "0000.png").unlink()
    (tmp_path / "0001.png").unlink()
    (tmp_path / "0001.png").mkdir()
    results = decode(tmp_path, made)
    assert [result.reason for result in results if isinstance(result, Bad)] == [
        "missing",
        "unreadable",
    ]


def test_a_large_file_that_is_no_image_is_not_read(tmp_path):
    with (tmp_path / "film.png").open("wb") as file:
        file.truncate(3 << 30)
    with (tmp_path / "huge.png").open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        file.truncate(3 << 30)
    made = [Entry(name, 3 << 30, 0, "label") for name in (b"film.png", b"huge.png")]
    results = decode(tmp_path, made)
    assert [result.reason for result in results if isinstance(result, Bad)] == [
        "not_an_image",
        "bomb",
    ]


def test_children_that_never_start_are_nobodys_fault_but_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(SafelightError, match="A decoding process did not start: .* code 1"):
        decode(tmp_path, entries(tmp_path, good(1)))


def test_chunks_are_bounded_in_files_and_bytes(monkeypatch):
    monkeypatch.setattr(pool, "CHUNK_FILES", 4)
    monkeypatch.setattr(pool, "CHUNK_BYTES", 100)
    sizes = [10] * 9 + [500, 20, 90, 30]
    made = [Entry(b"%d" % place, size, 0, "a") for place, size in enumerate(sizes)]
    cut = [[entry.size for entry in chunk] for chunk in chunks(made)]
    assert cut == [[10] * 4, [10] * 4, [10, 500], [20, 90], [30]]
    assert list(chunks([])) == []
