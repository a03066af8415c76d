"""From the parts to the artifacts: decisions, shards without what was removed, and the reports.

`finish` runs once, after every piece is written; it needs neither Beam nor TensorFlow.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import Ingest
from pipeline.errors import DataRefused, bounded
from pipeline.features import CALIB
from pipeline.ingest import columns, decide, near, plan, quarantine, shards, tables
from pipeline.ingest.entries import CLASS, Listing
from pipeline.ingest.rows import Rows, load, thumbs
from pipeline.ingest.splits import Rule


@dataclass(frozen=True)
class Task:
    """What one ingest is about.

    Attributes:
      found: the listing; its form, root, problems and ignored files are read, not its entries.
      files: images that were to be read.
      bytes: their size.
      rule: how splits are found.
      options: the `ingest` section.
      known_classes: those of the champion, in its order.
      extra: names of a manifest's targets, classes and slices.
      fingerprint: of the data.
      known_columns: the champion's classes in a manifest's further columns, by column.
    """

    found: Listing
    files: int
    bytes: int
    rule: Rule
    options: Ingest
    known_classes: tuple[str, ...]
    extra: tuple[str, ...]
    fingerprint: str
    known_columns: Mapping[str, Sequence[str]] = field(default_factory=dict)


def finish(task: Task, parts: Path, pieces: int, examples: Path, report: Path) -> dict[str, Any]:
    """Writes the shards below `examples` and the files of `report`; returns the summary.

    Raises:
      DataRefused: too many bad files, fewer than two classes, or an empty split. `report` is
        whole then, all but what the refusal was about.
    """
    rows = load(parts, pieces)
    decisions = decide.decide(rows.index)
    alike = _near_duplicates(task, rows, decisions, parts)
    bad = quarantine.table(task.found.problems, decisions, rows, parts, pieces)
    classes = _classes(task, rows, decisions)
    summary = _summary(task, rows, decisions, bad, classes, len(alike or ()))
    kept = decisions.codes == decide.KEEP
    tables.write_images(task.extra, rows, kept, parts, report)
    pq.write_table(bad, report / "quarantine.parquet")
    tables.write_pairs(rows, decisions, alike, report)
    _write_summary(summary, report)
    total = task.files + len(task.found.problems)
    quarantine.hold_budget(bad, total, task.options.error_budget)
    _refuse_empty(summary)
    further = [name.removeprefix(CLASS) for name in task.extra if name.startswith(CLASS)]
    if further:
        known = task.known_columns
        summary["class_columns"] = columns.classes(further, known, rows, kept, parts)
        _write_summary(summary, report)
    shards.write(rows, kept, parts, examples, task.rule.splits)
    return summary


def _write_summary(summary: dict[str, Any], report: Path) -> None:
    text = json.dumps(summary, indent=2, ensure_ascii=False)
    (report / "summary.json").write_text(text + "\n", encoding="utf-8")


def _near_duplicates(
    task: Task, rows: Rows, decisions: decide.Decisions, parts: Path
) -> near.Pairs | None:
    """Returns the pairs, with positions in `rows`, or None; marks what `drop` removes."""
    kept = np.flatnonzero(decisions.codes == decide.KEEP)
    if task.options.near_duplicates == "off" or not len(kept):
        return None
    hashes = rows.table["phash"].to_numpy()[kept]
    found = near.pairs(hashes, rows.index.splits[kept], thumbs(parts, rows), kept).of(kept)
    if task.options.near_duplicates == "drop":
        for nearer, further in zip(found.nearer.tolist(), found.further.tolist(), strict=True):
            if decisions.codes[further] == decide.KEEP:
                decisions.codes[nearer] = decide.NEAR_DUPLICATE
    return found


def _classes(task: Task, rows: Rows, decisions: decide.Decisions) -> list[str]:
    """Returns the known classes in their order, then the new ones by name."""
    kept = decisions.codes == decide.KEEP
    present = {rows.index.label_names[code] for code in np.unique(rows.index.labels[kept])}
    return [*task.known_classes, *sorted(present - set(task.known_classes))]


def _summary(
    task: Task,
    rows: Rows,
    decisions: decide.Decisions,
    bad: pa.Table,
    classes: Sequence[str],
    near_pairs: int,
) -> dict[str, Any]:
    kept = decisions.codes == decide.KEEP
    splits, labels = rows.index.splits[kept], rows.index.labels[kept]
    codes = {name: code for code, name in enumerate(rows.index.label_names)}
    counts = np.zeros((len(codes) + 1, len(plan.SPLIT_CODES)), np.int64)
    np.add.at(counts, (labels, splits), 1)  # the last row stays empty: of classes that are not here
    per_class = {
        name: {
            split: int(counts[codes.get(name, -1), plan.SPLIT_CODES[split]])
            for split in task.rule.splits
        }
        for name in classes
    }
    converted = Counter(
        value for value in rows.table["converted"].filter(pa.array(kept)).to_pylist() if value
    )
    corrected = task.found.corrected
    return {
        "form": task.found.form,
        "data": os.fsencode(task.found.root).decode("utf-8", "backslashreplace"),
        "fingerprint": task.fingerprint,
        "splits": task.rule.describe(),
        "classes": list(classes),
        "examples": {
            split: int(np.sum(splits == plan.SPLIT_CODES[split])) for split in task.rule.splits
        },
        "per_class": per_class,
        "quarantined": bad.num_rows,
        "quarantine_reasons": quarantine.reasons(bad),
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
        **({"corrections": asdict(corrected)} if corrected else {}),
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
            "Add images, or give that split a larger share with --set ingest.split=TRAIN/EVAL/TEST"
            + (", and calib with calibration.share." if CALIB in empty else ".")
        )
