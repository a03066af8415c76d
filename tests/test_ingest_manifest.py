"""Manifests: CSV, TSV and JSON lines, and every row that cannot be used."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import DataRefused
from tests.listed import look, problems, put


def manifest(root: Path, text: str, name: str = "manifest.csv") -> Path:
    """Writes a manifest beside four images, 1.png to 4.png."""
    for number in range(1, 5):
        put(root / "pictures" / f"{number}.png")
    (root / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    return root


ROWS = "pictures/1.png,cat\npictures/2.png,dog\npictures/3.png,cat\npictures/4.png,dog\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("manifest.csv", "path,label\n" + ROWS),
        ("manifest.csv", "\ufeffFile_Name;Class\n" + ROWS.replace(",", ";")),
        ("metadata.csv", "file_name,label\n" + ROWS),
        ("labels.csv", " Path, label\n" + ROWS),
        ("manifest.csv", "\r\n\npath;label\n\n" + ROWS.replace(",", ";")),
        ("manifest.tsv", "image\tcategory\n" + ROWS.replace(",", "\t")),
        (
            "manifest.jsonl",
            "".join(
                json.dumps({"path": f"pictures/{n}.png", "label": "cat" if n % 2 else "dog"}) + "\n"
                for n in range(1, 5)
            ),
        ),
    ],
)
def test_manifests_are_read(tmp_path, name, text):
    found = look(manifest(tmp_path, text, name))
    assert found.form == "manifest"
    assert [(entry.path, entry.label) for entry in found.entries] == [
        (b"pictures/1.png", "cat"),
        (b"pictures/2.png", "dog"),
        (b"pictures/3.png", "cat"),
        (b"pictures/4.png", "dog"),
    ]
    assert look(tmp_path / name).entries == found.entries


def test_a_manifest_names_splits_groups_targets_and_slices(tmp_path):
    header = "where,what,when,who,severity,camera\n"
    rows = [
        "pictures/1.png,cat,train,ann,0.5,A",
        "pictures/2.png,dog,VALID,bob,1e3,",
        "pictures/3.png,cat,test,,-2,B",
        "pictures/4.png,dog,,ann,nan,B",
    ]
    found = look(
        manifest(tmp_path, header + "\n".join(rows)),
        path_column="where",
        label_column="what",
        split_column="when",
        group_column="who",
        targets=["severity"],
        slices=["camera"],
    )
    assert [(entry.split, entry.group, entry.extra) for entry in found.entries] == [
        ("train", "ann", (("target_severity", 0.5), ("slice_camera", "A"))),
        ("eval", "bob", (("target_severity", 1000.0), ("slice_camera", "missing"))),
        ("test", None, (("target_severity", -2.0), ("slice_camera", "B"))),
    ]
    assert problems(found) == {"pictures/4.png": "bad_target"}


def test_bad_rows_are_quarantined_with_a_reason(tmp_path):
    put(tmp_path / "outside.png")
    root = tmp_path / "data"
    (root / "pictures").mkdir(parents=True)
    (root / "pictures" / "away.png").symlink_to(tmp_path / "outside.png")
    text = (
        "path,label\n"
        + ROWS
        + (
            "pictures/5.png,cat\n"
            "../outside.png,cat\n"
            "pictures/away.png,cat\n"
            "pictures/4.png,\n"
            ",cat\n"
            "pictures,cat\n"
            "pictures/1.png,cat,too,many\n"
        )
    )
    found = look(manifest(root, text))
    assert len(found.entries) == 4
    assert problems(found) == {
        "pictures/5.png": "missing",
        "../outside.png": "outside",
        "pictures/away.png": "outside",
        "pictures/4.png": "no_label",
        "manifest.csv:10": "missing",
        "pictures": "unreadable",
        "manifest.csv:12": "unreadable",
    }


def test_bad_json_lines_are_quarantined(tmp_path):
    good = [json.dumps({"path": f"pictures/{n}.png", "label": n % 2}) for n in range(1, 5)]
    lines = [*good, "{not json", "[1, 2]", json.dumps({"path": "pictures/1.png", "label": None})]
    found = look(manifest(tmp_path, "\n".join(lines), "manifest.jsonl"))
    assert {entry.label for entry in found.entries} == {"0", "1"}
    assert problems(found) == {
        "manifest.jsonl:5": "unreadable",
        "manifest.jsonl:6": "unreadable",
        "pictures/1.png": "no_label",
    }


def test_a_manifest_spells_any_file_name(tmp_path):
    raw = b"caf\xe9 \xe6\x97\xa5,1.png"
    put(tmp_path / "pictures" / os.fsdecode(raw))
    quoted = b'"pictures/' + raw + b'",cat\n'
    text = ("path,label\n" + ROWS).encode() + quoted
    found = look(manifest(tmp_path, os.fsdecode(text)))
    assert b"pictures/" + raw in {entry.path for entry in found.entries}


@pytest.mark.parametrize("name", ["manifest.csv", "manifest.tsv", "metadata.csv"])
@pytest.mark.parametrize(
    ("above", "row", "line"),
    [
        ("", '"pictures/1.png,cat', 2),
        (ROWS, '"pictures/1.png,cat', 6),
        (ROWS + '"pictures/\n1.png",cat\n\n', 'pictures/1.png,"cat', 9),
        (ROWS, '"pictures"/1.png,cat', 6),
    ],
)
def test_a_stray_quote_does_not_swallow_the_rows_behind_it(tmp_path, name, above, row, line):
    text = f"path,label\n{above}{row}\n{ROWS}"
    root = manifest(tmp_path, text.replace(",", "\t") if name.endswith("tsv") else text, name)
    with pytest.raises(DataRefused, match=f"{name} is no CSV from line {line} on"):
        look(root)


def test_a_row_that_cant_be_parsed_is_named_by_the_line_it_begins_on(tmp_path):
    text = f'path,label\n\n\n{ROWS}"pictures/\n1.png",cat,too,many\n'
    assert problems(look(manifest(tmp_path, text, "metadata.csv"))) == {
        "metadata.csv:8": "unreadable"
    }


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "has no row"),
        ("path,label\n", {}, "has no row"),
        ("path,label\n" + ROWS.replace(",", ",,"), {}, r"no row that can be parsed \(of 4\)"),
        ("file,kind\n" + ROWS, {}, "expected one of label, class"),
        ("path,label\n" + ROWS, {"label_column": "lable"}, "no column 'lable'"),
        ("path,label\n" + ROWS, {"targets": ["age"]}, "no column 'age'"),
        ("path,label,split\npictures/1.png,cat,holdout\n", {}, "unknown split 'holdout'"),
        ("path,labels\n" + ROWS, {}, "multi-label"),
        ("path,label\n" + ROWS + "pictures/1.png,cat|dog\n", {}, "multi-label"),
        ("path,label\n" + ROWS + "pictures/1.png,dog\npictures/2.png,cat\n", {}, "multi-label"),
        ("path,label\n" + ROWS.replace("cat", '"two\nlines"'), {}, "line break"),
        ("path,label\n" + ROWS.replace("dog", "cat"), {}, "one class"),
    ],
)
def test_manifests_that_cant_be_used_are_refused(tmp_path, text, options, message):
    with pytest.raises(DataRefused, match=message):
        look(manifest(tmp_path, text), **options)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("path,label,label\n" + ROWS.replace("\n", ",other\n"), {}),
        ("path,label,kind,kind\n" + ROWS.replace("\n", ",a,b\n"), {"slices": ("kind",)}),
    ],
)
def test_two_columns_of_one_name_are_refused(tmp_path, text, options):
    with pytest.raises(DataRefused, match=r"has 2 columns called '(label|kind)'; expected one"):
        look(manifest(tmp_path, text), **options)


def test_two_columns_that_nobody_asks_for_may_have_one_name(tmp_path):
    found = look(manifest(tmp_path, "path,label,x,x\n" + ROWS.replace("\n", ",a,b\n")))
    assert [entry.label for entry in found.entries] == ["cat", "dog"] * 2


def test_a_manifest_that_is_a_link_to_itself_is_none(tmp_path):
    for label in ("cat", "dog"):
        put(tmp_path / label / "1.png")
    (tmp_path / "manifest.csv").symlink_to("manifest.csv")
    found = look(tmp_path)
    assert (found.form, problems(found)) == ("folders", {"manifest.csv": "missing"})


def test_a_list_of_labels_is_multi_label_data(tmp_path):
    line = json.dumps({"path": "pictures/1.png", "label": ["cat", "dog"]})
    with pytest.raises(DataRefused, match="line 1, has 2 labels: this is multi-label data"):
        look(manifest(tmp_path, line, "manifest.jsonl"))


_CELLS = st.text(max_size=12) | st.sampled_from(
    ["pictures/1.png", "../x", "/etc/passwd", "cat", "dog", "", "train", '"', "nan", "\0", "a,b"]
)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(st.lists(_CELLS, max_size=5), max_size=6),
    jsonl=st.booleans(),
    raw=st.binary(max_size=60),
)
def test_any_manifest_gives_a_listing_or_a_refusal(tmp_path, rows, jsonl, raw):
    """Whatever stands in it: no other exception, and each row becomes an entry or a problem."""
    root = manifest(tmp_path, "")
    header = ["path", "label", "split", "group"]
    if jsonl:
        lines = [json.dumps(dict(zip(header, row, strict=False))).encode() for row in rows]
        name = "manifest.jsonl"
    else:
        name = "manifest.csv"
        cells = [header, *rows]
        lines = [",".join(row).encode("utf-8", "surrogatepass") for row in cells]
    for old in root.glob("manifest.*"):
        old.unlink()
    (root / name).write_bytes(b"\n".join([*lines, raw]))
    try:
        found = look(root)
    except DataRefused:
        return
    for entry in found.entries:
        assert entry.label and (root / os.fsdecode(entry.path)).is_file()
