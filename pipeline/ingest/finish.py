"""From the parts to the artifacts: decisions, shards without what was removed, and the reports.

`finish` runs once, after every piece is written; it needs neither Beam nor TensorFlow.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import events, features
from pipeline.config import Ingest
from pipeline.errors import DataRefused, bounded
from pipeline.ingest import decide, near, perceptual, piece, plan, records
from pipeline.ingest.entries import Listing, Problem, shown
from pipeline.ingest.splits import Rule

MOST_PAIRS = 1000


@dataclass(frozen=True)
class Task:
    """What one ingest is about.

    Attributes:
      found: the listing, without its entries' need: only form, problems and ignored are read.
      files: images that were to be read.
      bytes: their size.
      rule: how splits are found.
      options: the `ingest` section.
      known_classes: those of the champion, in its order.
      extra: names of a manifest's targets and slices.
      fingerprint: of the data.
    """

    found: Listing
    files: int
    bytes: int
    rule: Rule
    options: Ingest
    known_classes: tuple[str, ...]
    extra: tuple[str, ...]
    fingerprint: str


@dataclass
class _Rows:
    """The rows of all pieces, as columns; the images' facts stay on disk."""

    table: pa.Table
    starts: list[int]  # the first row of each piece
    index: decide.Index


def finish(task: Task, parts: Path, pieces: int, examples: Path, report: Path) -> dict[str, Any]:
    """Writes the shards below `examples` and the files of `report`; returns the summary.

    Raises:
      DataRefused: too many bad files, fewer than two classes, or an empty split.
    """
    rows = _load(parts, pieces)
    decisions = decide.decide(rows.index)
    alike = _near_duplicates(task, rows, decisions, parts)
    bad = _bad_table(task, decisions, parts, pieces)
    _hold_budget(task, bad)
    classes = _classes(task, rows, decisions)
    summary = _summary(task, rows, decisions, bad, classes, len(alike))
    _refuse_empty(summary)
    _write_shards(rows, decisions, parts, examples)
    _write_images(task, rows, decisions, parts, report)
    pq.write_table(bad, report / "quarantine.parquet")
    _write_pairs(rows, decisions, alike, report)
    text = json.dumps(summary, indent=2, ensure_ascii=False)
    (report / "summary.json").write_text(text + "\n", encoding="utf-8")
    return summary


def _load(parts: Path, pieces: int) -> _Rows:
    wanted = ["id", "split", "part", "label", "group", "sha256", "phash", "converted"]
    tables = [
        pq.read_table(parts / f"rows-{number:05d}.parquet", columns=wanted)
        for number in range(pieces)
    ]
    starts = np.cumsum([0, *(table.num_rows for table in tables)]).tolist()
    table = pa.concat_tables(tables).combine_chunks()
    sha256 = b"".join(value.as_buffer() for value in table["sha256"]) if table.num_rows else b""
    label, label_names = _codes(table["label"])
    group, group_names = _codes(table["group"])
    ids = table["id"]
    index = decide.Index(
        sha256=np.frombuffer(sha256, np.uint64).reshape(-1, 4),
        labels=label,
        splits=table["split"].to_numpy().astype(np.int8),
        groups=group,
        ids=lambda position: ids[int(position)].as_py(),
        label_names=label_names,
        group_names=group_names,
    )
    return _Rows(table.drop(["sha256"]), starts, index)


def _codes(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int32], list[str]]:
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    return codes, encoded.dictionary.to_pylist()


def _near_duplicates(
    task: Task, rows: _Rows, decisions: decide.Decisions, parts: Path
) -> list[near.Pair]:
    """Returns the pairs, with positions in `rows`; marks what `drop` removes."""
    kept = np.flatnonzero(decisions.codes == decide.KEEP)
    if task.options.near_duplicates == "off" or not len(kept):
        return []
    thumbs = _thumbs(parts, rows)
    found = near.pairs(rows.table["phash"].to_numpy()[kept], rows.index.splits[kept], thumbs, kept)
    pairs = [
        pair._replace(nearer=int(kept[pair.nearer]), further=int(kept[pair.further]))
        for pair in found
    ]
    if task.options.near_duplicates == "drop":
        for pair in pairs:
            if decisions.codes[pair.further] == decide.KEEP:
                decisions.codes[pair.nearer] = decide.NEAR_DUPLICATE
    return pairs


