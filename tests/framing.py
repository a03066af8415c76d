"""TFRecords as TensorFlow writes them, without it."""

from __future__ import annotations

import struct

from pipeline.ingest import records, wire
from tests import pictures
from tests.made import picture


def framed(data: bytes) -> bytes:
    """Returns a record as TensorFlow frames it."""
    length = struct.pack("<Q", len(data))
    head = length + struct.pack("<I", records.masked(records.crc32c(length)))
    return head + data + struct.pack("<I", records.masked(records.crc32c(data)))


def record(label: str, number: int) -> bytes:
    encoded = pictures.encoded(picture(label, number), "PNG")
    return wire.pack({"image/encoded": [encoded], "image/class/text": [label.encode()]})
