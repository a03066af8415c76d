"""A window of spans as one set of examples: linked, not copied, and one report of them all.

An image is named by its path in its own span, and spans have the same paths: 00001.png is in each.
The newest span's images keep their names in the window; those of the others, and of the golden
set, get their span's name before theirs, as in `golden/red/00001.png`. images.parquet has these
names, and so have the records of `test`, for what is said about test images is found by them: of
the golden set they are written anew. The records of the other splits, and of `older`, are linked
as they are: nobody looks an image up in them by its name.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import events
from pipeline.errors import DataRefused, SafelightError
from pipeline.features import CALIB, ID, SPLITS_WITH_CALIB, TEST
from pipeline.ingest import wire

# Beside the window's splits: the test images of spans that no longer judge. They tell what a model
# has forgotten; no training sees them.
OLDER = "older"

_TABLES = ("images.parquet", "quarantine.parquet", "duplicates.parquet")
# In the tables: what names an image that was kept.
_NAMES = (ID, f"other_{ID}")
_COUNTED = ("quarantined", "duplicates", "split_duplicates", "group_straddles", "files", "bytes")
_TALLIED = ("quarantine_reasons", "converted")


@dataclass(frozen=True)
class Part:
    """One span of the window: what ingest wrote of it, and its part in the window.

    `golden`: all its images judge. `judged`: its test images judge; those of other spans are left
    out, and are seen by no training either.
    """

    name: str
    fingerprint: str
    golden: bool
    judged: bool
    examples: Path
    report: Path

    def splits(self) -> dict[str, tuple[str, ...]]:
        """Returns, for each split of the window, the splits of this span that go into it."""
        there = splits_of([self])
        if self.golden:
            return {TEST: there}
        return {split: (split,) for split in there if split != TEST or self.judged}

    def summary(self) -> dict[str, Any]:
        """Returns the span's summary.json."""
        loaded: dict[str, Any] = json.loads((self.report / "summary.json").read_text("utf-8"))
        return loaded


def splits_of(parts: Sequence[Part]) -> tuple[str, ...]:
    """Returns the splits of a window: calib among them where a span has it."""
    calib = any((part.examples / f"Split-{CALIB}").is_dir() for part in parts)
    return tuple(split for split in SPLITS_WITH_CALIB if split != CALIB or calib)


def check(parts: Sequence[Part]) -> None:
    """Checks that what ingest read is what the window was resolved to.

    Raises:
      SafelightError: a span's files changed between the decision and the reading. Its data isn't
        refused, nor that of the other spans: the next round decides anew.
    """
    for part in parts:
        read = part.summary()["fingerprint"]
        if read != part.fingerprint:
            raise SafelightError(
                f"{part.name} changed while it was read: expected fingerprint "
                f"{part.fingerprint[:16]}, read {read[:16]}. What is there now is a new revision: "
                "leave it alone until the next `safelight retrain` takes it."
            )


def link(parts: Sequence[Part], examples: Path) -> None:
    """Links each split's TFRecords into `examples`, numbered anew, and those of `older` beside.

    Those of `test` whose images get other names are written anew. A file system without hard links
    gets copies.
    """
    renamed = _renamed(parts)
    for split in splits_of(parts):
        files = [
            (file, part.name if split == TEST and part in renamed else "")
            for part in parts
            for source in part.splits().get(split, ())
            for file in _files(part, source)
        ]
        _link_all(files, examples / f"Split-{split}")
    older = [(file, "") for part in _older(parts) for file in _files(part, TEST)]
    if older:
        _link_all(older, examples / f"Split-{OLDER}")


def _renamed(parts: Sequence[Part]) -> list[Part]:
    """Returns the parts whose images get the part's name before theirs: all but the newest span."""
    newest = [part for part in parts if not part.golden][-1:]
    return [part for part in parts if part not in newest]


def _older(parts: Sequence[Part]) -> list[Part]:
    """Returns the spans whose test images neither judge nor train."""
    return [part for part in parts if not part.golden and not part.judged]


def _files(part: Part, split: str) -> list[Path]:
    return sorted((part.examples / f"Split-{split}").glob("data_tfrecord-*"))


def _link_all(files: Sequence[tuple[Path, str]], folder: Path) -> None:
    """Links files, each with what comes before its images' names: with "" they stay the same."""
    folder.mkdir(parents=True)
    for number, (file, before) in enumerate(files):
        target = folder / f"data_tfrecord-{number:05d}-of-{len(files):05d}"
        if before:
            _copy_renamed(file, target, before)
            continue
        try:
            os.link(file, target)
        except OSError:
            shutil.copyfile(file, target)


def _copy_renamed(file: Path, target: Path, before: str) -> None:
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(target)) as writer:
        for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
            values = wire.unpack(record)
            [name] = values[ID]
            writer.write(wire.pack({**values, ID: [b"%s/%s" % (before.encode(), name)]}))


