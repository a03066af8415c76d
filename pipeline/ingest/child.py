"""A decoding child: reads image files or records, answers with packed Examples and their facts.

Started by `pipeline.ingest.pool` as `python -m pipeline.ingest.child`; frames of pickles go in by
stdin and out by stdout. It imports Pillow and NumPy, and neither TensorFlow nor TFX: a child
starts in a fraction of a second, and one that a hostile file brings down costs a file, not a run.
"""

from __future__ import annotations

import os
import pickle
import resource
import signal
import struct
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np

from pipeline import features, images
from pipeline.errors import DataRefused
from pipeline.ingest import headers, perceptual, records, thumbnail, wire
from pipeline.ingest.entries import LINE_BREAK, MULTI_LABEL, Entry, class_name

FRAME = struct.Struct("<Q")
SPARE_MEMORY = 3 * 2**30
# A decoded image, its upright copy, what Pillow and NumPy hold on the way: bytes a pixel.
BYTES_A_PIXEL = 24


@dataclass(frozen=True)
class Settings:
    """What a child is told once.

    Attributes:
      root: the folder that paths are relative to.
      min_side: see `images.prepare`.
      max_pixels: see `images.prepare`.
      describe: whether perceptual hashes and thumbnails are wanted.
      record_image: names of the feature that holds the image in a TFRecord, the first found wins.
      record_label: the same for the label.
      record_group: the same for the group.
      unpacked: where compressed TFRecords lie unpacked, if there are any.
    """

    root: bytes
    min_side: int
    max_pixels: int
    describe: bool = False
    record_image: tuple[str, ...] = ()
    record_label: tuple[str, ...] = ()
    record_group: tuple[str, ...] = ()
    unpacked: bytes = b""


class Bad(NamedTuple):
    """An image that is quarantined; its thumbnail where there is something to be seen."""

    reason: str
    detail: str
    label: str | None
    thumbnail: bytes | None = None


class Good(NamedTuple):
    """An image that is kept: the serialized tf.Example and what its index row needs."""

    record: bytes
    label: str
    group: str | None
    sha256: bytes
    format: str
    converted: str | None
    height: int
    width: int
    channels: int
    byte_size: int
    scalars: tuple[float, ...]  # in the order of features.FLOAT_FACTS
    channel_mean: tuple[float, ...]
    channel_std: tuple[float, ...]
    phash: int
    thumb: bytes


Result = Good | Bad


# Images up to so many pixels are described together: for small ones, NumPy's calls cost more than
# its work.
_TOGETHER = 128 * 128
# Bytes of pixels that wait to be described: a few megabytes of files can hold gigabytes of them.
_MOST_HELD = 32 * 2**20


class _Ready(NamedTuple):
    """An image that can be kept, before it is described."""

    entry: Entry
    image: images.Prepared
    label: str
    group: str | None
    byte_size: int


def work(
    entries: Sequence[Entry], settings: Settings, alive: Callable[[], None] = lambda: None
) -> list[Result]:
    """Reads images and returns what is stored of each, or why it is quarantined.

    Args:
      entries: what to read.
      settings: how.
      alive: is called each time that a part of them is done.
    """
    results: dict[int, Result] = {}
    ready: dict[int, _Ready] = {}
    held = 0
    for place, entry in enumerate(entries):
        one = _prepare(entry, settings)
        if isinstance(one, Bad):
            results[place] = one
            continue
        ready[place] = one
        held += one.image.pixels.nbytes
        if held >= _MOST_HELD:
            results.update(_described(ready, settings))
            ready, held = {}, 0
            alive()
    results.update(_described(ready, settings))
    return [results[place] for place in range(len(entries))]


def _described(ready: Mapping[int, _Ready], settings: Settings) -> dict[int, Good]:
    results: dict[int, Good] = {}
    alike: dict[Hashable, list[int]] = {}
    for place, one in ready.items():
        height, width, channels = one.image.pixels.shape
        small = height * width <= _TOGETHER
        alike.setdefault((height, width, channels) if small else place, []).append(place)
    for places in alike.values():
        kept = _keep([ready[place] for place in places], settings)
        results.update(zip(places, kept, strict=True))
    return results


def _prepare(entry: Entry, settings: Settings) -> _Ready | Bad:
    label, group = entry.label, entry.group
    data = b""
    try:
        data = _read(entry, settings)
        if entry.offset >= 0:
            data, label, group = _from_record(data, entry, settings)
            label = entry.label or label  # a correction goes before what the record says
        if label is None:
            raise images.BadImage("no_label", "the record has no label feature")
        prepared = images.prepare(data, min_side=settings.min_side, max_pixels=settings.max_pixels)
    except images.BadImage as bad:
        return Bad(bad.reason, bad.detail, label, thumbnail.draw(data))
    except FileNotFoundError:
        return Bad("missing", "the file vanished after it was listed", label)
    except OSError as error:
        return Bad("unreadable", error.strerror or str(error), label)
    except MemoryError:
        return Bad("unreadable", "decoding needs more memory than its pixels account for", label)
    return _Ready(entry, prepared, label, group, len(data))


def _keep(alike: list[_Ready], settings: Settings) -> list[Good]:
    """Describes images of one size."""
    batch = np.stack([one.image.pixels for one in alike])
    facts = images.facts_of(batch)
    described = perceptual.describe(batch) if settings.describe else [(0, b"")] * len(alike)
    return [
        _packed(one, fact, phash, thumb)
        for one, fact, (phash, thumb) in zip(alike, facts, described, strict=True)
    ]


