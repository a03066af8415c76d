"""The report's sections about the blessing: every number as verdict.json and the others have it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.spatial.distance import jensenshannon

from pipeline import registry, report
from pipeline.divergence import jensen_shannon
from pipeline.report import drift, explanations, outcome, page
from pipeline.report.collect import Record
from pipeline.runs import RunDir
from tests import exports, pages, report_parts, reports


@pytest.fixture(scope="module")
def made():
    """A run with everything that `safelight retrain` started: its record, and its report."""
    workdir, run = reports.shared()
    report_parts.ledger(workdir.root, run.root.name)
    path = report.write(workdir, run)
    yield Record(workdir, run), pages.read(path.read_text(encoding="utf-8"))
    # Other tests of this process share the workdir.
    shutil.rmtree(workdir.root / "retrain")


def values(element):
    """Returns the exact values in an element."""
    return [float(it.attributes["value"]) for it in element.all("data")]


def table_rows(html, **attributes):
    return list(html.one("table", **attributes).one("tbody").all("tr"))


def test_checks_show_their_intervals(made):
    record, html = made
    told = {check["name"]: check for check in record.verdict["checks"]}
    assert told["accuracy"]["interval"] is not None and told["champion"]["interval"] is not None
    shown = {it.name: it for it in outcome.checks(record.verdict)}
    low, high = told["accuracy"]["interval"]
    assert shown["accuracy"].write_interval().endswith("%")
    assert shown["champion"].write(0.0123) == "+1.23"
    for name, side in (("accuracy", "≥ "), ("class_recall", "≤ ")):
        assert shown[name].write_bound() == side + shown[name].write(told[name]["bound"])
        assert shown[name].write_bound() in html.one("table", class_="checks").text
    body = next(
        it
        for it in html.one("table", class_="checks").all("tbody")
        if it.one("th").text == "accuracy"
    )
    assert shown["accuracy"].write_interval() in body.text
    assert low <= told["accuracy"]["value"] <= high


def test_metrics_of_both_models_are_the_gates(made):
    record, html = made
    told = record.verdict["champion"]
    rows = {row.one("th").text: row for row in table_rows(html, id="compared")}
    assert set(rows) == {name.replace("_", " ") for name in told["metrics"]}
    for name, metric in told["metrics"].items():
        sign = -1 if name == "cross_entropy" else 1
        expected = [metric["value"], metric["champion"], sign * metric["difference"]]
        assert values(rows[name.replace("_", " ")]) == expected
        assert metric["verdict"] in rows[name.replace("_", " ")].text
    section = html.one("section", id="champion")
    assert "McNemar" in section.text
    assert told["p_value"] in values(section)


def test_changed_answers_are_pictures_those_lost_first(made):
    record, html = made
    told = record.verdict["flipped"]
    section = html.one("section", id="flipped")
    assert values(section)[:2] == [told["lost"], told["gained"]]
    items = list(section.all("li"))
    assert [it.one("code").text for it in items] == [row["id"] for row in told["images"][:24]]
    assert all(it.one("img").attributes["src"].startswith("data:image/") for it in items)
    words = [it.one("span", class_="badge").text for it in items]
    assert words == sorted(words, key=["lost", "gained"].index)
    for item, row in zip(items, told["images"], strict=False):
        assert item.one("strong").text == row["is"] and f"was {row['was']}" in item.text


def test_worst_slices_and_confused_classes_are_the_gates(made):
    record, html = made
    told = record.verdict["slices"]
    bodies = list(html.one("section", id="worst").all("tbody"))
    rows = [row for body in bodies for row in body.all("tr")]
    assert len(rows) == len(told) > 1
    for row, one in zip(rows, told, strict=True):
        assert values(row) == [one["examples"], one["accuracy"]]
        assert one["bucket"] in row.one("th").text
    pairs = table_rows(html, id="pairs")
    shown = [(row.one("th").text, next(row.all("td")).text, int(values(row)[0])) for row in pairs]
    assert shown == [
        (one["truth"], one["predicted"], one["count"]) for one in record.verdict["confused"]
    ]
    assert [list(row.all("td"))[-1].text for row in pairs] == [
        str(one["champion_count"]) for one in record.verdict["confused"]
    ]


def test_robustness_is_a_chart_a_kind_on_one_scale(made):
    record, html = made
    told = record.verdict["robustness"]
    section = html.one("section", id="robustness")
    charts = list(section.all("svg"))
    assert len(charts) == len(told["kinds"]) == len(list(section.all("figcaption")))
    ticks = [[it.text for it in chart.all("text") if "%" in it.text] for chart in charts]
    assert all(one == ticks[0] for one in ticks)
    assert all("champion" in [it.text for it in chart.all("text")] for chart in charts)
    rows = table_rows(html, class_="robustness")
    expected = [level["accuracy"] for levels in told["kinds"].values() for level in levels]
    assert [values(row)[0] for row in rows] == expected


def test_calibration_has_its_diagram_and_threshold(made):
    record, html = made
    told = record.verdict["calibration"]
    section = html.one("section", id="calibration")
    assert float(section.one("dd", id="ece").value) == told["ece"]
    assert float(section.one("dd", id="temperature").value) == told["temperature"] == 1.25
    assert float(section.one("dd", id="threshold").value) == told["threshold"] == 0.4
    assert float(section.one("dd", id="answered").value) == told["answered"]
    assert float(section.one("dd", id="precision").value) == told["precision"]
    assert len(list(section.one("svg").all("circle"))) == len(told["bins"])
    counts = [values(row)[0] for row in table_rows(html, class_="bins")]
    assert counts == [one["count"] for one in told["bins"]]


def test_serving_has_agreement_latency_and_size(made):
    record, html = made
    told = record.json("serving")
    section = html.one("section", id="serving")
    assert told["message"] in section.text and told["agreement"]["message"] in section.text
    assert float(section.one("dd", id="size").value) == told["latency"]["size_bytes"]
    rows = table_rows(html, id="latency")
    assert [row.one("th").text for row in rows] == ["1", "32"]
    for row, one in zip(rows, told["latency"]["batches"].values(), strict=True):
        ours = [one[key] for key in ("p50_ms", "p95_ms", "images_per_second")]
        theirs = [one["champion"][key] for key in ("p50_ms", "p95_ms")]
        assert values(row) == [*ours, *theirs, one["ratio"]]


def test_variants_say_what_each_costs_and_why_one_is_out(made):
    record, html = made
    told = record.json("variants")["variants"]
    bodies = list(html.one("table", id="variant-table").all("tbody"))
    assert [next(body.all("th")).text for body in bodies] == list(told)
    for body, one in zip(bodies, told.values(), strict=True):
        known = [one[key] for key in ("accuracy", "drop", "bytes", "p50_ms")]
        assert values(body) == [value for value in known if value is not None]
        assert body.one("span", class_="badge").text == (
            "blessed" if one["blessed"] else "not blessed"
        )
        for check in one["checks"]:
            assert (check["message"] in body.text) == (not check["passed"])
    assert {one["blessed"] for one in told.values()} == {True, False}


def test_explanations_stand_side_by_side(made):
    record, html = made
    told = record.json("explanations")["images"]
    items = list(html.one("ul", class_="explained").all("li"))
    assert len(items) == len(told) == 3
    for item, one in zip(items, told, strict=True):
        files = [one[key] for key in ("picture", "gradcam", "saliency")]
        assert len(list(item.all("img"))) == sum(name is not None for name in files)
        assert [it.text for it in item.all("figcaption")] == ["picture", "Grad-CAM", "saliency"]
        assert one["id"] == item.one("code").text


def test_an_explanation_shows_no_file_of_somebody_else(made, tmp_path):
    record, _ = made
    folder = tmp_path / "explanations"
    shutil.copytree(record.folder("", "explanations"), folder)
    told = json.loads((folder / "explanations.json").read_text())
    (tmp_path / "secret.png").write_bytes(exports.encoded("red", 1))
    told["images"][0]["picture"] = "../secret.png"
    (folder / "explanations.json").write_text(json.dumps(told))
    run = RunDir(tmp_path / "runs" / "again")
    shutil.copytree(record.run.root, run.root)
    artifacts = run.read_artifacts()
    artifacts["Explainer"] = {"explanations": str(folder)}
    run.artifacts.write_text(json.dumps(artifacts))
    found = explanations.build(Record(record.workdir, run))
    assert found.shown[0].picture is None and found.shown[0].gradcam is not None


def test_a_retraining_says_why_with_every_figure(made):
    _, html = made
    bodies = list(html.one("table", id="triggers").all("tbody"))
    assert [next(body.all("th")).text for body in bodies] == ["new images", "label drift"]
    assert [values(body) for body in bodies] == [[12.0, 100.0], [0.21, 0.1]]
    assert "retrain" in bodies[1].text and "not enough" in bodies[0].text
    section = html.one("section", id="retraining")
    assert "span-3-r1" in section.text
    ledger = [row.text for row in table_rows(section, class_="ledger")]
    assert len(ledger) == 2 and "<b>bad" in ledger[0] and "not due" in ledger[1]


def test_the_index_has_every_decision_newest_first(made):
    record, _ = made
    html = pages.read(record.workdir.index.read_text(encoding="utf-8"))
    rows = table_rows(html.one("section", id="ledger"), class_="ledger")
    words = [row.one("span", class_="badge").text for row in rows]
    assert words == ["pushed", "retrain", "quarantine", "not due"]
    assert "Version 2." in rows[0].text
    assert rows[0].one("a").attributes["href"] == f"runs/{record.run.root.name}/report.html"
    assert "moved by 0.210" in rows[1].text and "12 new images" in rows[1].text


def test_a_run_of_ones_own_has_no_retraining(made):
    record, _ = made
    run = reports.judged_again(record.workdir, record.run, "20250309T000000-7777", floor=0.5)
    assert page.sections(Record(record.workdir, run))["retraining"] is None


def moved_data(record, tmp_path):
    """Publishes a version whose run had half of the reds, and brighter images; returns its run."""
    earlier = RunDir(record.workdir.runs / "20250101T000000-1111")
    shutil.copytree(record.run.root, earlier.root)
    asked = json.loads(earlier.request.read_text())
    asked["run_id"], asked["lineage"]["data"] = earlier.root.name, "other"
    earlier.request.write_text(json.dumps(asked))
    folder = tmp_path / "report"
    shutil.copytree(record.folder("ImageExampleGen", "ingest_report"), folder)
    table = pq.read_table(folder / "images.parquet")
    labels = np.array(table["label"].to_pylist())
    reds = np.flatnonzero(labels == "red")
    keep = np.setdiff1d(np.arange(len(labels)), reds[: len(reds) // 2])
    table = table.take(keep)
    brighter = pa.array(table["brightness"].to_numpy() + 0.1)
    place = table.column_names.index("brightness")
    pq.write_table(table.set_column(place, "brightness", brighter), folder / "images.parquet")
    artifacts = earlier.read_artifacts()
    artifacts["ImageExampleGen"]["ingest_report"] = str(folder)
    earlier.artifacts.write_text(json.dumps(artifacts))
    models = registry.open(record.workdir.serving("model"))
    origin = registry.Origin("run", "passed every check", earlier.root.name, "other", "c", "e")
    models.publish(record.workdir.artifacts / "Trainer" / "predictions", origin)
    return table


def test_drift_is_measured_against_the_champions_data(made, tmp_path):
    record, _ = made
    before = moved_data(record, tmp_path)
    run = RunDir(record.workdir.runs / "20250310T000000-8888")
    shutil.copytree(record.run.root, run.root)
    asked = json.loads(run.request.read_text())
    asked["run_id"], asked["inputs"]["champion"] = run.root.name, 1
    run.request.write_text(json.dumps(asked))
    found = drift.build(Record(record.workdir, run))
    now = record.table("images")
    shares = {
        name: [np.mean(np.array(it["label"].to_pylist()) == name) for it in (before, now)]
        for name in record.classes
    }
    apart = {name: abs(a - b) for name, (a, b) in shares.items()}
    assert found.labels == pytest.approx(max(apart.values())) == pytest.approx(apart["red"])
    assert found.classes[0].name == "red"
    [brightness] = [it for it in found.facts if it.name == "Brightness"]
    [contrast] = [it for it in found.facts if it.name == "Contrast"]
    assert brightness.champion > 0.2 > contrast.champion
    html = pages.read(report.write(record.workdir, run).read_text(encoding="utf-8"))
    section = html.one("section", id="drift")
    assert "Against the data of version 1" in section.text
    assert len(list(section.all("svg"))) == len(found.facts)


def test_without_a_champion_there_is_only_the_splits_skew(made):
    record, html = made
    found = drift.build(record)
    assert found.version is None and found.labels is None and found.splits >= 0
    assert "Without a champion" in html.one("section", id="drift").text
    assert not list(html.one("section", id="drift").all("svg"))


def test_the_divergence_is_that_of_jensen_and_shannon():
    one, other = np.array([0.5, 0.5, 0.0]), np.array([0.1, 0.4, 0.5])
    assert jensen_shannon(one, other) == pytest.approx(jensenshannon(one, other, base=2) ** 2)
    assert jensen_shannon(one, one) == 0
    assert jensen_shannon(np.array([1.0, 0]), np.array([0, 1.0])) == pytest.approx(1)


@pytest.mark.parametrize(
    ("checks", "words"),
    [
        (
            [("accuracy", 0.91, 0.85, 0.9, False), ("serving", 0.0, None, 0.1, True)],
            "1 of 2 checks failed, accuracy (≥ 85.0%, asked 90.0%).",
        ),
        (
            [("champion", -0.02, -0.01, -0.005, False), ("answers", 3, None, 0, False)],
            "2 of 2 checks failed, champion (≤ −1.00 points, asked −0.50 points) and answers "
            "(3, asked 0).",
        ),
        (
            [(f"c{number}", None, None, None, False) for number in range(5)],
            "5 of 5 checks failed, c0, c1, c2 and 2 more.",
        ),
    ],
)
def test_a_block_is_answered_in_one_sentence(made, tmp_path, checks, words):
    record, _ = made
    run = RunDir(tmp_path / "runs" / "blocked")
    shutil.copytree(record.run.root, run.root)
    keys = ("name", "value", "bound", "threshold", "passed")
    told = {"checks": [{**dict(zip(keys, it, strict=True)), "message": "Why."} for it in checks]}
    folder = tmp_path / "blessing"
    folder.mkdir()
    (folder / "verdict.json").write_text(json.dumps(told))
    artifacts = run.read_artifacts()
    artifacts["BlessingGate"] = {"blessing": str(folder)}
    run.artifacts.write_text(json.dumps(artifacts))
    run.write_result(reports.Result(run.root.name, "not_blessed", reasons=["Why."]))
    assert outcome.sentence(Record(record.workdir, run)) == f"The model stays out: {words}"


def test_a_failure_behind_the_push_does_not_deny_it(made, tmp_path):
    record, _ = made
    run = RunDir(tmp_path / "runs" / "failed")
    shutil.copytree(record.run.root, run.root)
    result = replace(record.result, outcome="failed", reasons=["the disk is full"], version=2)
    run.write_result(result)
    assert "after its model had become version 2 of" in outcome.sentence(
        Record(record.workdir, run)
    )
    run.write_result(replace(result, version=None))
    assert outcome.sentence(Record(record.workdir, run)).endswith("and no model was pushed.")
