"""The data: what was counted, what was put aside and why, and what validation found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from pipeline.features import SPLITS_WITH_CALIB
from pipeline.report import figures, pictures
from pipeline.report.collect import Record, readable
from pipeline.report.pictures import Picture

_SHOWN_PER_REASON = 8
_SHOWN_PICTURES = 48
_SHOWN_PAIRS = 8
_FACTS = {
    "width": "Width, px",
    "height": "Height, px",
    "byte_size": "File size, bytes",
    "brightness": "Brightness",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
}
_STATES = ("fail", "warn", "ok", "off")


@dataclass(frozen=True)
class ClassRow:
    """A class's images by split; `share` is of the largest class."""

    name: str
    counts: list[int]
    total: int
    share: float


@dataclass(frozen=True)
class Fact:
    """The spread of one recorded fact."""

    name: str
    low: float
    median: float
    high: float


@dataclass(frozen=True)
class BadFile:
    """A file in quarantine."""

    path: str
    detail: str
    picture: Picture | None


@dataclass(frozen=True)
class Reason:
    """Why files were quarantined, with some of them."""

    name: str
    count: int
    files: list[BadFile]


@dataclass(frozen=True)
class Alike:
    """Two images that look the same; a picture is missing where the image was dropped."""

    one: str
    other: str
    note: str
    pictures: tuple[Picture | None, Picture | None]


@dataclass(frozen=True)
class Data:
    """What the section shows."""

    form: str
    splits: list[str]
    totals: list[int]
    total: int
    classes: list[ClassRow]
    balance: Markup
    imbalance: float
    facts: list[Fact]
    quarantined: int
    reasons: list[Reason]
    duplicates: int
    near_duplicates: dict[str, Any]
    alike: list[Alike]
    converted: dict[str, int]
    ignored: list[str]
    files: int
    bytes: int
    corrections: dict[str, Any] | None


def build(record: Record) -> Data | None:
    """Returns the data section, or None if ingest did not end."""
    summary = record.summary
    if summary is None:
        return None
    splits = [split for split in SPLITS_WITH_CALIB if split in summary["examples"]]
    rows = _class_rows(summary, splits)
    sizes = sorted((row.total for row in rows), reverse=True)
    totals = [summary["examples"][split] for split in splits]
    return Data(
        form=str(summary.get("form", "")).replace("_", " "),
        splits=splits,
        totals=totals,
        total=sum(totals),
        classes=rows,
        balance=figures.size_bars(f"Images in each of {len(sizes)} classes, largest first", sizes),
        imbalance=sizes[0] / max(sizes[-1], 1) if sizes else 0.0,
        facts=_facts(record),
        quarantined=summary.get("quarantined", 0),
        reasons=_reasons(record, summary.get("quarantine_reasons", {})),
        duplicates=summary.get("duplicates", 0),
        near_duplicates=summary.get("near_duplicates") or {},
        alike=_alike(record),
        converted=summary.get("converted", {}),
        ignored=[readable(name) for name in summary.get("ignored", [])],
        files=summary.get("files", 0),
        bytes=summary.get("bytes", 0),
        corrections=summary.get("corrections"),
    )


def validation(record: Record) -> list[dict[str, Any]] | None:
    """Returns the gate's checks, worst first, or None if the gate did not end."""
    report = record.json("validation")
    if report is None:
        return None
    return sorted(
        report.get("checks", []),
        key=lambda check: _STATES.index(check["state"]) if check["state"] in _STATES else 0,
    )


def _class_rows(summary: dict[str, Any], splits: list[str]) -> list[ClassRow]:
    per_class = summary.get("per_class", {})
    counted = [
        (name, [int(per_class.get(name, {}).get(split, 0)) for split in splits])
        for name in summary.get("classes", [])
    ]
    largest = max((sum(counts) for _, counts in counted), default=0)
    return [
        ClassRow(name, counts, sum(counts), sum(counts) / (largest or 1))
        for name, counts in counted
    ]


def _facts(record: Record) -> list[Fact]:
    table = record.table("images", list(_FACTS))
    if table is None or table.num_rows == 0:
        return []
    found = []
    for column, name in _FACTS.items():
        if column in table.column_names:
            values = table[column].to_numpy()
            low, median, high = np.percentile(values, (0, 50, 100))
            found.append(Fact(name, float(low), float(median), float(high)))
    return found


def _reasons(record: Record, counts: dict[str, int]) -> list[Reason]:
    table = record.table("quarantine")
    rows: list[dict[str, Any]] = table.to_pylist() if table is not None else []
    shown = 0
    found = []
    for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        files = []
        for row in [row for row in rows if row["reason"] == name][:_SHOWN_PER_REASON]:
            picture = _thumbnail(row) if shown < _SHOWN_PICTURES else None
            shown += picture is not None
            files.append(BadFile(readable(row["path"]), readable(row["detail"] or ""), picture))
        found.append(Reason(name.replace("_", " "), count, files))
    return found


def _alike(record: Record) -> list[Alike]:
    """Returns the first near duplicates, with the pictures of those that are stored."""
    table = record.table("duplicates")
    rows = table.to_pylist() if table is not None else []
    rows = [row for row in rows if row["kind"] == "near_duplicate"][:_SHOWN_PAIRS]
    stored = record.stored(row[key] for row in rows for key in ("id", "other_id"))
    found = []
    for row in rows:
        images = [stored.get(row[key]) for key in ("id", "other_id")]
        one, other = (pictures.of_file(image.encoded) if image else None for image in images)
        places = f"{row['label']} in {row['split']}, {row['other_label']} in {row['other_split']}"
        note = f"{places}{'; the first was dropped' if row['dropped'] else ''}"
        found.append(Alike(readable(row["id"]), readable(row["other_id"]), note, (one, other)))
    return found


def _thumbnail(row: dict[str, Any]) -> Picture | None:
    """Returns the picture that ingest kept of a bad file, where there was one to be seen."""
    stored = row.get("thumbnail")
    return pictures.of_file(stored) if stored else None
