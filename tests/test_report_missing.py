"""The report of runs from which something is missing, or damaged: the rest is shown."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.report import page, results
from pipeline.report.collect import Record
from tests import graphs, pages, reports


@pytest.fixture(scope="module")
def record() -> Record:
    """A run with everything."""
    return Record(*reports.shared())


def test_slices_hold_every_test_image_once_where_the_gate_judged_none(record, tmp_path):
    run = reports.RunDir(tmp_path / "runs" / "again")
    shutil.copytree(record.run.root, run.root)
    artifacts = json.loads(run.artifacts.read_text())
    del artifacts["BlessingGate"]
    run.artifacts.write_text(json.dumps(artifacts))
    shown = page.sections(Record(record.workdir, run))
    html = pages.read(page.render.render("report.html.j2", shown))
    tables = list(html.one("section", id="slices").all("table"))
    assert [table.one("caption").text.split()[0] for table in tables] == ["Brightness", "Sharpness"]
    for table in tables:
        rows = list(table.one("tbody").all("tr"))
        sizes = [int(next(row.all("data")).attributes["value"]) for row in rows]
        right = [float(list(row.all("data"))[1].attributes["value"]) for row in rows]
        assert sum(sizes) == record.verdict["test_examples"]
        total = sum(n * share for n, share in zip(sizes, right, strict=True))
        assert total == pytest.approx(int(np.trace(record.verdict["confusion"])))


def test_results_from_predictions_alone_are_the_same(record):
    names, counts = results.counted({}, record.predictions)
    assert counts.tolist() == record.verdict["confusion"]
    assert names == tuple(record.verdict["per_class"])


def test_one_lost_artifact_costs_one_section(record, tmp_path):
    run = reports.RunDir(tmp_path / "runs" / "again")
    shutil.copytree(record.run.root, run.root)
    artifacts = json.loads(run.artifacts.read_text())
    del artifacts["Transform"]
    artifacts["Trainer"]["model_run"] = str(tmp_path / "gone")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "validation.json").write_text('{"checks": [')
    artifacts["ValidationGate"]["validation_report"] = str(damaged)
    run.artifacts.write_text(json.dumps(artifacts))
    found = page.sections(Record(record.workdir, run))
    assert found["training"] is None and found["validation"] is None
    assert found["results"] is not None and found["mistakes"] is not None
    assert found["samples"] is not None and not found["samples"].seen
    [said] = found["unreadable"]
    assert "validation.json" in said


def test_a_damaged_table_is_said_and_the_rest_is_shown(record, tmp_path):
    run = reports.RunDir(tmp_path / "runs" / "again")
    shutil.copytree(record.run.root, run.root)
    artifacts = json.loads(run.artifacts.read_text())
    folder = tmp_path / "predictions"
    folder.mkdir()
    (folder / "predictions.parquet").write_bytes(b"PAR1 and then nothing")
    artifacts["Predictor"] = {"predictions": str(folder)}
    run.artifacts.write_text(json.dumps(artifacts))
    found = page.sections(Record(record.workdir, run))
    assert found["mistakes"] is None and found["slices"] == []
    assert found["results"].test_examples == record.verdict["test_examples"]
    assert any("predictions.parquet" in said for said in found["unreadable"])


def test_thumbnails_of_bad_files_are_shown_where_ingest_kept_them(record, tmp_path):
    folder = tmp_path / "report"
    shutil.copytree(record.folder("ImageExampleGen", "ingest_report"), folder)
    table = pq.read_table(folder / "quarantine.parquet").drop(["thumbnail"])
    kept = [graphs.encoded("red", 1), None]
    pq.write_table(table.append_column("thumbnail", [kept]), folder / "quarantine.parquet")
    run = reports.RunDir(tmp_path / "runs" / "again")
    shutil.copytree(record.run.root, run.root)
    artifacts = json.loads(run.artifacts.read_text())
    artifacts["ImageExampleGen"]["ingest_report"] = str(folder)
    run.artifacts.write_text(json.dumps(artifacts))
    html = page.render.render("report.html.j2", page.sections(Record(record.workdir, run)))
    [image] = [it for files in pages.read(html).all(class_="bad-files") for it in files.all("img")]
    assert image.attributes["alt"] == "Quarantined: blue/empty.jpg"
    assert image.attributes["src"].startswith("data:image/png;base64,")
