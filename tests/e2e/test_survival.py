"""Runs that are killed, stopped or in each other's way."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from pipeline import events
from tests import made
from tests.e2e.command import STAGES, safelight, start

SET = ("--profile", "smoke", "--set", "train.epochs=6")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    counts = dict.fromkeys(made.HUES, 60)
    return made.class_folders(tmp_path_factory.mktemp("data") / "colours", counts)


def wait_for(workdir: Path, running: subprocess.Popen[str], wanted, limit: float = 400) -> None:
    """Waits until an event of the newest run satisfies `wanted`."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        assert running.poll() is None, running.communicate()
        logs = sorted((workdir / "runs").glob("*/events.jsonl"))
        if logs and any(wanted(event) for _, event in events.read(logs[-1])):
            return
        time.sleep(0.05)
    raise AssertionError(f"what was waited for did not come in {limit} s")


def begins(stage: str):
    return lambda event: event["kind"] == "stage" and event["name"] == stage


def kill_all(running: subprocess.Popen[str]) -> None:
    """Kills the command and all its children at once, with SIGKILL."""
    family = [*psutil.Process(running.pid).children(recursive=True), psutil.Process(running.pid)]
    for process in family:
        process.send_signal(signal.SIGKILL)
    psutil.wait_procs(family, timeout=20)
    running.communicate()


def served(workdir: Path) -> list[str]:
    folder = workdir / "serving" / "model"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_training_killed_after_an_epoch_goes_on_from_there(data, tmp_path):
    workdir = tmp_path / "work"
    running = start("run", data, "--workdir", workdir, *SET)
    wait_for(
        workdir,
        running,
        lambda event: event["kind"] == "progress" and "epoch 3" in event["note"],
    )
    kill_all(running)
    assert served(workdir) in ([], ["registry.json"])
    ended = safelight("run", data, "--workdir", workdir, *SET, "--json")
    assert ended.code == 0, ended.stderr
    assert ended.stages_in("cached") == set(STAGES[: STAGES.index("Trainer")])
    run = workdir / "runs" / ended.result["run_id"]
    trained = json.loads((run / "artifacts.json").read_text())["Trainer"]["model_run"]
    history = json.loads((Path(trained) / "history.json").read_text())
    assert history["resumed_from"] >= 2
    assert len(history["epochs"]) == 6
    assert served(workdir) == ["1", "registry.json"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "Trainer"])
def test_a_run_killed_in_any_stage_goes_on(data, tmp_path, stage):
    workdir = tmp_path / "work"
    running = start("run", data, "--workdir", workdir, *SET)
    wait_for(workdir, running, begins(stage))
    kill_all(running)
    ended = safelight("run", data, "--workdir", workdir, *SET, "--json")
    assert ended.code == 0, ended.stderr
    assert set(STAGES[: STAGES.index(stage)]) <= ended.stages_in("cached")
    assert served(workdir) == ["1", "registry.json"]


def test_a_busy_workdir_says_who_holds_it_and_ctrl_c_stops_cleanly(data, tmp_path):
    workdir = tmp_path / "work"
    running = start("run", data, "--workdir", workdir, *SET)
    wait_for(workdir, running, begins("ImageExampleGen"))

    other = safelight("run", data, "--workdir", workdir, *SET)
    assert other.code == 5
    assert str(running.pid) in other.stderr and "--wait" in other.stderr

    children = psutil.Process(running.pid).children(recursive=True)
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "run the same command again" in stderr and "Traceback" not in stderr
    assert psutil.wait_procs(children, timeout=30)[1] == []