def _thumbs(parts: Path, rows: _Rows) -> npt.NDArray[np.uint8]:
    """Returns all thumbnails, uint8 [rows, bytes], mapped from one file on disk."""
    whole = parts / "thumbs.bin"
    with open(whole, "wb") as out:
        for number in range(len(rows.starts) - 1):
            source = parts / f"thumbs-{number:05d}.bin"
            with open(source, "rb") as file:
                shutil.copyfileobj(file, out, 1 << 20)
            source.unlink()
    return np.memmap(whole, np.uint8, "r").reshape(-1, perceptual.THUMB_BYTES)


def _bad_table(task: Task, decisions: decide.Decisions, parts: Path, pieces: int) -> pa.Table:
    known = [*task.found.problems, *decisions.problems]
    columns = list(zip(*known, strict=True)) if known else [(), (), (), ()]
    tables = [pq.read_table(parts / f"bad-{number:05d}.parquet") for number in range(pieces)]
    tables.append(
        pa.table(
            [pa.array(c, f.type) for c, f in zip(columns, piece.BAD, strict=True)], schema=piece.BAD
        )
    )
    return pa.concat_tables(tables).sort_by("path")


def _hold_budget(task: Task, bad: pa.Table) -> None:
    several = pc.equal(bad["reason"], "multi_label")
    if pc.any(several).as_py():
        row = bad.filter(several).slice(0, 1).to_pylist()[0]
        raise DataRefused(
            f"{shown(row['path'])}: {row['detail']}. This is multi-label data, which Safelight "
            "does not train on."
        )
    total = task.files + len(task.found.problems)
    budget = task.options.error_budget
    if bad.num_rows <= budget * total:
        return
    reasons = []
    for reason, count in _reasons(bad).items():
        examples = bad.filter(pc.equal(bad["reason"], reason))["path"].slice(0, 5).to_pylist()
        reasons.append(f"{count} {reason}: {bounded([shown(path) for path in examples])}")
    raise DataRefused(
        f"{bad.num_rows} of {total} files are bad ({bad.num_rows / total:.1%}), more than "
        f"ingest.error_budget allows ({budget:.1%}): {'; '.join(reasons)}. Repair or remove them "
        "(`safelight inspect` lists them), or raise ingest.error_budget.",
        reasons,
    )


def _reasons(bad: pa.Table) -> dict[str, int]:
    counts = Counter(bad["reason"].to_pylist())
    return dict(sorted(counts.items()))


def _classes(task: Task, rows: _Rows, decisions: decide.Decisions) -> list[str]:
    """Returns the known classes in their order, then the new ones by name."""
    kept = decisions.codes == decide.KEEP
    present = {rows.index.label_names[code] for code in np.unique(rows.index.labels[kept])}
    return [*task.known_classes, *sorted(present - set(task.known_classes))]


