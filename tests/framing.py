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


def record(label: str, number: int, /, **features: wire.Values) -> bytes:
    """Returns an Example of a picture, with the label of its colour unless `features` has one."""
    encoded = pictures.encoded(picture(label, number), "PNG")
    given = features or {"image/class/text": [label.encode()]}
    return wire.pack({"image/encoded": [encoded], **given})
