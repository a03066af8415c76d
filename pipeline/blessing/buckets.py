"""Which test images are alike: buckets of each fact, each source and each column of a manifest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.config.slices import FACTS
from pipeline.features import SLICE
from pipeline.ingest.entries import SPLIT_NAMES

# Quartiles: with more buckets each has too few images to tell anything.
_BUCKETS = 4
_MOST_VALUES = 20
_NUMBERS = ("brightness", "contrast", "sharpness", "resolution", "aspect_ratio")
# What writers of TFRecords put behind a name: the shards of one set are one source.
_SHARD = re.compile(r"-\d+-of-\d+(?=\.|$)")

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bucket:
    """The images, int64 row numbers, that are alike in one thing."""

    feature: str
    name: str
    rows: Rows


def found_in(facts: pa.Table, wanted: Sequence[str] | None, least: int) -> list[Bucket]:
    """Returns the buckets, by feature.

    A bucket has at least `least` images and leaves out as many: one of nearly all images says
    what their accuracy says. A feature of more than 20 values keeps the most frequent.

    Args:
      facts: a row an image, with the columns of images.parquet; `span` where there are spans.
      wanted: names of facts and of a manifest's columns; None takes all there are.
      least: images of a bucket.
    """
    columns = [name for name in facts.column_names if name.startswith(SLICE)]
    plain = {name: _column_feature(name) for name in columns}
    features = [*FACTS, *plain.values()]
    asked = features if wanted is None else [_asked(name) for name in wanted]
    buckets = []
    for feature in features:
        if feature in asked:
            column = next((name for name, shown in plain.items() if shown == feature), None)
            buckets += list(_buckets(facts, feature, column, least))
    most = facts.num_rows - least
    return [bucket for bucket in buckets if least <= len(bucket.rows) <= most]


def _column_feature(column: str) -> str:
    """Returns a column's name without its prefix, unless a fact is called so."""
    bare = column.removeprefix(SLICE)
    return column if bare in FACTS else bare


def _asked(name: str) -> str:
    return name if name in FACTS or not name.startswith(SLICE) else _column_feature(name)


def _buckets(facts: pa.Table, feature: str, column: str | None, least: int) -> Iterator[Bucket]:
    if column is None and feature in _NUMBERS:
        values = _number(facts, feature)
        if values is not None:
            yield from _ranges(feature, values, least)
        return
    names = _words(facts, column or feature)
    if names is not None:
        yield from _kinds(feature, names)


def _number(facts: pa.Table, feature: str) -> Floats | None:
    """Returns float64 [images]; `resolution` is the shorter side in pixels."""
    parts = ("width", "height") if feature == "resolution" else (feature,)
    if not set(parts) <= set(facts.column_names):
        return None
    numbers = [np.asarray(facts[part].to_numpy(), np.float64) for part in parts]
    return np.minimum.reduce(numbers)


def _ranges(feature: str, values: Floats, least: int) -> Iterator[Bucket]:
    """Cuts at the quartiles; a cut that leaves too few images on a side is dropped."""
    if not len(values):
        return
    edges: list[float] = []
    start = 0
    ordered = np.sort(values)
    # Values that there are: an edge between two sizes would be the size of no image.
    quartiles = np.quantile(values, np.arange(1, _BUCKETS) / _BUCKETS, method="higher")
    for edge in np.unique(quartiles).tolist():
        place = int(np.searchsorted(ordered, edge))
        if place - start >= least and len(values) - place >= least:
            edges.append(edge)
            start = place
    if not edges:
        return
    number = np.searchsorted(edges, values, side="right")
    for place, name in enumerate(_named(edges)):
        yield Bucket(feature, name, np.flatnonzero(number == place))


def _named(edges: Sequence[float]) -> list[str]:
    """Returns the names of the ranges between the edges; the upper end is not part of a range."""
    for digits in range(3, 17):
        words = [f"{edge:.{digits}g}" for edge in edges]
        if len(set(words)) == len(words):
            break
    between = [f"{low} to {high}" for low, high in pairwise(words)]
    return [f"below {words[0]}", *between, f"from {words[-1]}"]


def _words(facts: pa.Table, column: str) -> list[str] | None:
    if column == "source":
        return _sources(facts)
    if column not in facts.column_names:
        return None
    return [_shown(value) for value in facts[column].to_pylist()]


def _shown(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    # As no value is written that stands in a file: the word alone may be one.
    return "(missing)" if value is None else str(value)


def _kinds(feature: str, names: Sequence[str]) -> Iterator[Bucket]:
    words = np.asarray(names, object)
    for name, _ in Counter(names).most_common(_MOST_VALUES):
        yield Bucket(feature, name, np.flatnonzero(words == name))


def _sources(facts: pa.Table) -> list[str] | None:
    """Returns the folder or TFRecord file of each image, without the folders of split and class.

    None where these say nothing new: there is one only, or each holds images of one class alone.
    """
    labels = facts["label"].to_pylist()
    names = [_shown(name) for name in facts["id"].to_pylist()]
    if "span" in facts.column_names:  # it stands before most names, and is a slice of its own
        spans = facts["span"].to_pylist()
        names = [name.removeprefix(f"{span}/") for name, span in zip(names, spans, strict=True)]
    found = [_source(name, label) for name, label in zip(names, labels, strict=True)]
    pairs = set(zip(found, labels, strict=True))
    sources = {source for source, _ in pairs}
    return found if 1 < len(sources) < len(pairs) else None


def _source(name: str, label: str) -> str:
    archive, _, offset = name.rpartition("#")
    if archive and offset.isdigit():
        return _SHARD.sub("", archive)
    folders = name.split("/")[:-1]
    if folders and folders[0].casefold() in SPLIT_NAMES and folders[0] != label:
        folders = folders[1:]
    of_class = label.split("/")
    return "/".join(folder for folder in folders if folder not in of_class) or "."