def _summary(
    task: Task,
    rows: _Rows,
    decisions: decide.Decisions,
    bad: pa.Table,
    classes: Sequence[str],
    near_pairs: int,
) -> dict[str, Any]:
    kept = decisions.codes == decide.KEEP
    splits, labels = rows.index.splits[kept], rows.index.labels[kept]
    codes = {name: code for code, name in enumerate(rows.index.label_names)}
    per_class = {
        name: {
            split: int(np.sum((labels == codes.get(name, -1)) & (splits == code)))
            for split, code in plan.SPLIT_CODES.items()
        }
        for name in classes
    }
    converted = Counter(
        value for value in rows.table["converted"].filter(pa.array(kept)).to_pylist() if value
    )
    return {
        "form": task.found.form,
        "data": os.fsencode(task.found.root).decode("utf-8", "backslashreplace"),
        "fingerprint": task.fingerprint,
        "splits": task.rule.describe(),
        "classes": list(classes),
        "examples": {
            split: int(np.sum(splits == code)) for split, code in plan.SPLIT_CODES.items()
        },
        "per_class": per_class,
        "quarantined": bad.num_rows,
        "quarantine_reasons": _reasons(bad),
        "duplicates": decisions.count(decide.DUPLICATE, decide.SPLIT_DUPLICATE),
        "split_duplicates": decisions.count(decide.SPLIT_DUPLICATE),
        "group_straddles": decisions.count(decide.GROUP_STRADDLES),
        "near_duplicates": {
            "mode": task.options.near_duplicates,
            "pairs": near_pairs,
            "dropped": decisions.count(decide.NEAR_DUPLICATE),
        },
        "converted": dict(sorted(converted.items())),
        "ignored": task.found.ignored.names,
        "ignored_count": task.found.ignored.count,
        "files": task.files,
        "bytes": task.bytes,
    }


def _refuse_empty(summary: dict[str, Any]) -> None:
    examples, per_class = summary["examples"], summary["per_class"]
    present = [name for name, counts in per_class.items() if sum(counts.values())]
    if len(present) < 2:
        named = f"one class, {present[0]!r}" if present else "no image"
        raise DataRefused(
            f"After ingest {summary['data']} has {named}; a classifier needs at least two classes. "
            f"Quarantined: {summary['quarantine_reasons'] or 'nothing'}."
        )
    empty = [split for split, count in examples.items() if not count]
    if empty:
        total = sum(examples.values())
        raise DataRefused(
            f"The {bounded(empty)} split is empty: {total} images, split {summary['splits']}. "
            "Add images, or give that split a larger share with --set ingest.split=TRAIN/EVAL/TEST."
        )


def _write_shards(rows: _Rows, decisions: decide.Decisions, parts: Path, examples: Path) -> None:
    """Joins the parts of each split into shards, leaving out what was removed."""
    kept = decisions.codes == decide.KEEP
    part_numbers = rows.table["part"].to_numpy()
    for split, code in plan.SPLIT_CODES.items():
        sources: list[tuple[Path, npt.NDArray[np.bool_]]] = []
        for number, (start, end) in enumerate(zip(rows.starts, rows.starts[1:], strict=False)):
            here = rows.index.splits[start:end] == code
            for part in np.unique(part_numbers[start:end][here]):
                mine = here & (part_numbers[start:end] == part)
                path = parts / piece.part_name(code, number, int(part))
                sources.append((path, kept[start:end][mine]))
        _write_split(split, sources, examples / f"Split-{split}")


def _write_split(
    split: str, sources: list[tuple[Path, npt.NDArray[np.bool_]]], folder: Path
) -> None:
    for place, (path, keep) in enumerate(sources):
        if not keep.all():
            sources[place] = (_without(path, keep), keep)
    sources = [(path, keep) for path, keep in sources if keep.any()]
    runs = list(plan.groups_of_shards([path.stat().st_size for path, _ in sources]))
    folder.mkdir(parents=True)
    for number, run in enumerate(runs):
        target = folder / f"data_tfrecord-{number:05d}-of-{len(runs):05d}"
        first = sources[run[0]][0]
        if len(run) > 1:
            with open(first, "ab") as out:
                for other in run[1:]:
                    with open(sources[other][0], "rb") as file:
                        shutil.copyfileobj(file, out, 1 << 20)
                    sources[other][0].unlink()
        first.rename(target)
        events.progress("ImageExampleGen", number + 1, len(runs), "shards", split)


def _without(path: Path, keep: npt.NDArray[np.bool_]) -> Path:
    """Copies the records that are kept, framing and all; returns the copy's path."""
    copy = path.with_name(path.name + ".kept")
    with open(path, "rb") as file, open(copy, "wb") as out:
        for frame, wanted in zip(_frames(file), keep, strict=True):
            if wanted:
                out.write(frame)
    path.unlink()
    return copy


