"""The report of whole runs: every number as in the artifacts, valid HTML, the same bytes again."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline import report
from pipeline.report import page, provenance
from pipeline.report.collect import Record
from tests import pages, reports

SECTIONS = [
    "outcome",
    "checks",
    "champion",
    "flipped",
    "worst",
    "confused",
    "said",
    "data",
    "drift",
    "validation",
    "samples",
    "search",
    "training",
    "results",
    "heads",
    "mistakes",
    "explanations",
    "robustness",
    "calibration",
    "serving",
    "variants",
    "timing",
    "lineage",
]


@pytest.fixture(scope="module")
def made():
    """A run with everything, a champion included: its record, and its report as elements."""
    workdir, run = reports.shared()
    path = report.write(workdir, run)
    return Record(workdir, run), pages.read(path.read_text(encoding="utf-8"))


def test_every_section_is_there_and_none_is_broken(made):
    record, html = made
    assert page.sections(record)["unreadable"] == []
    assert [section.attributes["id"] for section in html.all("section")] == SECTIONS
    assert html.one("h1").text == "Pushed"
    named = {link.attributes["href"][1:] for link in html.one("nav").all("a")}
    assert named == set(SECTIONS) - {"checks", "said"}


def test_metrics_are_the_verdicts(made):
    record, html = made
    shown = {
        it.attributes["data-metric"]: float(it.value)
        for it in html.one("dl", id="metrics").all("dd")
    }
    assert shown == record.verdict["metrics"]
    assert float(html.one("dd", id="accuracy").value) == record.verdict["metrics"]["accuracy"]


def test_confusion_matrix_and_classes_are_the_verdicts(made):
    record, html = made
    body = html.one("table", id="confusion").one("tbody")
    cells = [[int(cell.text) for cell in row.all("td")] for row in body.all("tr")]
    assert cells == record.verdict["confusion"]
    rows = list(html.one("table", class_="per-class").one("tbody").all("tr"))
    assert len(rows) == len(record.verdict["per_class"])
    for row in rows:
        told = record.verdict["per_class"][row.one("th").text]
        values = [float(data.attributes["value"]) for data in row.all("data")]
        assert values == pytest.approx(
            [told["support"], told["recall"], told["precision"], told["f1"]]
        )
    recalls = [float(list(row.all("data"))[1].attributes["value"]) for row in rows]
    assert recalls == sorted(recalls), "the class with the lowest recall comes first"


def test_checks_show_value_bound_and_threshold(made):
    record, html = made
    bodies = list(html.one("table", class_="checks").all("tbody"))
    assert len(bodies) == len(record.verdict["checks"])
    for body in bodies:
        name = body.one("th").text.replace(" ", "_")
        [told] = [check for check in record.verdict["checks"] if check["name"] == name]
        numbers = [told[key] for key in ("value", "bound", "threshold") if told[key] is not None]
        assert [float(data.attributes["value"]) for data in body.all("data")] == numbers
        assert told["message"] in body.text


def test_data_is_what_ingest_counted(made):
    record, html = made
    summary = record.summary
    for split, count in summary["examples"].items():
        assert int(html.one("dd", id=f"split-{split}").value) == count
    assert int(html.one("dd", id="quarantined").value) == summary["quarantined"] == 2
    assert int(html.one("dd", id="duplicates").value) == summary["duplicates"] == 1
    for row in html.one("table", id="classes").one("tbody").all("tr"):
        counts = summary["per_class"][row.one("th").text]
        values = [int(data.attributes["value"]) for data in row.all("data")]
        assert values == [*counts.values(), sum(counts.values())]
    files = {
        code.text for files in html.all("ul", class_="bad-files") for code in files.all("code")
    }
    assert files == {"blue/empty.jpg", "blue/page <img src=x>.jpg"}


def test_every_image_is_read_back_by_its_place(made):
    record, _ = made
    # A duplicate was removed from the shards: places must not have moved by it.
    rows = pq.read_table(record.path("images")).to_pylist()
    stored = record.stored(row["id"] for row in rows)
    assert {name: image.label for name, image in stored.items()} == {
        row["id"]: row["label"] for row in rows
    }


def test_mistakes_are_those_that_the_model_was_surest_of(made):
    record, html = made
    answers = record.predictions
    wrong = np.flatnonzero(answers.labels != answers.predicted)
    assert len(wrong) > 0
    shown = list(html.one("section", id="mistakes").one("ul").all("li"))
    surest = sorted((-float(answers.probabilities[row].max()), answers.ids[row]) for row in wrong)
    assert [item.one("code").text for item in shown] == [name.decode() for _, name in surest]
    for item, (score, _) in zip(shown, surest, strict=True):
        assert float(next(item.all("data")).attributes["value"]) == pytest.approx(-score)
        assert item.one("img").attributes["src"].startswith("data:image/png;base64,")


def test_samples_are_as_the_model_sees_them(made):
    record, html = made
    section = html.one("section", id="samples")
    assert section.one("h2").text == "Samples as the model sees them"
    assert "32 × 32" in section.text
    assert len(list(section.all("h3"))) == len(record.classes)
    assert len(list(section.all("img"))) == 2 * 8 * len(record.classes)
    augmented = [it for row in section.all("div", class_="augmented") for it in row.all("img")]
    assert len(augmented) == 8 * len(record.classes)
    assert all(it.attributes["alt"].endswith(", augmented") for it in augmented)
    assert "after flip, rotation" in section.text


def test_phases_are_the_historys_and_stand_above_the_curves(made):
    record, html = made
    rows = list(html.one("table", id="phases").one("tbody").all("tr"))
    told = record.json("history")["phases"]
    assert [row.one("th").text for row in rows] == ["head", "fine-tuning"]
    assert [next(row.all("td")).text for row in rows] == ["1–3", "4–6"]
    for row, phase in zip(rows, told, strict=True):
        values = [float(data.attributes["value"]) for data in row.all("data")]
        assert values == [phase["learning_rate"], phase["trainable_parameters"]]
    charts = list(html.one("section", id="training").all("figure"))
    assert [it.one("figcaption").text for it in charts] == [
        "Loss",
        "Accuracy",
        "severity: mean absolute error",
    ]
    for chart in charts:
        assert [it.text for it in chart.all("text")].count("fine-tuning") == 1


def test_trials_are_the_searchs_the_best_first(made):
    _, html = made
    rows = list(html.one("table", class_="trials").one("tbody").all("tr"))
    assert [row.one("th").text for row in rows if row.attributes.get("class") != "why"] == [
        "3 (best)",
        "1",
        "2",
    ]
    assert [data.attributes["value"] for data in rows[0].all("data")] == ["0.93", "4.5"]
    assert "failed" in rows[2].text and rows[3].text == "the loss is not finite"
    assert [cell.text for cell in rows[0].all("td")][1:3] == ["0.001", "0.6"]


def test_heads_have_their_metrics_and_a_picture_of_their_errors(made):
    record, html = made
    section = html.one("section", id="heads")
    severity = record.predictions.heads["severity"]
    known = np.isfinite(severity.truth)
    shown = {
        it.attributes["data-measure"]: float(it.value)
        for it in section.all("dd")
        if it.attributes["data-head"] == "severity"
    }
    assert shown["mae"] == pytest.approx(severity.errors()[known].mean())
    assert set(shown) == {"mae", "rmse", "r2"} and shown["r2"] > 0.9
    assert "1 more without a truth" in section.text
    body = html.one("table", id="head-2").one("tbody")
    cells = [[int(cell.text) for cell in row.all("td")] for row in body.all("tr")]
    grade = record.predictions.heads["grade"]
    assert sum(map(sum, cells)) == len(grade.labels)
    assert cells[0][0] + cells[1][1] == int(grade.correct().sum())


def test_the_champion_is_compared_as_the_gate_compared_it(made):
    record, html = made
    told = record.verdict["champion"]
    assert float(html.one("dd", id="old-accuracy").value) == told["accuracy"]
    sentence = next(html.one("section", id="champion").all("p"))
    values = [float(data.attributes["value"]) for data in sentence.all("data")]
    assert values == [told["difference"], told["lower"], told["upper"], told["p_value"]]
    assert told["verdict"] in sentence.text


def test_curves_and_epochs_are_the_historys(made):
    record, html = made
    history = record.json("history")
    rows = list(html.one("table", id="epochs").one("tbody").all("tr"))
    for row, told in zip(rows, history["epochs"], strict=True):
        keys = ("loss", "eval_loss", "accuracy", "eval_accuracy", "learning_rate", "seconds")
        values = [float(data.attributes["value"]) for data in row.all("data")]
        assert values == [told[key] for key in keys]
    assert [row.one("th").text for row in rows if row.attributes.get("class")] == ["4 (kept)"]
    titles = [svg.attributes["aria-label"] for svg in html.one("section", id="training").all("svg")]
    assert titles == [
        "Loss by epoch: after epoch 6, train 0.233, eval 0.7",
        "Accuracy by epoch: after epoch 6, train 90.83%, eval 86%",
        "severity: mean absolute error by epoch: after epoch 6, train 0.0833, eval 0.2",
    ]


def test_stages_have_their_times_and_memory(made):
    record, html = made
    rows = list(html.one("table", class_="timing").one("tbody").all("tr"))
    ended = [event for event in record.of_kind("stage") if event["state"] != "start"]
    assert [row.one("th").text for row in rows] == ["start-up", *(e["name"] for e in ended)]
    for row, event in zip(rows[1:], ended, strict=True):
        values = [float(data.attributes["value"]) for data in row.all("data")]
        assert values == [event["seconds"], event["peak_mb"]]


def test_lineage_has_fingerprints_versions_and_every_key_with_its_origin(made):
    record, html = made
    request = record.request
    shown = {it.attributes["data-fingerprint"]: it.text for it in html.all("code") if it.attributes}
    assert shown == {**request.lineage, "model": record.predictions.model}
    rows = {
        row.one("th").text: [cell.text for cell in row.all("td")]
        for row in html.one("table", id="configuration").one("tbody").all("tr")
    }
    keys = {f"{section}.{key}" for section, held in request.config.items() for key in held}
    assert set(rows) == keys
    assert rows["train.epochs"] == ["6", "--set train.epochs"]
    assert rows["transform.image_size"] == ["32", "chosen from the data"]
    assert rows["train.seed"] == ["17", "default"]


def test_the_page_is_valid_accessible_and_asks_for_nothing(made):
    _, html = made
    assert html.one("html").attributes["lang"] == "en"
    ids = [it.attributes["id"] for it in html.all() if "id" in it.attributes]
    assert len(ids) == len(set(ids))
    levels = [int(it.tag[1]) for it in html.all() if re.fullmatch("h[1-6]", it.tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for name in ("main", "nav", "header", "footer"):
        html.one(name)
    for it in html.all():
        label = it.attributes.get("aria-labelledby")
        assert label is None or label in ids
        if it.tag == "th":
            assert it.attributes["scope"] in ("row", "col")
        if it.tag == "img":
            assert it.attributes["alt"] and it.attributes["src"].startswith("data:image/")
        if it.tag == "svg":
            assert it.attributes.get("aria-label") or it.attributes.get("aria-hidden") == "true"
        if it.tag == "a":
            assert it.attributes["href"].startswith(("#", "../../index.html"))
            assert not it.attributes["href"].startswith("#") or it.attributes["href"][1:] in ids
        assert it.tag not in ("script", "iframe", "object", "form")
        assert not [name for name in it.attributes if name.startswith("on")]
    policies = [it.attributes.get("content", "") for it in html.all("meta")]
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in policies


def test_the_same_workdir_gives_the_same_bytes(made):
    record, _ = made
    before = record.run.report.read_bytes()
    index = record.workdir.index.read_bytes()
    report.write(record.workdir, record.run)
    assert record.run.report.read_bytes() == before
    assert record.workdir.index.read_bytes() == index
    assert len(before) < 1_000_000
    assert not list(record.run.root.glob(".*.new"))


def test_a_report_made_again_is_the_same_and_needs_no_tensorflow(made):
    record, _ = made
    before = record.run.report.read_bytes()
    script = (
        "import sys; from pathlib import Path; from pipeline import report; "
        "report.command(Path(sys.argv[1]), sys.argv[2]); "
        "assert not {'tensorflow', 'tfx', 'apache_beam'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    subprocess.run(
        [sys.executable, "-c", script, str(record.workdir.root), record.run.root.name],
        env=environment,
        check=True,
        capture_output=True,
        timeout=120,
    )
    assert record.run.report.read_bytes() == before


def test_a_blocked_run_says_exactly_why():
    workdir, passed = reports.shared()
    run = reports.judged_again(workdir, passed, "20250305T000000-9999", floor=0.99)
    html = pages.read(report.write(workdir, run).read_text(encoding="utf-8"))
    verdict = Record(workdir, run).verdict
    assert html.one("h1").text == "Not blessed"
    count = len(verdict["checks"])
    assert f"1 of {count} checks failed, accuracy" in html.one("section", id="outcome").text
    [reason] = html.one("ul", class_="reasons").all("li")
    [failed] = [check for check in verdict["checks"] if not check["passed"]]
    assert reason.text == failed["message"] == verdict["reasons"][0]
    for words in (f"{failed['bound']:.2%}", f"{failed['threshold']:.2%}"):
        assert words in reason.text
    first = next(html.one("table", class_="checks").all("tbody"))
    assert "failed" in first.text, "a failed check comes first"


def test_passwords_stay_out(tmp_path):
    workdir = reports.open_workdir(tmp_path / "work")
    url = "postgresql://me:s3cret@db:5432/mlmd"
    run = reports.new_run(workdir, tmp_path, "20250101T000000-aaaa", metadata={"url": url})
    run.log.write_text(f"could not connect to {url}\n")
    text = report.write(workdir, run).read_text()
    assert "s3cret" not in text
    assert "postgresql://me:***@db:5432/mlmd" in text
    keys = {it.key: it.value for it in provenance.build(Record(workdir, run)).settings}
    assert keys["metadata.url"] == '"postgresql://me:***@db:5432/mlmd"'


def test_importing_the_report_costs_no_tensorflow():
    script = "import sys, pipeline.report; print(*sorted(m for m in sys.modules if '.' not in m))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    loaded = set(done.stdout.split())
    assert not loaded & {"tensorflow", "tfx", "apache_beam", "matplotlib", "keras"}
    assert Path(report.__file__).name == "__init__.py"
