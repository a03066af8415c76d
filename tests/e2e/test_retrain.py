"""Retraining as an operator sees it: spans arrive, models are pushed, and put back."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from pipeline import registry
from tests import made
from tests.e2e.command import Ended, safelight, start

SET = (
    "--profile",
    "smoke",
    "--set",
    "retrain.backoff_minutes=0",
    "--set",
    "retrain.runs_per_day=99",
)


def span(root: Path, number: int, first: int, images: int = 60, labels=tuple(made.HUES)) -> Path:
    """Writes a complete span of other pictures than those of the other spans."""
    folder = root / f"span-{number}"
    for label in labels:
        (folder / label).mkdir(parents=True)
        for index in range(first, first + images):
            made.picture(label, index).save(folder / label / f"{index}.png")
    (folder / "_SUCCESS").touch()
    return folder


def retrain(root: Path, workdir: Path, *more: str) -> Ended:
    return safelight(
        "retrain", "--spans", root, "--workdir", workdir, "--once", "--json", *SET, *more
    )


def served(workdir: Path) -> list[int]:
    """Returns the versions on the disk; the registry must agree with them."""
    root = workdir / "serving" / "model"
    numbers = sorted(int(one.name) for one in root.iterdir() if one.name.isdecimal())
    assert registry.read(root).current == numbers[-1]
    return numbers


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> tuple[Path, Path]:
    """A folder of one span, and the workdir that was trained on it."""
    root = tmp_path_factory.mktemp("retrain")
    span(root / "data", 1, first=0)
    ended = retrain(root / "data", root / "work")
    assert ended.code == 0, ended.stderr
    assert ended.result["reasons"] == ["Nothing is served yet: the first training is due."]
    assert ended.result["result"]["outcome"] == "pushed"
    return root / "data", root / "work"


def test_a_second_span_costs_only_itself_and_can_be_taken_back(place):
    data, workdir = place
    nothing = retrain(data, workdir)
    assert nothing.code == 0 and not nothing.result["due"] and nothing.result["result"] is None

    span(data, 2, first=100)
    ended = retrain(data, workdir, "--set", "retrain.label_drift=0.5")
    assert ended.code == 0, ended.stderr
    stages = {one["name"]: one["state"] for one in ended.result["result"]["stages"]}
    cached = {name for name, state in stages.items() if state == "cached"}
    assert cached == {
        f"{node}.span-{number}-r1"
        for node in ("ImageExampleGen", "StatisticsGen")
        for number in (1, 2)
    }
    assert ended.result["window"] == ["span-1-r1", "span-2-r1"]
    run = workdir / "runs" / ended.result["result"]["run_id"]
    request = json.loads((run / "run.json").read_text())
    assert [one["name"] for one in request["spans"]] == ended.result["window"]
    assert served(workdir) == [1, 2]
    lines = [json.loads(line) for line in (workdir / "retrain" / "ledger.jsonl").open()]
    drift = [
        one for line in lines for one in line.get("findings", ()) if one["trigger"] == "label_drift"
    ]
    assert drift and 0 <= drift[-1]["value"] < 0.5

    back = safelight(
        "rollback", "--workdir", workdir, "--reason", "blurred", "--quarantine-span", 2
    )
    assert back.code == 0, back.stderr
    assert served(workdir) == [1, 2, 3]
    statuses = [entry.status for entry in registry.read(workdir / "serving" / "model").entries]
    assert statuses == ["retired", "rolled_back", "live"]
    history = safelight("history", "--workdir", workdir)
    assert "blurred" in history.stdout and "rollback" in history.stdout


def test_a_broken_span_is_put_aside_and_the_champion_stays(place, tmp_path):
    data, workdir = place
    before = served(workdir)
    broken = span(data, 3, first=300, images=20)
    for number, file in enumerate(sorted(broken.rglob("*.png"))):
        if number % 2:
            file.write_bytes(file.read_bytes()[:40])
    ended = retrain(data, workdir)
    assert ended.code == 0, ended.stderr
    assert ended.result["result"] is None
    assert served(workdir) == before
    book = json.loads((workdir / "retrain" / "spans.json").read_text())
    [record] = [one for one in book["spans"] if one["number"] == 3]
    assert record["state"] == "quarantined" and "error_budget" in record["reason"]
    shutil.rmtree(broken)


def kill_all(running: subprocess.Popen[str]) -> None:
    family = [*psutil.Process(running.pid).children(recursive=True), psutil.Process(running.pid)]
    for process in family:
        process.send_signal(signal.SIGKILL)
    psutil.wait_procs(family, timeout=20)
    running.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["StatisticsGen", "Trainer", "BlessingGate", "Pusher"])
def test_killed_in_a_stage_and_gone_on_with(tmp_path, stage):
    data, workdir = tmp_path / "data", tmp_path / "work"
    span(data, 1, first=0)
    running = start("retrain", "--spans", data, "--workdir", workdir, "--once", "--json", *SET)
    deadline = time.monotonic() + 400
    wanted = f'"name": "{stage}", "state": "start"'
    while not any(wanted in log.read_text() for log in workdir.glob("runs/*/events.jsonl")):
        assert time.monotonic() < deadline and running.poll() is None
        time.sleep(0.05)
    kill_all(running)
    ended = retrain(data, workdir)
    assert ended.code == 0, ended.stderr
    assert served(workdir) == [1]


@pytest.mark.slow
def test_a_daemon_trains_on_a_span_that_arrives_and_stops(place, tmp_path):
    data, workdir = tmp_path / "data", tmp_path / "work"
    data.mkdir()
    running = start(
        "retrain", "--spans", data, "--workdir", workdir, "--watch", *SET, "--set", "retrain.port=0"
    )
    try:
        span(data, 1, first=0)
        deadline = time.monotonic() + 400
        while not (workdir / "serving" / "model" / "1").is_dir():
            assert time.monotonic() < deadline and running.poll() is None
            time.sleep(0.5)
        running.send_signal(signal.SIGTERM)
        _, said = running.communicate(timeout=60)
        assert running.returncode == 0 and "Traceback" not in said
    finally:
        if running.poll() is None:
            kill_all(running)
    assert served(workdir) == [1]


@pytest.mark.slow
def test_a_golden_set_judges_and_both_starts_are_tried(tmp_path):
    data, workdir, golden = tmp_path / "data", tmp_path / "work", tmp_path / "golden"
    span(data, 1, first=0)
    for label in made.HUES:
        (golden / label).mkdir(parents=True)
        for index in range(900, 910):
            made.picture(label, index).save(golden / label / f"{index}.png")
    options = ("--set", f"retrain.golden={golden}", "--set", "retrain.start=both")
    first = retrain(data, workdir, *options)
    assert first.code == 0, first.stderr
    span(data, 2, first=100)
    second = retrain(data, workdir, *options)
    assert second.code in (0, 3), second.stderr
    run = workdir / "runs" / second.result["result"]["run_id"]
    assert [one["name"] for one in json.loads((run / "run.json").read_text())["spans"]] == [
        "span-1-r1",
        "span-2-r1",
        "golden",
    ]
    where = json.loads((run / "artifacts.json").read_text())
    report = Path(where["ImageExampleGen"]["ingest_report"])
    summary = json.loads((report / "summary.json").read_text())
    spans = {one["name"]: one["examples"] for one in summary["spans"]}
    # All of the golden set judges, and none of it trains.
    newest, gold = spans["span-2-r1"], spans["golden"]
    assert summary["examples"]["test"] == newest["test"] + sum(gold.values()) == newest["test"] + 40
    assert summary["examples"]["train"] == newest["train"] + spans["span-1-r1"]["train"]
    history = Path(where["Trainer"]["model_run"]) / "history.json"
    assert json.loads(history.read_text())["starts"]["chosen"] in ("warm", "cold")
    verdict = json.loads((Path(where["BlessingGate"]["blessing"]) / "verdict.json").read_text())
    [older] = verdict["forgetting"]
    assert (older["span"], older["images"]) == ("span-1-r1", spans["span-1-r1"]["test"])
    lines = [json.loads(line) for line in (workdir / "retrain" / "ledger.jsonl").open()]
    assert [one["forgetting"] for one in lines if one["kind"] == "outcome"] == [[], [older]]
