"""Each metric in its own unit, and the older spans: from the gate's code to page and terminal."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pytest
from rich.console import Console

from pipeline import report
from pipeline.blessing import champion as champion_check
from pipeline.blessing import forgetting, verdict_heads
from pipeline.blessing.class_checks import Floors
from pipeline.blessing.forgetting import Older
from pipeline.blessing.measured import MeasuredValues
from pipeline.commands import why
from pipeline.config import Evaluate
from pipeline.evaluator.head_columns import Values
from pipeline.evaluator.predictions import Predictions
from pipeline.report import measures, outcome
from pipeline.report.collect import Record
from pipeline.runs import RunDir
from tests import pages, reports

BY_LOSS = Evaluate(metric="cross_entropy", max_regression=0.02, resamples=200)
HELD = Evaluate(max_forgetting=0.1)


def regression(options: Evaluate):
    """A regression head, whose errors are a third smaller than the champion's."""
    draws = np.random.default_rng(3)
    truth = draws.random(200).astype(np.float32)
    spread = draws.normal(0, 0.3, 200).astype(np.float32)
    ours, theirs = (Values(truth, truth + spread * np.float32(part)) for part in (2 / 3, 1))
    mae = float(ours.errors().mean())
    found = MeasuredValues(examples=200, mae=mae, rmse=mae, r2=0.5)
    return verdict_heads.judge(
        {"severity": found}, {"severity": ours}, {"severity": theirs}, options, {}
    )


def answered(right: list[bool]) -> Predictions:
    labels = ["a"] * len(right)
    predicted = ["a" if one else "b" for one in right]
    ids = [str(number).encode() for number in range(len(right))]
    chances = np.full((len(right), 2), 0.5, np.float32)
    return Predictions("m", None, ("a", "b"), ids, labels, predicted, chances)


def older(champion: bool = True) -> Older:
    """A span on which nothing changed, and one on which half is lost."""
    ours = answered([True] * 100 + [True] * 50 + [False] * 50)
    theirs = answered([True] * 200) if champion else None
    return Older([("span-1-r1", 100), ("span-<2>-r1", 100)], ours, theirs)


def forgotten(options: Evaluate, champion: bool = True):
    return forgetting.judge(older(champion), options.max_forgetting, options.confidence)


def judged(tmp_path, options: Evaluate, checks, **told) -> Record:
    """The shared run again, with these options, checks and keys of verdict.json."""
    workdir, shared = reports.shared()
    run = RunDir(workdir.runs / f"20250312T000000-{tmp_path.name}")
    shutil.copytree(shared.root, run.root)
    asked = json.loads(run.request.read_text())
    asked["run_id"] = run.root.name
    asked["config"]["evaluate"] = options.model_dump(mode="json")
    run.request.write_text(json.dumps(asked))
    rows = [vars(check) for check in checks]
    content = {**(Record(workdir, shared).verdict or {}), "checks": rows, **told}
    folder = tmp_path / "blessing"
    folder.mkdir()
    (folder / "verdict.json").write_text(json.dumps(content))
    artifacts = run.read_artifacts()
    artifacts["BlessingGate"] = {"blessing": str(folder)}
    run.artifacts.write_text(json.dumps(artifacts))
    return Record(workdir, run)


@pytest.fixture
def shown(tmp_path):
    """Makes a judged run; returns its record, its page and what `why` prints. Removes it after."""
    made = []

    def show(options: Evaluate, checks, **told):
        record = judged(tmp_path, options, checks, **told)
        made.append(record.run.root)
        page = pages.read(report.write(record.workdir, record.run).read_text(encoding="utf-8"))
        return record, page, terminal(record)

    yield show
    for root in made:
        shutil.rmtree(root)


