"""The input: records through the transform graph, kept in each place, shuffled by (seed, epoch)."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from pipeline import data, events
from pipeline.errors import ConfigError, DataRefused, SafelightError
from tests import graphs

SIZE = 16
COUNTS = {"blue": 5, "red": 4, "white": 3}
ROWS = sum(COUNTS.values())


@pytest.fixture(scope="module")
def source() -> data.Input:
    return data.Input(graphs.transform_graph(SIZE, 3), SIZE, 3)


@pytest.fixture
def pattern(tmp_path: Path) -> str:
    return graphs.write_split(tmp_path / "examples", "train", COUNTS, size=SIZE)


def kept_in(place: data.Place, source: data.Input, pattern: str, disk: Path) -> data.Kept:
    return data.keep(source, {"train": data.scan([pattern])}, place, disk)["train"]


def epoch_of(
    batches: tf.data.Dataset, batch_size: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns pixels and label ids of the dataset's epoch, counted from its first."""
    steps = -(-ROWS // batch_size)
    elements = itertools.islice(batches.as_numpy_iterator(), epoch * steps, (epoch + 1) * steps)
    pixels, ids = zip(*elements, strict=True)
    return np.concatenate(pixels), np.concatenate(ids)


def in_order(pixels: np.ndarray) -> np.ndarray:
    """Returns the rows sorted, so that two sets of pictures can be compared."""
    rows = pixels.reshape(len(pixels), -1)
    return rows[np.lexsort(rows.T)]


def test_scan_counts_and_identifies_the_content(tmp_path: Path, pattern: str) -> None:
    records = data.scan([pattern])
    assert (records.examples, len(records.files)) == (ROWS, 2)
    again = graphs.write_split(tmp_path / "again", "train", COUNTS, size=SIZE)
    assert data.scan([again]).digest == records.digest
    other = graphs.write_split(tmp_path / "other", "train", COUNTS, size=SIZE, first=1)
    assert data.scan([other]).digest != records.digest


def test_scan_refuses_what_is_not_whole(pattern: str) -> None:
    path = data.scan([pattern]).files[0]
    os.truncate(path, path.stat().st_size - 3)
    with pytest.raises(SafelightError, match=f"{path.name} is not a whole.*run again"):
        data.scan([pattern])


def test_scan_refuses_nothing_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataRefused, match="no examples in .*nowhere"):
        data.scan([str(tmp_path / "nowhere" / "*")])


def test_memory_disk_and_stream_hold_the_same_pixels(
    tmp_path: Path, source: data.Input, pattern: str
) -> None:
    memory = kept_in("memory", source, pattern, tmp_path)
    disk = kept_in("disk", source, pattern, tmp_path / "disk")
    assert memory.pixels.shape == (ROWS, SIZE, SIZE, 3)
    assert memory.pixels.dtype == np.float32
    assert 0 <= memory.pixels.min() < memory.pixels.max() <= 1
    np.testing.assert_array_equal(memory.pixels, disk.pixels)
    np.testing.assert_array_equal(memory.label_ids, disk.label_ids)
    assert np.bincount(memory.label_ids).tolist() == [5, 0, 4, 3]
    stream = data.streamed(source, data.scan([pattern]), 5, seed=1, first_epoch=0)
    pixels, ids = epoch_of(stream, 5, 0)
    np.testing.assert_array_equal(in_order(pixels), in_order(memory.pixels))
    assert sorted(ids) == sorted(memory.label_ids)


def test_two_splits_are_kept_apart(tmp_path: Path, source: data.Input, pattern: str) -> None:
    other = graphs.write_split(tmp_path / "examples", "eval", {"green": 3}, size=SIZE)
    splits = {"train": data.scan([pattern]), "eval": data.scan([other])}
    kept = data.keep(source, splits, "memory", tmp_path)
    np.testing.assert_array_equal(
        kept["train"].pixels, kept_in("memory", source, pattern, tmp_path).pixels
    )
    assert kept["eval"].label_ids.tolist() == [1, 1, 1]
    assert kept["eval"].pixels.shape == (3, SIZE, SIZE, 3)


