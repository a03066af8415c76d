"""The input: records through the transform graph, kept in each place, shuffled by (seed, epoch)."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipeline import events, heads
from pipeline.config import Train
from pipeline.errors import ConfigError, DataRefused, SafelightError
from pipeline.heads import Head
from pipeline.trainer import cache, data
from tests import graphs

SIZE = 16
COUNTS = {"blue": 5, "red": 4, "white": 3}
ROWS = sum(COUNTS.values())

Loaded = dict[data.Place, data.Loaded]


LABEL = Head(name=heads.LABEL, kind="class", classes=graphs.CLASSES)


@pytest.fixture(scope="module")
def source() -> data.Input:
    return data.Input(graphs.transform_graph(SIZE, 3), SIZE, 3, [LABEL])


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("examples")
    return graphs.write_split(root, "train", COUNTS, size=SIZE)


@pytest.fixture(scope="module")
def loaded(source: data.Input, pattern: str, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """The examples as train and as eval, in memory and decoded anew."""
    records, disk = data.scan([pattern]), tmp_path_factory.mktemp("disk")
    kept = data.keep(source, {"train": records, "eval": records}, "memory", disk)
    return {
        "memory": data.Loaded(source, records, records, kept),
        "off": data.Loaded(source, records, records, None),
    }


def train_of(loaded: Loaded) -> data.Kept:
    kept = loaded["memory"].kept
    assert kept is not None
    return kept["train"]


def kept_in(place: data.Place, source: data.Input, pattern: str, disk: Path) -> data.Kept:
    return data.keep(source, {"train": data.scan([pattern])}, place, disk)["train"]


def made(loaded: data.Loaded, **options: Any) -> data.Batches:
    """Returns batches of 5; `options` are those of batches_of, and keys of train."""
    known = ("layout", "first_epoch", "images")
    chosen = {name: options.pop(name) for name in known if name in options}
    return data.batches_of(loaded, Train(batch_size=5, **{"seed": 1, **options}), **chosen)


def epochs_of(batches: data.Batches, count: int = 2) -> list[tuple[np.ndarray, ...]]:
    """Returns pixels, targets and weights, if any, of the first epochs."""
    elements = batches.train.as_numpy_iterator()
    epochs = [list(itertools.islice(elements, batches.steps)) for _ in range(count)]
    return [tuple(np.concatenate(part) for part in zip(*epoch, strict=True)) for epoch in epochs]


def epoch_of(batches: data.Batches) -> tuple[np.ndarray, ...]:
    return epochs_of(batches, 1)[0]


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


def test_scan_refuses_what_is_not_whole(tmp_path: Path) -> None:
    pattern = graphs.write_split(tmp_path, "train", COUNTS, size=SIZE)
    path = data.scan([pattern]).files[0]
    os.truncate(path, path.stat().st_size - 3)
    with pytest.raises(SafelightError, match=f"{path.name} is not a whole.*run again"):
        data.scan([pattern])


def test_scan_refuses_nothing_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataRefused, match="no examples in .*nowhere"):
        data.scan([str(tmp_path / "nowhere" / "*")])


def test_memory_disk_and_stream_hold_the_same_pixels(
    tmp_path: Path, source: data.Input, pattern: str, loaded: Loaded
) -> None:
    memory = kept_in("memory", source, pattern, tmp_path)
    disk = kept_in("disk", source, pattern, tmp_path / "disk")
    assert memory.pixels.shape == (ROWS, SIZE, SIZE, 3)
    assert memory.pixels.dtype == np.float32
    assert 0 <= memory.pixels.min() < memory.pixels.max() <= 1
    np.testing.assert_array_equal(memory.pixels, disk.pixels)
    np.testing.assert_array_equal(memory.label_ids, disk.label_ids)
    assert np.bincount(memory.label_ids).tolist() == [5, 0, 4, 3]
    pixels, ids = epoch_of(made(loaded["off"]))
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


@pytest.mark.parametrize("place", ["memory", "off"])
def test_eval_comes_once_in_its_order(place: data.Place, loaded: Loaded) -> None:
    [(pixels, ids)] = made(loaded[place]).held_out.as_numpy_iterator()
    kept = train_of(loaded)
    np.testing.assert_array_equal(pixels, kept.pixels)
    np.testing.assert_array_equal(ids, kept.label_ids)


@pytest.mark.parametrize("place", ["memory", "off"])
def test_an_epoch_is_shuffled_by_seed_and_epoch(place: data.Place, loaded: Loaded) -> None:
    kept = train_of(loaded)
    batches = made(loaded[place])
    first, second = (epoch[0] for epoch in epochs_of(batches))
    np.testing.assert_array_equal(in_order(first), in_order(kept.pixels))
    assert not np.array_equal(first, kept.pixels)
    assert not np.array_equal(first, second)
    # Resumed before its second epoch, a run sees what an uninterrupted one saw.
    resumed = made(loaded[place], first_epoch=1)
    np.testing.assert_array_equal(epoch_of(resumed)[0], second)
    np.testing.assert_array_equal(epoch_of(made(loaded[place]))[0], first)
    assert not np.array_equal(epoch_of(made(loaded[place], seed=2))[0], first)


@pytest.mark.parametrize("place", ["memory", "off"])
def test_an_epoch_is_augmented_by_seed_epoch_and_step(place: data.Place, loaded: Loaded) -> None:
    policy = ["crop", "erasing", "mixup"]
    batches = made(loaded[place], augment=policy)
    first, second = epochs_of(batches)
    resumed = epoch_of(made(loaded[place], first_epoch=1, augment=policy))
    for part, again in zip(second, resumed, strict=True):
        np.testing.assert_array_equal(part, again)
    assert not np.array_equal(in_order(first[0]), in_order(second[0]))
    assert first[1].shape == (ROWS, len(graphs.CLASSES))
    np.testing.assert_allclose(first[1].sum(1), 1, atol=1e-6)
    # Eval is never augmented, and its labels stay numbers.
    [(pixels, ids)] = batches.held_out.as_numpy_iterator()
    assert ids.dtype == np.int64
    np.testing.assert_array_equal(pixels, next(made(loaded[place]).held_out.as_numpy_iterator())[0])


@pytest.mark.parametrize("place", ["memory", "off"])
def test_rare_classes_are_drawn_more_often(place: data.Place, loaded: Loaded) -> None:
    batches = made(loaded[place], oversample=1.0)
    read = epochs_of(batches, 5)
    epochs = [np.bincount(ids, minlength=4) for _, ids in read]
    assert all(drawn.sum() == ROWS for drawn in epochs)
    total = np.sum(epochs, axis=0)  # of 60, 20 for each of the three classes
    assert total[1] == 0
    spread = 0 if place == "memory" else 5
    assert all(abs(int(total[number]) - 20) <= spread for number in (0, 2, 3))
    resumed = made(loaded[place], first_epoch=1, oversample=1.0)
    for part, again in zip(read[1], epoch_of(resumed), strict=True):
        np.testing.assert_array_equal(part, again)


@pytest.mark.parametrize("place", ["memory", "off"])
@pytest.mark.parametrize("policy", [(), ("mixup",)])
def test_weights_follow_the_labels(
    place: data.Place, policy: tuple[str, ...], loaded: Loaded
) -> None:
    batches = made(loaded[place], class_weights="balanced", augment=policy)
    _, targets, weights = epoch_of(batches)
    of_class = np.array([12 / 15, 0, 12 / 12, 12 / 9])
    wanted = targets @ of_class if policy else of_class[targets]
    np.testing.assert_allclose(weights, wanted, rtol=1e-5)


@pytest.mark.parametrize("place", ["memory", "off"])
def test_workers_share_each_batch(place: data.Place, loaded: Loaded) -> None:
    alone = made(loaded[place])
    shares = [
        made(loaded[place], layout=data.Layout(batch_size=5, worker=index, workers=2))
        for index in range(2)
    ]
    together = itertools.islice(alone.train.as_numpy_iterator(), alone.steps)
    parts = [itertools.islice(share.train.as_numpy_iterator(), alone.steps) for share in shares]
    for (pixels, ids), *both in zip(together, *parts, strict=True):
        assert [len(part[1]) for part in both] == [-(-len(ids) // 2), len(ids) // 2]
        for index, part in enumerate(both):
            np.testing.assert_array_equal(part[0], pixels[index::2])
            np.testing.assert_array_equal(part[1], ids[index::2])


@pytest.mark.parametrize("place", ["memory", "off"])
def test_whole_batches_have_static_shapes(
    place: data.Place, loaded: Loaded, event_log: Path
) -> None:
    layout = data.Layout(batch_size=8, workers=2, whole=True, multiple=8)
    batches = made(loaded[place], layout=layout, class_weights="balanced")
    assert batches.steps == 1
    pixels, ids, weights = batches.train.element_spec
    assert pixels.shape == (4, SIZE, SIZE, 3)
    assert ids.shape == (4,)
    assert weights.shape == (4,)
    first, second = (epoch[0] for epoch in epochs_of(batches))
    assert len(first) == 4
    assert not np.array_equal(first, second)
    assert batches.held_out.element_spec[0].shape[0] == 8
    assert [len(ids) for _, ids in batches.held_out.as_numpy_iterator()] == [8]
    texts = [event.get("text", "") for _, event in events.read(event_log)]
    assert any("Eval leaves out 4 of 12 images" in text for text in texts)


def test_whole_batches_of_eval_leave_out_few() -> None:
    for rows in (1, 7, 8, 255, 256, 257, 300, 10_007):
        for multiple in (1, 8):
            size = data._even_batch(rows, multiple)
            batches = -(-rows // data.DECODE_BATCH)
            assert 0 < size <= data.DECODE_BATCH
            assert rows % size <= max(multiple * batches - 1, 0)
            assert size % multiple == 0 or rows < multiple


@pytest.mark.parametrize("place", ["memory", "off"])
def test_some_of_the_images(place: data.Place, loaded: Loaded) -> None:
    batches = made(loaded[place], images=6)
    assert (batches.examples, batches.steps) == (6, 2)
    first, second = (epoch[0] for epoch in epochs_of(batches))
    assert len(first) == 6
    np.testing.assert_array_equal(in_order(first), in_order(second))
    assert made(loaded[place], images=100).examples == ROWS


def test_labels_are_read_alone(tmp_path: Path, source: data.Input, pattern: str) -> None:
    kept = kept_in("memory", source, pattern, tmp_path)
    np.testing.assert_array_equal(source.label_ids(data.scan([pattern])), kept.label_ids)


def test_black_and_white_behind_the_graph(source: data.Input) -> None:
    assert source.value_range() is None


def test_a_label_that_is_no_class_is_refused(tmp_path: Path) -> None:
    two = data.Input(graphs.transform_graph(SIZE, 3, ("blue", "red")), SIZE, 3)
    pattern = graphs.write_split(tmp_path / "examples", "train", COUNTS, size=SIZE)
    with pytest.raises(DataRefused, match="3 of 12 images in train have a label"):
        kept_in("memory", two, pattern, tmp_path)
    with pytest.raises(tf.errors.InvalidArgumentError, match="none of the schema"):
        epoch_of(made(data.Loaded(two, data.scan([pattern]), data.scan([pattern]), None)))


def test_the_place_follows_from_the_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, event_log: Path
) -> None:
    monkeypatch.setattr(cache, "available_memory", lambda: 1000)
    monkeypatch.setattr(
        cache.shutil, "disk_usage", lambda path: cache.shutil._ntuple_diskusage(9000, 4000, 5000)
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
    monkeypatch.setattr(cache, "_CGROUP", tmp_path)
    free = cache.available_memory()
    assert free > 1000
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("4000\n")
    assert cache.available_memory() == 1000
    (tmp_path / "memory.max").write_text("max\n")
    assert cache.available_memory() > 1000


def test_sample_images_are_the_small_ones(pattern: str) -> None:
    images = data.sample_images(data.scan([pattern]), 3)
    assert len(images) == 3
    assert all(image.startswith(b"\x89PNG") for image in images)