def write_report(
    parts: Sequence[Part],
    known_classes: Sequence[str],
    known_columns: Mapping[str, Sequence[str]],
    fingerprint: str,
    report: Path,
) -> dict[str, Any]:
    """Writes the window's ingest report, and returns its summary.

    Args:
      parts: the window.
      known_classes: names whose order is kept; new ones follow by name.
      known_columns: the same for the columns of further heads.
      fingerprint: of the window.
      report: an empty folder.

    Raises:
      DataRefused: no image judges, or none trains.
    """
    summaries = [part.summary() for part in parts]
    for name in _TABLES:
        _write_table(name, parts, report)
    per_class = _per_class(parts, summaries, known_classes)
    summary = {
        **summaries[0],
        "fingerprint": fingerprint,
        "data": os.path.commonpath([str(one["data"]) for one in summaries]),
        "classes": list(per_class),
        "per_class": per_class,
        "examples": {
            split: sum(counts[split] for counts in per_class.values()) for split in splits_of(parts)
        },
        **{key: sum(one.get(key, 0) for one in summaries) for key in _COUNTED},
        **{key: _tally(key, summaries) for key in _TALLIED},
        "near_duplicates": _alike(summaries),
        "ignored": [name for one in summaries for name in one["ignored"]][:20],
        "ignored_count": sum(one["ignored_count"] for one in summaries),
        "spans": [
            {"name": part.name, "fingerprint": part.fingerprint, "golden": part.golden,
             "judged": part.judged, "examples": one["examples"]}
            for part, one in zip(parts, summaries, strict=True)
        ],
        # In the order of the records of `older`.
        "older": [
            {"name": part.name, "images": part.summary()["examples"][TEST]}
            for part in _older(parts)
        ],
    }  # fmt: skip
    columns = _columns(summaries, known_columns)
    if columns:
        summary["class_columns"] = columns
    text = json.dumps(summary, indent=2, ensure_ascii=False)
    (report / "summary.json").write_text(text + "\n", encoding="utf-8")
    empty = [split for split, count in summary["examples"].items() if not count]
    if empty:
        raise DataRefused(
            f"The window of {len(parts)} spans has no image in {', '.join(empty)}. "
            "Add images to the newest span, or take more spans: retrain.window."
        )
    _warn_of_golden(parts)
    return summary


def _per_class(
    parts: Sequence[Part], summaries: Sequence[dict[str, Any]], known: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Counts images by class, in class order, and by the window's splits."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in known}
    found = sorted({name for one in summaries for name in one["per_class"]} - set(known))
    counts.update((name, Counter()) for name in found)
    for part, summary in zip(parts, summaries, strict=True):
        for split, sources in part.splits().items():
            for name, images in summary["per_class"].items():
                counts[name][split] += sum(images[source] for source in sources)
    return {
        name: {split: images[split] for split in splits_of(parts)}
        for name, images in counts.items()
        if name in known or any(images.values())
    }


def _tally(key: str, summaries: Sequence[dict[str, Any]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for summary in summaries:
        total.update(summary[key])
    return dict(sorted(total.items()))


def _alike(summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the near duplicates within the spans; all were looked for in the same mode."""
    each = [summary["near_duplicates"] for summary in summaries]
    return {**each[0], **{key: sum(one[key] for one in each) for key in ("pairs", "dropped")}}


def _columns(
    summaries: Sequence[dict[str, Any]], known: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for summary in summaries:
        for column, names in summary.get("class_columns", {}).items():
            found.setdefault(column, set()).update(names)
    return {
        column: [*known.get(column, ()), *sorted(names - set(known.get(column, ())))]
        for column, names in found.items()
    }


def _write_table(name: str, parts: Sequence[Part], report: Path) -> None:
    """Puts the spans' rows behind each other; images go by the window's splits and names."""
    tables = []
    renamed = _renamed(parts)
    for part in parts:
        file = part.report / name
        if not file.is_file():
            continue
        table = pq.read_table(file)
        if name == "images.parquet":
            table = _by_window_split(table, part)
        tables.append(_with_names(table, part.name) if part in renamed else table)
    if tables:
        schema = pa.unify_schemas([table.schema for table in tables])
        pq.write_table(pa.concat_tables([_as(table, schema) for table in tables]), report / name)


def _as(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Returns the table with all of the schema's columns; one that it lacks is null."""
    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _by_window_split(table: pa.Table, part: Part) -> pa.Table:
    """Returns the rows that go into the window, in the order in which `link` puts the records.

    A span's rows mix its splits, each in the order of its records. Of a golden set all go into one
    split, which has the records of one behind those of another.
    """
    target = {source: split for split, sources in part.splits().items() for source in sources}
    place = {source: number for number, source in enumerate(target)}
    sources = table["split"].to_pylist()
    rows = [row for row, source in enumerate(sources) if source in target]
    rows.sort(key=lambda row: place[sources[row]])
    splits = pa.array([target[sources[row]] for row in rows], pa.string())
    position = table.schema.get_field_index("split")
    return table.take(pa.array(rows, pa.int64())).set_column(position, "split", splits)


def _with_names(table: pa.Table, before: str) -> pa.Table:
    for column in _NAMES:
        if column in table.column_names:
            names = pc.binary_join_element_wise(before.encode(), table[column], b"/")
            table = table.set_column(table.schema.get_field_index(column), column, names)
    return table


def _warn_of_golden(parts: Sequence[Part]) -> None:
    """Says how many golden images also train: what they judge is then too kind."""
    golden: set[str] = set()
    for part in parts:
        if part.golden:
            golden.update(_hashes(part))
    if not golden:
        return
    shared = {one for part in parts if not part.golden for one in _hashes(part)} & golden
    if shared:
        events.warn(
            f"{len(shared)} of {len(golden)} images of the golden set also stand in spans: what it "
            "says of the model is too kind. Take them out of the spans."
        )


def _hashes(part: Part) -> list[str]:
    table = pq.read_table(part.report / "images.parquet", columns=["sha256"])
    hashes: list[str] = table["sha256"].to_pylist()
    return hashes
