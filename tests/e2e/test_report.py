"""The report of real runs, made by the command itself: one that is pushed, one that is blocked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.report.collect import Record
from pipeline.report.page import sections
from pipeline.runs import RunDir
from pipeline.workdir import Workdir
from tests import made, pages
from tests.e2e.command import STAGES, Ended, safelight

pytestmark = pytest.mark.slow

SET = ("--profile", "smoke", "--set", "train.epochs=3", "--json")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A workdir with a pushed run and one that its floor stopped."""
    root = tmp_path_factory.mktemp("reported")
    data = made.class_folders(root / "data", dict.fromkeys(made.HUES, 60))
    (data / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    workdir = root / "work"
    pushed = safelight("run", data, "--workdir", workdir, *SET)
    made.class_folders(data, dict.fromkeys(made.HUES, 70))
    floor = ("--set", "evaluate.min_accuracy=0.9999")
    blocked = safelight("run", data, "--workdir", workdir, *SET, *floor)
    return workdir, pushed, blocked


def opened(workdir: Path, ended: Ended) -> tuple[Record, pages.Element]:
    """Returns a run's record and its report, as the run itself wrote it."""
    run = RunDir(workdir / "runs" / ended.result["run_id"])
    assert ended.result["report"] == str(run.report), ended.stderr
    return Record(Workdir(workdir), run), pages.read(run.report.read_text(encoding="utf-8"))


def test_the_report_of_a_pushed_run_says_what_its_result_says(work):
    workdir, ended, _ = work
    record, html = opened(workdir, ended)
    assert sections(record)["unreadable"] == []
    assert html.one("h1").text == "Pushed"
    shown = {
        it.attributes["data-metric"]: float(it.value)
        for it in html.one("dl", id="metrics").all("dd")
    }
    assert shown == ended.result["metrics"]
    for split, count in ended.result["examples"].items():
        assert int(html.one("dd", id=f"split-{split}").value) == count
    assert int(html.one("dd", id="quarantined").value) == ended.result["quarantined"] == 1
    rows = html.one("table", class_="timing").one("tbody").all("tr")
    assert [row.one("th").text for row in rows] == ["start-up", *STAGES]
    assert html.one("section", id="samples").one("h2").text == "Samples as the model sees them"


def test_the_report_of_a_blocked_run_compares_with_the_champion(work):
    workdir, _, ended = work
    record, html = opened(workdir, ended)
    assert html.one("h1").text == "Not blessed"
    [reason] = html.one("ul", class_="reasons").all("li")
    assert [reason.text] == ended.result["reasons"] and "99.99%" in reason.text
    told = record.verdict["champion"]
    assert told["version"] == 1
    assert float(html.one("dd", id="old-accuracy").value) == told["accuracy"]


def test_the_command_makes_the_same_report_again(work):
    workdir, ended, _ = work
    record, _ = opened(workdir, ended)
    before = record.run.report.read_bytes()
    again = safelight("report", ended.result["run_id"], "--workdir", workdir, "--json")
    assert again.code == 0 and json.loads(again.stdout)["report"] == str(record.run.report)
    assert record.run.report.read_bytes() == before
    assert sorted(path.name for path in workdir.glob("*.html")) == ["index.html"]