def test_nothing_is_left_on_the_disk(tmp_path: Path, source: data.Input, pattern: str) -> None:
    kept_in("disk", source, pattern, tmp_path / "disk")
    assert list((tmp_path / "disk").iterdir()) == []


def test_ordered_gives_each_row_once(tmp_path: Path, source: data.Input, pattern: str) -> None:
    kept = kept_in("memory", source, pattern, tmp_path)
    batches = list(data.ordered(kept, 5).as_numpy_iterator())
    assert [len(ids) for _, ids in batches] == [5, 5, 2]
    np.testing.assert_array_equal(np.concatenate([pixels for pixels, _ in batches]), kept.pixels)


@pytest.mark.parametrize("place", ["memory", "off"])
def test_an_epoch_is_shuffled_by_seed_and_epoch(
    place: data.Place, tmp_path: Path, source: data.Input, pattern: str
) -> None:
    records = data.scan([pattern])
    kept = kept_in("memory", source, pattern, tmp_path)

    def start(seed: int, first: int) -> tf.data.Dataset:
        if place == "off":
            return data.streamed(source, records, 5, seed, first)
        return data.shuffled(kept, 5, seed, first)

    first, second = (epoch_of(start(1, 0), 5, epoch)[0] for epoch in (0, 1))
    np.testing.assert_array_equal(in_order(first), in_order(kept.pixels))
    assert not np.array_equal(first, kept.pixels)
    assert not np.array_equal(first, second)
    # Resumed before its second epoch, a run sees what an uninterrupted one saw.
    np.testing.assert_array_equal(epoch_of(start(1, 1), 5, 0)[0], second)
    np.testing.assert_array_equal(epoch_of(start(1, 0), 5, 0)[0], first)
    assert not np.array_equal(epoch_of(start(2, 0), 5, 0)[0], first)


def test_a_label_that_is_no_class_is_refused(tmp_path: Path) -> None:
    two = data.Input(graphs.transform_graph(SIZE, 3, ("blue", "red")), SIZE, 3)
    pattern = graphs.write_split(tmp_path / "examples", "train", COUNTS, size=SIZE)
    with pytest.raises(DataRefused, match="3 of 12 images in train have a label"):
        kept_in("memory", two, pattern, tmp_path)
    with pytest.raises(tf.errors.InvalidArgumentError, match="none of the schema"):
        epoch_of(data.streamed(two, data.scan([pattern]), 5, seed=1, first_epoch=0), 5, 0)


def test_the_place_follows_from_the_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, event_log: Path
) -> None:
    monkeypatch.setattr(data, "available_memory", lambda: 1000)
    monkeypatch.setattr(
        data.shutil, "disk_usage", lambda path: data.shutil._ntuple_diskusage(9000, 4000, 5000)
    )
    assert data.choose_place("auto", 500, tmp_path) == "memory"
    assert data.choose_place("auto", 501, tmp_path) == "disk"
    assert data.choose_place("auto", 2501, tmp_path) == "off"
    assert data.choose_place("off", 1, tmp_path) == "off"
    assert data.choose_place("memory", 1000, tmp_path) == "memory"
    with pytest.raises(ConfigError, match="train.cache=memory needs .* auto"):
        data.choose_place("memory", 1001, tmp_path)
    with pytest.raises(ConfigError, match="train.cache=disk needs"):
        data.choose_place("disk", 5001, tmp_path)
    notes = [event["text"] for _, event in events.read(event_log)]
    assert "stay in memory" in notes[0]
    assert "stay on disk" in notes[1]
    assert "decoded again in each epoch" in notes[2]


def test_a_container_s_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_CGROUP", tmp_path)
    free = data.available_memory()
    assert free > 1000
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("4000\n")
    assert data.available_memory() == 1000
    (tmp_path / "memory.max").write_text("max\n")
    assert data.available_memory() > 1000


def test_sample_images_are_the_small_ones(pattern: str) -> None:
    images = data.sample_images(data.scan([pattern]), 3)
    assert len(images) == 3
    assert all(image.startswith(b"\x89PNG") for image in images)
