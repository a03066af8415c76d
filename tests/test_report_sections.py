"""The report of runs that ended early or are large, its index, its command and its parts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import events, refused, report
from pipeline.errors import DataRefused, SafelightError, UsageError
from pipeline.report import index, outcome, page
from pipeline.report.collect import Record, readable
from pipeline.runs import Result
from pipeline.workdir import open_workdir
from tests import exports, made, pages, pictures, reports


@pytest.fixture
def workdir(tmp_path):
    """An empty workdir."""
    return open_workdir(tmp_path / "work")


def written(workdir, run):
    """Returns the report of a run, as elements."""
    return pages.read(report.write(workdir, run).read_text(encoding="utf-8"))


def tell(run, *lines):
    """Writes events.jsonl; a line that is no dict is written as it is."""
    text = [json.dumps({"t": 1.0, **it}) if isinstance(it, dict) else it for it in lines]
    run.events.write_text("\n".join(text) + "\n")


def stage(name, state, **fields):
    return {"kind": "stage", "name": name, "state": state, **fields}


def test_a_run_with_nothing_but_its_request(workdir):
    run = reports.new_run(workdir, workdir.root, "20250101T000000-aaaa")
    html = written(workdir, run)
    assert html.one("h1").text == "No ending recorded"
    assert [it.attributes["id"] for it in html.all("section")] == ["outcome", "lineage"]


def test_a_killed_run_says_where_it_was(workdir):
    run = reports.new_run(workdir, workdir.root, "20250101T000000-aaaa")
    tell(
        run,
        {"kind": "startup", "seconds": 5.0},
        stage("ImageExampleGen", "start"),
        stage("ImageExampleGen", "complete", seconds=2.5, peak_mb=700),
        stage("Trainer", "start"),
        '{"t": 2.0, "kind": "progr',
    )
    run.log.write_text("one\n\nlast words\n")
    html = written(workdir, run)
    assert "at Trainer" in html.one("section", id="outcome").text
    assert html.one("pre").text == "one\nlast words"
    rows = [row.text for row in html.one("table", class_="timing").one("tbody").all("tr")]
    assert "no end" in rows[-1] and "Trainer" in rows[-1]


def test_a_failed_run_shows_reason_stage_and_log(workdir):
    run = reports.new_run(workdir, workdir.root, "20250101T000000-aaaa")
    tell(
        run,
        {"kind": "startup", "seconds": 5.0},
        stage("Transform", "start"),
        stage("Transform", "failed", seconds=2.5, peak_mb=700),
        {"kind": "warning", "text": "low disk"},
    )
    run.log.write_text("Traceback\nValueError: no\n")
    run.write_result(Result(run.root.name, "failed", reasons=["ValueError: no"]))
    html = written(workdir, run)
    assert html.one("h1").text == "Failed"
    assert "at Transform" in html.one("section", id="outcome").text
    assert html.one("ul", class_="reasons").text == "ValueError: no"
    assert "low disk" in html.one("section", id="said").text
    assert "open" in html.one("details", class_="log").attributes


def test_refused_data_lists_every_reason(workdir):
    run = reports.new_run(workdir, workdir.root, "20250101T000000-aaaa")
    reasons = ["few_images: 'cat' has 1 of at least 2", "anomalies: brightness 1.7, expected 0–1"]
    run.write_result(Result(run.root.name, "invalid_data", reasons=reasons, quarantined=3))
    html = written(workdir, run)
    assert html.one("h1").text == "Data refused"
    assert [item.text for item in html.one("ul", class_="reasons").all("li")] == reasons


def test_refused_data_still_shows_what_ingest_and_validation_found(workdir, tmp_path):
    data = made.class_folders(tmp_path / "data", {"red": 20, "blue": 20})
    for number in range(5):
        whole = pictures.kept()["rgb.png"]
        (data / "red" / f"cut{number}.png").write_bytes(whole[: len(whole) * 2 // 3])
    run = reports.new_run(workdir, data, "20250101T000000-aaaa")
    events.configure(run.events)
    try:
        with pytest.raises(DataRefused) as refusal:
            reports.ingest(workdir, data, error_budget=0.01)
        found = tmp_path / "found"
        found.mkdir()
        check = {"name": "few_images", "mode": "fail", "state": "fail", "feature": "label"}
        told = {**check, "split": "test", "found": "1", "expected": "2", "message": "Too few."}
        (found / "validation.json").write_text(json.dumps({"checks": [told]}))
        refused.keep("ValidationGate", "validation_report", found)
    finally:
        events.configure(None)
    reasons = [str(refusal.value), *refusal.value.reasons]
    run.write_result(Result(run.root.name, "invalid_data", reasons=reasons))
    html = written(workdir, run)
    assert html.one("dd", id="quarantined").value == "5"
    [files] = html.all("ul", class_="bad-files")
    assert len(list(files.all("img"))) == 5
    assert "Too few." in html.one("section", id="validation").text
    assert not list(html.all("section", id="samples"))
    assert page.sections(Record(workdir, run))["unreadable"] == []


def test_names_with_markup_are_only_text(tmp_path):
    names = {"<img src=x onerror=alert(1)>": "blue", 'a"b & <b>': "red", "naïve 猫": "green"}
    data = reports.photographs(tmp_path / "data", names, count=20, wrong=0)
    workdir = open_workdir(tmp_path / "work")
    run = reports.new_run(workdir, data, "20250101T000000-aaaa")
    reason = "<script>alert(1)</script>"
    reports.end(
        run,
        {"ImageExampleGen": reports.ingest(workdir, data)},
        Result(run.root.name, "failed", reasons=[reason]),
    )
    html = written(workdir, run)
    rows = html.one("table", id="classes").one("tbody").all("tr")
    assert {row.one("th").text for row in rows} == set(names)
    assert html.one("ul", class_="reasons").text == reason
    assert not list(html.all("script")) and not list(html.all("b"))
    assert html.one("section", id="samples").one("h2").text == "Samples as they are stored"
    alts = {image.attributes["alt"] for image in html.all("img")}
    assert "Training image 1 of class <img src=x onerror=alert(1)>" in alts
    index_html = pages.read(workdir.index.read_text(encoding="utf-8"))
    assert reason in index_html.text and not list(index_html.all("script"))


def test_file_names_that_are_no_utf8_are_shown_escaped(tmp_path):
    data = reports.photographs(tmp_path / "data", {"a": "blue", "b": "red"}, count=20, wrong=0)
    (Path(os.fsdecode(os.fsencode(data) + b"/a/bad\xff.jpg"))).write_bytes(b"")
    workdir = open_workdir(tmp_path / "work")
    run = reports.new_run(workdir, data, "20250101T000000-aaaa")
    ingested = reports.ingest(workdir, data)
    reports.end(run, {"ImageExampleGen": ingested}, Result(run.root.name, "failed"))
    assert "a/bad\\xff.jpg" in written(workdir, run).one("section", id="data").text
    assert readable("half \udcff") == "half \\udcff"


def many(classes, seed=1):
    """Returns a verdict of so many classes with 50 test images each."""
    rng = np.random.default_rng(seed)
    names = [f"class {number:04d}" for number in range(classes)]
    counts = np.zeros((classes, classes), np.int64)
    for row in range(classes):
        right = int(rng.integers(10, 51))
        counts[row, row] = right
        np.add.at(counts[row], rng.integers(0, classes, 50 - right), 1)
    support = counts.sum(axis=1)
    return {
        "blessed": True,
        "reasons": [],
        "metrics": {"accuracy": float(np.trace(counts) / counts.sum())},
        "checks": [],
        "champion": None,
        "per_class": {
            name: {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": int(support[number])}
            for number, name in enumerate(names)
        },
        "confusion": counts.tolist(),
        "majority_share": 1 / classes,
        "test_examples": int(counts.sum()),
    }


@pytest.mark.parametrize("classes", [2, 24, 25, 400])
def test_any_number_of_classes_is_readable_and_bounded(workdir, classes):
    run = reports.new_run(workdir, workdir.root, f"20250101T000000-{classes:04d}")
    judged = many(classes)
    uri = reports.folder_with(workdir, "BlessingGate", f"b{classes}", "verdict.json", judged)
    reports.end(run, {"BlessingGate": {"blessing": uri}}, Result(run.root.name, "pushed"))
    html = written(workdir, run)
    assert run.report.stat().st_size < 1_500_000
    tables = list(html.all("table", id="confusion"))
    maps = list(html.all("svg", class_="heat"))
    assert (len(tables), len(maps)) == ((1, 0) if classes <= 24 else (0, 1))
    rows = [
        row for it in html.all("table", class_="per-class") for row in it.one("tbody").all("tr")
    ]
    assert len(rows) == classes
    counts = np.array(judged["confusion"])
    np.fill_diagonal(counts, 0)
    first = next(html.one("table", id="pairs").one("tbody").all("tr"))
    assert int(next(first.all("data")).attributes["value"]) == counts.max()


def test_near_duplicates_are_shown_as_pairs(tmp_path):
    data = reports.photographs(
        tmp_path / "data", {name: name for name in ("blue", "green")}, count=30, wrong=0
    )
    # The same pictures once more, but for two rows that are a little brighter.
    for number in range(30):
        pixels = np.array(made.picture("blue", number)).astype(np.int64)
        pixels[-2:] = np.minimum(pixels[-2:] + 4, 255)
        again = Image.fromarray(pixels.astype(np.uint8))
        again.save(data / "blue" / f"again{number:03d}.png")
    workdir = open_workdir(tmp_path / "work")
    run = reports.new_run(workdir, data, "20250101T000000-aaaa")
    ingested = reports.ingest(workdir, data)
    reports.end(run, {"ImageExampleGen": ingested}, Result(run.root.name, "failed"))
    pairs = Record(workdir, run).summary["near_duplicates"]["pairs"]
    assert pairs > 0
    html = written(workdir, run)
    heading = html.one("h3", id="alike")
    assert heading.text == "Near duplicates"
    items = list(html.one("ul", class_="pairs").all("li"))
    assert len(items) == min(pairs, 8)
    assert all(len(list(item.all("img"))) == 2 for item in items)


def test_the_index_has_every_run_and_version(workdir, tmp_path):
    model = exports.save_model(tmp_path / "model")
    ids = [f"2025010{day}T000000-aaaa" for day in range(1, 6)]
    outcomes = ["pushed", "not_blessed", "invalid_data", "pushed", None]
    accuracy = [0.91, 0.85, None, 0.95, None]
    for run_id, ended, reached in zip(ids, outcomes, accuracy, strict=True):
        run = reports.new_run(workdir, workdir.root, run_id)
        metrics = {"accuracy": reached, "macro_f1": reached} if reached else {}
        if ended:
            reasons = ["too low"] if ended != "pushed" else []
            run.write_result(Result(run_id, ended, reasons=reasons, metrics=metrics))
        if ended == "pushed":
            origin = index.registry.Origin(
                "run", "passed every check", run_id, "d", "c", "e", metrics=metrics
            )
            index.registry.open(workdir.serving("birds")).publish(model, origin)
        report.write(workdir, run)
    html = pages.read(workdir.index.read_text(encoding="utf-8"))
    shown = list(html.one("ul", class_="runs").all("li"))
    assert [it.attributes["id"] for it in shown] == [f"run-{name}" for name in reversed(ids)]
    assert [it.attributes["class"] for it in shown] == [
        ended or "open" for ended in reversed(outcomes)
    ]
    values = [float(data.attributes["value"]) for data in shown[1].all("data")]
    assert values == [0.95, 0.95]
    for link in (link for it in shown for link in it.all("a")):
        assert (workdir.root / link.attributes["href"]).is_file()
    versions = [
        (row.one("th").text, next(row.all("td")).text) for row in html.one("tbody").all("tr")
    ]
    assert versions == [("2", "live"), ("1", "retired")]
    [chart, _] = html.all("svg", class_="chart")
    titles = [title.text for title in chart.all("title")]
    assert titles == [
        "2025-03-04 05:06 UTC, Pushed: 91%",
        "2025-03-04 05:06 UTC, Not blessed: 85%",
        "2025-03-04 05:06 UTC, Pushed: 95%",
    ]


def test_the_index_survives_a_damaged_run_and_registry(workdir):
    good = reports.new_run(workdir, workdir.root, "20250101T000000-aaaa")
    bad = reports.new_run(workdir, workdir.root, "20250102T000000-bbbb")
    bad.request.write_text("{")
    workdir.serving("birds").mkdir(parents=True)
    (workdir.serving("birds") / "registry.json").write_text("{")
    report.write(workdir, good)
    html = pages.read(workdir.index.read_text(encoding="utf-8"))
    assert [it.attributes["id"] for it in html.one("ul", class_="runs").all("li")] == [
        "run-20250101T000000-aaaa"
    ]
    with pytest.raises(SafelightError, match=r"20250102T000000-bbbb/run.json can't be read"):
        report.write(workdir, bad)


def test_the_command_takes_the_newest_run_or_the_one_named(workdir, capsys):
    first = reports.new_run(workdir, workdir.root, "20250101T000000-aaaa")
    last = reports.new_run(workdir, workdir.root, "20250102T000000-bbbb")
    assert report.command(workdir.root) == last.report
    assert capsys.readouterr().out == f"{last.report}\n"
    assert report.command(workdir.root, "20250101", as_json=True) == first.report
    assert json.loads(capsys.readouterr().out) == {
        "run_id": "20250101T000000-aaaa",
        "report": str(first.report),
        "index": str(workdir.index),
    }


def test_the_command_explains_what_it_cannot_report_on(workdir, tmp_path):
    with pytest.raises(
        UsageError, match=r"has no run to report on\. Start one with: safelight run"
    ):
        report.command(workdir.root)
    with pytest.raises(UsageError, match="There is no workdir at"):
        report.command(tmp_path / "elsewhere")
    for name in ("20250101T000000-aaaa", "20250101T000001-bbbb"):
        reports.new_run(workdir, workdir.root, name)
    with pytest.raises(UsageError, match="no run '20250101T000000-aaba'. Did you mean"):
        report.command(workdir.root, "20250101T000000-aaba")
    with pytest.raises(UsageError, match="is the beginning of 2 runs; expected one"):
        report.command(workdir.root, "2025")


def test_a_section_that_breaks_is_named_and_the_others_stay(workdir, monkeypatch):
    run = reports.new_run(workdir, workdir.root, "20250101T000000-aaaa")
    tell(run, {"kind": "startup", "seconds": "soon"})
    html = written(workdir, run)
    assert "timing: ValueError" in html.one("section", id="said").text
    assert html.one("section", id="lineage")
    assert page.sections(Record(workdir, run))["timing"] is None


def test_a_report_of_many_images_and_classes_stays_small(workdir):
    """10,000 predictions over 100 classes, 60,000 rows of facts: what CIFAR-100 would be."""
    rng = np.random.default_rng(3)
    rows, classes = 60_000, [f"c{number:03d}" for number in range(100)]
    labels = rng.integers(0, 100, rows)
    names = [f"{classes[label]}/{number:06d}.jpg".encode() for number, label in enumerate(labels)]
    splits = np.where(np.arange(rows) < 10_000, "test", "train")
    folder = workdir.artifacts / "ImageExampleGen" / "ingest_report" / "1"
    folder.mkdir(parents=True)
    facts = {name: rng.random(rows) for name in ("brightness", "sharpness", "contrast")}
    table = {"id": names, "split": splits, "label": [classes[it] for it in labels], **facts}
    pq.write_table(pa.table(table), folder / "images.parquet")
    answers = workdir.artifacts / "Predictor" / "predictions" / "2"
    answers.mkdir(parents=True)
    chosen = np.where(rng.random(10_000) < 0.7, labels[:10_000], rng.integers(0, 100, 10_000))
    told = {"classes": json.dumps(classes), "model": "f" * 16}
    answered = pa.table(
        {
            "id": pa.array(names[:10_000], pa.binary()),
            "split": splits[:10_000],
            "label": [classes[it] for it in labels[:10_000]],
            "predicted": [classes[it] for it in chosen],
            "probabilities": pa.array(list(rng.random((10_000, 100), np.float32))),
        }
    ).replace_schema_metadata(told)
    pq.write_table(answered, answers / "predictions.parquet")
    run = reports.new_run(workdir, workdir.root, "20250101T000000-aaaa")
    artifacts = {
        "ImageExampleGen": {"ingest_report": str(folder)},
        "Predictor": {"predictions": str(answers)},
    }
    reports.end(run, artifacts, Result(run.root.name, "failed"))
    html = written(workdir, run)
    assert run.report.stat().st_size < 1_000_000
    sizes = [
        int(next(row.all("data")).attributes["value"])
        for row in next(html.one("section", id="slices").all("tbody")).all("tr")
    ]
    assert sum(sizes) == 10_000 and len(sizes) == 4
    accuracy = float(html.one("dd", id="accuracy").value)
    assert accuracy == pytest.approx(np.mean(chosen == labels[:10_000]))


def test_every_outcome_has_a_name():
    assert set(outcome.LABELS) == {*index.runs.EXIT_CODES, "open"}
