"""Where a split's pixels and targets are kept between epochs: in memory, in a file, or nowhere.

The transform graph's output is computed once, and kept as one float32 array for all splits.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import psutil

from pipeline import events, heads
from pipeline.errors import ConfigError, DataRefused
from pipeline.records import Input, Records, unpacked

Place = Literal["memory", "disk", "off"]

# What is kept may take this share of the memory or the disk that is free: training needs some too.
_SHARE: Final = 0.5

_PROGRESS_SECONDS: Final = 0.2

_CGROUP: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Kept:
    """A split behind the transform graph, row by row.

    Attributes:
      pixels: float32 [examples, side, side, channels], in memory or mapped from a file.
      targets: by head, int64 or float32 [examples] each.
    """

    pixels: npt.NDArray[np.float32]
    targets: dict[str, npt.NDArray[Any]]

    @property
    def label_ids(self) -> npt.NDArray[np.int64]:
        """Returns the label's targets, int64 [examples]."""
        return self.targets[heads.LABEL]

    def thinned(self, rows: int) -> Kept:
        """Returns this many rows, evenly spread; nothing is copied."""
        step = max(1, len(self.pixels) // rows)
        return Kept(
            self.pixels[::step][:rows],
            {name: values[::step][:rows] for name, values in self.targets.items()},
        )


def bytes_kept(source: Input, *splits: Records) -> int:
    """Returns the size of these splits behind the transform graph."""
    row = 4 * int(np.prod(source.shape)) + 8 * len(source.heads)
    return sum(records.examples for records in splits) * row


def choose_place(wanted: Literal["auto", "memory", "disk", "off"], need: int, disk: Path) -> Place:
    """Says where `need` bytes are kept between epochs, and notes it.

    Args:
      wanted: train.cache.
      need: bytes.
      disk: a directory on the disk that would take them.

    Raises:
      ConfigError: they do not fit where train.cache wants them.
    """
    memory, free = available_memory(), shutil.disk_usage(disk).free
    if wanted == "off" or (wanted == "auto" and need > _SHARE * max(memory, free)):
        room = f"{_gib(memory)} of memory and {_gib(free)} of disk are free"
        why = "as train.cache says" if wanted == "off" else f"{_gib(need)} would be needed, {room}"
        events.note(f"Images are decoded again in each epoch: {why}.")
        return "off"
    if wanted == "memory" or (wanted == "auto" and need <= _SHARE * memory):
        _check_room("memory", need, memory)
        events.note(f"Transformed images stay in memory: {_gib(need)} of {_gib(memory)} available.")
        return "memory"
    _check_room("disk", need, free)
    events.note(f"Transformed images stay on disk: {_gib(need)} of {_gib(free)} free.")
    return "disk"


def available_memory() -> int:
    """Returns the bytes of memory still to be had, within the container's limit if there is one."""
    available = psutil.virtual_memory().available
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no cgroup of version 2, or "max"
        return available
    return max(0, min(available, limit - used))


def keep(source: Input, splits: Mapping[str, Records], place: Place, disk: Path) -> dict[str, Kept]:
    """Runs splits through the transform graph once; one array holds them all.

    Args:
      source: the transform graph.
      splits: by name.
      place: `memory` or `disk`.
      disk: the directory for the file; its name is gone as soon as it is open, so that nothing
        is left behind however this process ends.

    Raises:
      DataRefused: an example's label is none of the classes.
    """
    total = sum(records.examples for records in splits.values())
    pixels = _room((total, *source.shape), place, disk)
    targets = {
        head.name: np.empty(total, np.int64 if head.kind == "class" else np.float32)
        for head in source.heads
    }
    done, told = 0, 0.0
    for batch, answers in source.read(*splits.values()).as_numpy_iterator():
        rows = slice(done, done + len(batch))
        pixels[rows] = batch
        for name, values in unpacked(answers).items():
            targets[name][rows] = values
        done = rows.stop
        if done == total or time.monotonic() - told >= _PROGRESS_SECONDS:
            told = time.monotonic()
            events.progress("Trainer", done, total, "images", "reading")
    kept, start = {}, 0
    for name, records in splits.items():
        rows = slice(start, start + records.examples)
        kept[name] = Kept(pixels[rows], {head: values[rows] for head, values in targets.items()})
        _check_labels(name, kept[name])
        start = rows.stop
    return kept


def _check_labels(name: str, kept: Kept) -> None:
    unknown = int((kept.label_ids < 0).sum())
    if unknown:
        raise DataRefused(
            f"{unknown} of {len(kept.label_ids)} images in {name} have a label that is none of "
            "the schema's classes. Run again with validation.unseen_labels=fail to see which."
        )


def _room(shape: tuple[int, ...], place: Place, disk: Path) -> npt.NDArray[np.float32]:
    if place == "memory":
        return np.empty(shape, np.float32)
    disk.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=disk, prefix="images-") as file:
        return np.memmap(file.name, np.float32, mode="w+", shape=shape)


def _check_room(where: str, need: int, free: int) -> None:
    if need > free:
        raise ConfigError(
            f"train.cache={where} needs {_gib(need)}, and {_gib(free)} of {where} is free. "
            "Leave train.cache at auto, or make transform.image_size smaller."
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