def _frames(file: BinaryIO) -> Iterator[bytes]:
    while header := file.read(records.HEADER_BYTES):
        size = struct.unpack("<Q", header[:8])[0]
        yield header + file.read(size + records.FOOTER_BYTES)


def _write_images(
    task: Task, rows: _Rows, decisions: decide.Decisions, parts: Path, report: Path
) -> None:
    """Writes images.parquet piece by piece: id, split, label, sha256, group and the facts."""
    kept = decisions.codes == decide.KEEP
    names = ["id", "split", "label", "sha256", "group", *(name for name, _ in piece.FACTS)]
    schema = piece.rows_schema(task.extra)
    fields = [schema.field(name) for name in (*names, *task.extra)]
    fields[1], fields[3] = pa.field("split", pa.string()), pa.field("sha256", pa.string())
    wanted = pa.schema(fields)
    with pq.ParquetWriter(report / "images.parquet", wanted) as writer:
        for number, (start, end) in enumerate(zip(rows.starts, rows.starts[1:], strict=False)):
            columns = [field.name for field in wanted]
            source = pq.ParquetFile(parts / f"rows-{number:05d}.parquet")
            position = start
            for batch in source.iter_batches(piece.ROWS_AT_ONCE, columns=columns):
                mask = pa.array(kept[position : position + batch.num_rows])
                position += batch.num_rows
                writer.write_table(_for_people(pa.Table.from_batches([batch]).filter(mask), wanted))
            assert position == end


def _for_people(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Spells out the split's code and the hash."""
    split = pa.array([features.SPLITS[code] for code in table["split"].to_pylist()], pa.string())
    sha256 = pa.array([value.hex() for value in table["sha256"].to_pylist()], pa.string())
    spelled = {"split": split, "sha256": sha256}
    return pa.table([spelled.get(name, table[name]) for name in schema.names], schema=schema)


def _write_pairs(
    rows: _Rows, decisions: decide.Decisions, alike: Sequence[near.Pair], report: Path
) -> None:
    """Writes duplicates.parquet: what was dropped, or only reported, and what it equals."""
    index = rows.index
    lines: list[tuple[Any, ...]] = []
    for removed, kept in sorted(decisions.pairs, key=lambda pair: index.ids(pair[0])):
        kind = decide.KINDS[decisions.codes[removed]]
        lines.append(_pair(index, kind, removed, kept, True, 0, 0.0))
    for pair in alike[:MOST_PAIRS]:
        dropped = decisions.codes[pair.nearer] == decide.NEAR_DUPLICATE
        lines.append(
            _pair(
                index,
                "near_duplicate",
                pair.nearer,
                pair.further,
                bool(dropped),
                pair.distance,
                pair.difference,
            )
        )
    schema = pa.schema(
        [
            ("kind", pa.string()),
            ("id", pa.binary()),
            ("split", pa.string()),
            ("label", pa.string()),
            ("other_id", pa.binary()),
            ("other_split", pa.string()),
            ("other_label", pa.string()),
            ("dropped", pa.bool_()),
            ("distance", pa.int32()),
            ("difference", pa.float64()),
        ]
    )
    columns = list(zip(*lines, strict=True)) if lines else [()] * len(schema)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
    pq.write_table(pa.table(arrays, schema=schema), report / "duplicates.parquet")


def _pair(
    index: decide.Index,
    kind: str,
    one: int,
    other: int,
    dropped: bool,
    distance: int,
    difference: float,
) -> tuple[Any, ...]:
    return (
        kind,
        index.ids(one),
        features.SPLITS[index.splits[one]],
        index.label_names[index.labels[one]],
        index.ids(other),
        features.SPLITS[index.splits[other]],
        index.label_names[index.labels[other]],
        dropped,
        distance,
        difference,
    )


__all__ = ["Problem", "Task", "finish"]
