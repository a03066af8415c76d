"""Corrections: a table that relabels images or leaves them out, from its reading to the report."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from pipeline.config import Ingest
from pipeline.errors import ConfigError, DataRefused
from pipeline.ingest import corrections, listing
from pipeline.ingest.scan import scan
from tests import ingested, made

COUNTS = {"green": 12, "red": 12}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return made.class_folders(tmp_path / "data", COUNTS)


def table(path: Path, *rows: tuple[str, str, str], header: str = "") -> Path:
    """Writes a table of (path, suggested label, action)."""
    with open(path, "w", newline="") as file:
        if header:
            file.write(header + "\n")
        writer = csv.writer(file)
        if not header:
            writer.writerow(["path", "label", "suggested_label", "quality", "action"])
        for name, label, action in rows:
            writer.writerow([name, "", label, "0.1", action])
    return path


def listed(data: Path, file: Path, **options):
    return listing.read(str(data), Ingest(corrections=str(file), **options))


def test_actions_change_what_is_listed(data, tmp_path):
    file = table(
        tmp_path / "suspects.csv",
        ("red/00001.png", "green", "relabel"),
        ("red/00002.png", "green", "remove"),
        ("red/00003.png", "green", ""),
        ("red/00004.png", "green", " Keep "),
    )
    found = listed(data, file)
    labels = {entry.path: entry.label for entry in found.entries}
    assert labels[b"red/00001.png"] == "green"
    assert b"red/00002.png" not in labels
    assert labels[b"red/00003.png"] == labels[b"red/00004.png"] == "red"
    assert [(one.path, one.reason, one.label) for one in found.problems] == [
        (b"red/00002.png", "removed-by-correction", "red")
    ]
    assert found.corrected is not None
    assert (found.corrected.relabelled, found.corrected.removed) == (1, 1)


def test_a_decision_changes_the_fingerprint_and_a_note_does_not(data, tmp_path):
    def fingerprint(*rows):
        table(tmp_path / "s.csv", *rows)
        return scan(str(data), Ingest(corrections=str(tmp_path / "s.csv"))).fingerprint

    undecided = fingerprint(("red/00001.png", "green", ""))
    relabelled = fingerprint(("red/00001.png", "green", "relabel"))
    removed = fingerprint(("red/00001.png", "green", "remove"))
    assert len({undecided, relabelled, removed}) == 3
    more = fingerprint(("red/00001.png", "green", "relabel"), ("red/00005.png", "green", ""))
    assert more == relabelled


def test_a_path_is_looked_for_below_the_data_too(data):
    table(data / "suspects.csv", ("red/00001.png", "green", "relabel"))
    found = listed(data, Path("suspects.csv"))
    assert found.corrected is not None
    assert found.corrected.relabelled == 1


def test_a_spreadsheet_may_write_semicolons(data, tmp_path):
    file = tmp_path / "s.csv"
    file.write_text("\ufeffpath;suggested_label;action\r\nred/00001.png;green;RELABEL\r\n")
    found = listed(data, file)
    assert found.corrected is not None
    assert found.corrected.relabelled == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("red/99.png", "green", "relabel")], r"1 of 1 images that are not in .*red/99.png"),
        ([("red/00001.png", "grean", "relabel")], r"line 2: 'grean' is no class.*'green'"),
        ([("red/00001.png", "", "relabel")], r"line 2: action relabel needs a class"),
        ([("red/00001.png", "green", "delete")], r"unknown action 'delete'; expected one of"),
        (
            [("red/00001.png", "green", "remove"), ("red/00001.png", "green", "relabel")],
            r"decides twice about red/00001.png \(lines 2 and 3\)",
        ),
    ],
)
def test_what_can_not_be_done_is_refused(data, tmp_path, rows, message):
    with pytest.raises(DataRefused, match=message):
        listed(data, table(tmp_path / "s.csv", *rows))


def test_a_table_of_something_else_is_refused(data, tmp_path):
    with pytest.raises(DataRefused, match="no column 'path'; they have file, action"):
        listed(data, table(tmp_path / "s.csv", ("a", "b", "c"), header="file,action,x,y,z"))
    with pytest.raises(DataRefused, match="no column 'action'"):
        listed(data, table(tmp_path / "t.csv", ("a", "b", "c"), header="path,a,b,c,d"))


def test_a_missing_file_is_told_before_anything_runs(data):
    with pytest.raises(ConfigError, match=r"'none.csv' does not exist.*audit-labels"):
        listed(data, Path("none.csv"))


def test_corrections_reach_the_examples_and_the_report(data, tmp_path):
    """More images are removed than the error budget would allow bad ones."""
    removed = [(f"green/{number:05d}.png", "", "remove") for number in range(3)]
    file = table(
        tmp_path / "s.csv",
        ("red/00001.png", "green", "relabel"),
        ("red/00002.png", "green", "relabel"),
        *removed,
    )
    found = ingested.ingest(data, tmp_path / "out", corrections=str(file), split="40/30/30")
    assert found.summary["corrections"]["relabelled"] == 2
    assert found.summary["corrections"]["removed"] == 3
    assert found.summary["corrections"]["file"] == "s.csv"
    assert found.summary["quarantine_reasons"] == {corrections.REMOVED: 3}
    labels = {row["id"]: row["label"] for row in found.table("images")}
    assert labels[b"red/00001.png"] == labels[b"red/00002.png"] == "green"
    assert len(labels) == 21
    stored = {
        record.features.feature["id"].bytes_list.value[0]: record
        for split in ("train", "eval", "test")
        for record in found.records(split)
    }
    label = stored[b"red/00001.png"].features.feature["label"].bytes_list.value[0]
    assert label == b"green"