def _packed(one: _Ready, facts: images.Facts, phash: int, thumb: bytes) -> Good:
    prepared, entry = one.image, one.entry
    sha256 = images.digest(prepared.pixels)
    scalars = tuple(getattr(facts, name) for name in features.FLOAT_FACTS)
    example: dict[str, wire.Values] = {
        features.IMAGE: [prepared.encoded],
        features.LABEL: [one.label.encode()],
        features.ID: [entry.id],
        features.SHA256: [sha256.hex().encode()],
        features.FORMAT: [prepared.format.encode()],
        "height": [prepared.height],
        "width": [prepared.width],
        "channels": [prepared.channels],
        "byte_size": [one.byte_size],
        "channel_mean": facts.channel_mean,
        "channel_std": facts.channel_std,
    }
    for name, scalar in zip(features.FLOAT_FACTS, scalars, strict=True):
        example[name] = [scalar]
    if one.group is not None:
        example[features.GROUP] = [one.group.encode("utf-8", "surrogateescape")]
    for name, value in entry.extra:
        example[name] = [value.encode()] if isinstance(value, str) else [value]
    return Good(
        record=wire.pack(example),
        label=one.label,
        group=one.group,
        sha256=sha256,
        format=prepared.format,
        converted=prepared.converted,
        height=prepared.height,
        width=prepared.width,
        channels=prepared.channels,
        byte_size=one.byte_size,
        scalars=scalars,
        channel_mean=facts.channel_mean,
        channel_std=facts.channel_std,
        phash=phash,
        thumb=thumb,
    )


def _read(entry: Entry, settings: Settings) -> bytes:
    """Reads a file or a record; a file that is no image only as far as that takes to see."""
    if entry.offset >= 0:
        return _read_record(entry, settings)
    with open(os.path.join(settings.root, entry.path), "rb") as file:
        head = file.read(headers.SNIFF_BYTES)
        if headers.sniff(head) is None:
            return head
        if os.fstat(file.fileno()).st_size > images.MAX_BYTES:
            raise images.BadImage("bomb", f"the file is larger than {images.MAX_BYTES >> 20} MiB")
        return head + file.read()


def _read_record(entry: Entry, settings: Settings) -> bytes:
    unpacked = os.path.join(settings.unpacked, entry.path)
    place = unpacked if os.path.exists(unpacked) else os.path.join(settings.root, entry.path)
    with open(place, "rb") as file:
        file.seek(entry.offset + records.HEADER_BYTES)
        data = file.read(entry.size)
        footer = file.read(records.FOOTER_BYTES)
    if len(footer) < records.FOOTER_BYTES:
        raise images.BadImage("truncated", "the file ends within the record")
    checksum = records.fast_crc32c(data)
    if checksum is not None and records.masked(checksum) != int.from_bytes(footer, "little"):
        raise images.BadImage("unreadable", "the record's checksum is wrong")
    return data


def _from_record(
    data: bytes, entry: Entry, settings: Settings
) -> tuple[bytes, str | None, str | None]:
    try:
        found = wire.unpack(data)
    except wire.WireError as error:
        raise images.BadImage("unreadable", str(error)) from None
    encoded = _first(found, settings.record_image)
    if not isinstance(encoded, bytes):
        there = ", ".join(sorted(found)[:8]) or "nothing"
        raise images.BadImage(
            "unreadable",
            f"the record has no feature {' or '.join(settings.record_image)}; it has {there}",
        )
    label, group = _first(found, settings.record_label), _first(found, settings.record_group)
    return encoded, _class(label), _text(group) or entry.group


def _first(
    found: dict[str, list[bytes] | list[int] | list[float]], names: tuple[str, ...]
) -> bytes | int | float | None:
    for name in names:
        values = found.get(name)
        if values:
            if len(values) > 1:
                raise images.BadImage(
                    MULTI_LABEL, f"the feature {name} has {len(values)} values; expected one"
                )
            return values[0]
    return None


def _class(value: bytes | int | float | None) -> str | None:
    text = _text(value)
    try:
        return text and class_name(text.encode())
    except DataRefused as refused:
        raise images.BadImage(LINE_BREAK, str(refused)) from None


def _text(value: bytes | int | float | None) -> str | None:
    if value is None:
        return None
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace").strip() or None
    if isinstance(value, float):
        # A feature is a float32: its shortest digits are fewer than the float's.
        return str(int(value) if value.is_integer() else np.float32(value))
    return str(value)


def _receive(stream: BinaryIO) -> bytes | None:
    size = stream.read(FRAME.size)
    return stream.read(FRAME.unpack(size)[0]) if len(size) == FRAME.size else None


def main() -> None:
    """Serves chunks until stdin ends."""
    # Ctrl-C reaches the whole process group; the parent decides what becomes of the children.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    inward, outward = sys.stdin.buffer, sys.stdout.buffer
    first = _receive(inward)
    if first is None:
        return
    settings: Settings = pickle.loads(first)
    limit = SPARE_MEMORY + BYTES_A_PIXEL * settings.max_pixels
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))

    def tell() -> None:
        """Sends an empty frame: the child is there, and at work."""
        outward.write(FRAME.pack(0))
        outward.flush()

    tell()
    while (request := _receive(inward)) is not None:
        results = work([Entry(*item) for item in pickle.loads(request)], settings, tell)
        answer = pickle.dumps([tuple(result) for result in results], protocol=5)
        outward.write(FRAME.pack(len(answer)))
        outward.write(answer)
        outward.flush()


if __name__ == "__main__":
    main()