def terminal(record: Record) -> str:
    """What `safelight why` prints."""
    printed = io.StringIO()
    screen = Console(file=printed, width=160, force_terminal=False, highlight=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(why, "stdout", screen)
        why.command(record.workdir.root, record.run.root.name)
    return printed.getvalue()


def values(element) -> list[float]:
    return [float(it.attributes["value"]) for it in element.all("data")]


def by_loss(turned: bool = False):
    """The gate's comparison by cross-entropy of the shared run's models."""
    outputs = reports.shared()[1].read_artifacts()["Predictor"]
    ours, theirs = (reports.read_answers(uri) for uri in outputs.values())
    pair = (theirs, ours) if turned else (ours, theirs)
    check, told = champion_check.compare(
        *pair, "version 3", Floors.asked(BY_LOSS, "label"), BY_LOSS
    )
    return check, {**told, "version": 3}


@pytest.mark.parametrize("turned", [False, True])
def test_a_loss_is_written_in_nats_and_below_0_is_better(shown, turned):
    check, told = by_loss(turned)
    better = told["metrics"]["cross_entropy"]["difference"] > 0
    assert better is not turned
    _, html, printed = shown(BY_LOSS, [check], champion=told)
    fall = -told["difference"]
    written = measures.write(fall, "change")
    section = html.one("section", id="champion").text
    assert f"What decides is the cross entropy: its difference is {written} nats" in section
    assert "up to 0.02 nats may be added" in section and "points may be lost" not in section
    row = next(row for row in html.one("table", id="compared").all("tr") if "cross" in row.text)
    assert values(row)[2] == fall and written in row.text
    [body] = html.one("table", class_="checks").all("tbody")
    assert values(body)[0] == fall and values(body)[-1] == 0.02
    assert written in body.text and "+0.02" in body.text
    assert "in its own unit" in html.one("section", id="checks").text
    [line] = [line for line in printed.splitlines() if line.startswith("cross_entropy")]
    assert "(decides), less is better" in line and written in line
    [line] = [line for line in printed.splitlines() if line.startswith("accuracy")]
    assert "%" in line


def test_a_mean_error_is_compared_in_its_targets_unit(shown):
    checks, told = regression(Evaluate())
    _, html, _ = shown(Evaluate(), checks, heads=told)
    gain = told["severity"]["champion"]["difference"]
    assert gain > 0
    [body] = [it for it in html.one("table", class_="checks").all("tbody") if "champion" in it.text]
    assert values(body)[0] == -gain and measures.write(-gain, "change") in body.text
    line = html.one("p", data_head_change="severity")
    before, difference = values(line)
    assert (before, difference) == (told["severity"]["champion"]["mae"], -gain)
    assert "mean absolute error" in line.text and "points" not in line.text
    assert line.one("span", class_="badge").text == "better"


def test_shares_stay_in_points():
    check = {"name": "champion", "value": 0.0123, "bound": 0.01, "threshold": -0.01, "passed": True}
    [told] = outcome.checks({"checks": [check], "champion": {"metric": "macro_f1"}})
    assert (told.unit, told.write(told.value)) == ("points", "+1.23")
    [told] = outcome.checks(
        {
            "checks": [{**check, "name": "champion:grade"}],
            "champion": {"metric": "cross_entropy"},
            "heads": {"grade": {"kind": "class"}},
        }
    )
    assert told.unit == "points" and told.value == 0.0123


def test_older_spans_stand_beside_the_champions_floor(shown):
    checks, told = forgotten(HELD)
    record, html, printed = shown(HELD, checks, **told)
    rows = list(html.one("table", id="spans").one("tbody").all("tr"))
    assert [row.one("th").text for row in rows] == ["span-1-r1", "span-<2>-r1"]
    assert values(rows[0]) == [100, 1.0, 1.0, 0.0, 0.9]
    assert values(rows[1]) == [100, 0.5, 1.0, -0.5, 0.9]
    assert [row.one("span", class_="badge").text for row in rows] == ["passed", "failed"]
    assert "1 span fell by more than the 10 points" in html.one("section", id="older").text
    assert "#older" in {link.attributes["href"] for link in html.one("nav").all("a")}
    body = next(html.one("table", class_="checks").all("tbody"))
    assert "forgetting of span-<2>-r1" in body.text and "−50.00" in body.text
    [line] = [line for line in printed.splitlines() if line.startswith("span-<2>-r1")]
    assert line.split() == ["span-<2>-r1", "100", "50.0%", "100.0%", "−50.00", "90.0%", "failed"]
    assert why.explain(record)["forgetting"] == told["forgetting"]


def test_without_a_bound_a_fall_is_only_told(shown):
    checks, told = forgotten(Evaluate())
    _, html, printed = shown(Evaluate(), checks, **told)
    section = html.one("section", id="older")
    assert "blocks nothing" in section.text and not list(section.all("span", class_="badge"))
    assert [values(row)[:4] for row in section.one("tbody").all("tr")][1] == [100, 0.5, 1.0, -0.5]
    assert "floor" not in printed.split("Older spans")[1]


def test_without_a_champion_there_is_nothing_to_compare(shown):
    checks, told = forgotten(HELD, champion=False)
    _, html, printed = shown(HELD, checks, **told)
    section = html.one("section", id="older")
    assert "no champion to compare" in section.text
    assert [values(row) for row in section.one("tbody").all("tr")] == [[100, 1.0], [100, 0.5]]
    assert "Older spans" in printed


def test_a_run_without_older_spans_has_no_such_section(shown):
    _, html, printed = shown(Evaluate(), [])
    assert not list(html.all("section", id="older")) and "Older spans" not in printed
