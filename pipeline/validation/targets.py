"""What the ingest report tells of the targets of heads, image by image."""

from __future__ import annotations

import math
import struct
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
from tensorflow_metadata.proto.v0 import schema_pb2

from pipeline.errors import bounded
from pipeline.features import CLASS, TARGET
from pipeline.ingest.entries import shown


def class_counts(images: Path | None) -> dict[str, dict[str, dict[str, int]]]:
    """Returns {feature: {class: {split: images}}} of the columns that class heads learn.

    Args:
      images: images.parquet; None tells of none.
    """
    if images is None:
        return {}
    names = [name for name in pq.read_schema(images).names if name.startswith(CLASS)]
    found: dict[str, dict[str, dict[str, int]]] = {name: {} for name in names}
    for name in names:
        table = pq.read_table(images, columns=[name, "split"])
        pairs = Counter(zip(table[name].to_pylist(), table["split"].to_pylist(), strict=True))
        for (label, split), count in sorted(pairs.items()):
            found[name].setdefault(label, {})[split] = count
    return found


def outside(images: Path | None, schema: schema_pb2.Schema, feature: str, split: str) -> str:
    """Returns which images have a target outside the range that its head allows, and what it is.

    Args:
      images: images.parquet; None tells nothing.
      schema: with the range.
      feature: any; what is no target has no range.
      split: whose images.
    """
    domain = next((one.float_domain for one in schema.feature if one.name == feature), None)
    if images is None or domain is None or not feature.startswith(TARGET):
        return ""
    low = domain.min if domain.HasField("min") else -math.inf
    high = domain.max if domain.HasField("max") else math.inf
    columns = ["id", feature]
    table = pq.read_table(images, columns=columns, filters=[("split", "=", split)])
    rows = [
        f"{shown(name)}: {value:g}"
        for name, value in zip(*(table[column].to_pylist() for column in columns), strict=True)
        # The schema holds a float32 of the bound, and the examples one of the value.
        if not low <= struct.unpack("f", struct.pack("f", value))[0] <= high
    ]
    return f" ({bounded(rows)})" if rows else ""
