"""The command line as a whole: its version, its help, and a word that it doesn't know."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline import cli, config, runs
from pipeline.errors import UsageError
from pipeline.retrain.ledger import Ledger
from pipeline.workdir import open_workdir
from tests import made, signals


def test_the_version_is_told():
    ended = CliRunner().invoke(cli.app, ["--version"])
    assert (ended.exit_code, ended.stdout) == (0, f"safelight {version('safelight')}\n")


@pytest.mark.parametrize("name", ["run", "why", "audit-labels", "explain", "retrain", "submit"])
def test_each_command_explains_itself(name):
    ended = CliRunner().invoke(cli.app, [name, "--help"])
    assert ended.exit_code == 0 and "Usage:" in ended.stdout


def test_help_names_the_shipped_profiles():
    told = CliRunner().invoke(cli.app, ["run", "--help"], env={"COLUMNS": "200"}).stdout
    assert all(name in told for name in config.profiles())


def test_an_unknown_command_is_a_mistake_of_usage():
    assert CliRunner().invoke(cli.app, ["rnu"]).exit_code == 2


def test_the_history_is_one_line_of_json(tmp_path):
    place = open_workdir(tmp_path / "work")
    reason = "[bold]:smile: " + "long " * 50
    for run_id in ("a", "b"):
        found = runs.RunDir(place.runs / run_id)
        found.root.mkdir(parents=True)
        found.request.write_text("{}")
        found.write_result(runs.Result(run_id, "failed", [reason]))
    ended = CliRunner().invoke(cli.app, ["history", "--workdir", str(place.root), "--json"])
    [line] = ended.stdout.splitlines()
    told = [(run["run_id"], run["reasons"]) for run in json.loads(line)["runs"]]
    assert told == [("a", [reason]), ("b", [reason])]


def test_the_history_names_runs_without_a_result(tmp_path):
    """One that was killed, or that works still."""
    place = open_workdir(tmp_path / "work")
    for run_id in ("a", "b"):
        found = runs.RunDir(place.runs / run_id)
        found.root.mkdir(parents=True)
        found.request.write_text("{}")
    found.write_result(runs.Result("b", "pushed", version=3))
    line = ["history", "--workdir", str(place.root)]
    told = json.loads(CliRunner().invoke(cli.app, [*line, "--json"]).stdout)
    assert ([run["run_id"] for run in told["runs"]], told["unfinished"]) == (["b"], ["a"])
    done = subprocess.run(
        [Path(sys.executable).parent / "safelight", *line],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "120"},
    )
    first, second = done.stdout.splitlines()[1:3]
    assert first.split()[:2] == ["a", "Unfinished"] and "run it again to go on" in first
    assert second.split() == ["b", "Pushed", "3"]


def test_the_history_as_json_has_what_was_decided_about_retraining(tmp_path):
    place = open_workdir(tmp_path / "work")
    Ledger(place.root / "retrain").add(1.0, "pin", version=2, by="ann", why="audit")
    ended = CliRunner().invoke(cli.app, ["history", "--workdir", str(place.root), "--json"])
    told = {"t": 1.0, "kind": "pin", "version": 2, "by": "ann", "why": "audit"}
    assert json.loads(ended.stdout) == {"runs": [], "unfinished": [], "retraining": [told]}


@pytest.mark.parametrize("below", ["", "work", "red/work"])
def test_a_workdir_inside_the_data_is_refused(tmp_path, below):
    """What is written there would be images of a further class, and bad files."""
    data = made.class_folders(tmp_path / "data", {"red": 4, "blue": 4})
    files = sorted(tmp_path.rglob("*"))
    (tmp_path / "link").symlink_to(data)
    ended = CliRunner().invoke(
        cli.app, ["run", str(data), "--workdir", str(tmp_path / "link" / below)]
    )
    assert isinstance(ended.exception, UsageError)
    assert "lies in the data" in str(ended.exception)
    assert f"--workdir {tmp_path / 'work'}" in str(ended.exception)
    (tmp_path / "link").unlink()
    assert sorted(tmp_path.rglob("*")) == files


def test_a_damaged_result_hides_no_other_run(tmp_path):
    place = open_workdir(tmp_path / "work")
    for run_id in ("a", "b", "c"):
        found = runs.RunDir(place.runs / run_id)
        found.root.mkdir(parents=True)
        found.request.write_text("{}")
        found.write_result(runs.Result(run_id, "failed"))
    (place.runs / "a" / "result.json").write_text('{"run')
    (place.runs / "b" / "result.json").write_text('{"run_id": "b"}')
    line = ["history", "--workdir", str(place.root), "--json"]
    ended = CliRunner().invoke(cli.app, line, env={"COLUMNS": "400"})
    assert [run["run_id"] for run in json.loads(ended.stdout)["runs"]] == ["c"]
    assert ended.exit_code == 0


# The command on a disk that is full: a file may have no bytes.
FULL = """
import resource, signal, sys
from pipeline import cli
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
cli.main()
"""


def test_a_full_disk_is_no_traceback(tmp_path):
    made.class_folders(tmp_path / "data", {"red": 4, "blue": 4})
    place = open_workdir(tmp_path / "work")
    line = ["run", str(tmp_path / "data"), "--workdir", str(place.root), "--json"]
    with subprocess.Popen(
        [sys.executable, "-c", FULL, *line], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        stdout, stderr = running.communicate(timeout=60)
    assert running.returncode == 1
    [told] = stdout.splitlines()
    assert json.loads(told)["outcome"] == "failed"
    assert "A file can't be read or written" in json.loads(told)["reasons"][0]
    assert b"Traceback" not in stderr


WAITING = """
from pipeline import cli
from pipeline.runners import local
import time
def execute(*_, **__):
    print("begun", flush=True)
    time.sleep(60)
local.execute = execute
cli.main()
"""


def test_ctrl_c_leaves_a_line_of_json(tmp_path):
    made.class_folders(tmp_path / "data", {"red": 4, "blue": 4})
    line = ["run", str(tmp_path / "data"), "--workdir", str(tmp_path / "work"), "--json"]
    with subprocess.Popen(
        [sys.executable, "-c", WAITING, *line],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=signals.heeded,
    ) as running:
        assert running.stdout is not None and running.stdout.readline() == b"begun\n"
        running.send_signal(signal.SIGINT)
        stdout, stderr = running.communicate(timeout=60)
    assert running.returncode == 130 and b"Stopped." in stderr
    [told] = stdout.splitlines()
    assert json.loads(told)["outcome"] == "failed"


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "Free some space"), (errno.EACCES, "permissions"), (errno.EROFS, "writing")],
)
def test_what_the_disk_refuses_is_said_in_a_line(monkeypatch, capsys, number, advice):
    def refused():
        raise OSError(number, os.strerror(number), "/a/[file]")

    monkeypatch.setattr(cli, "app", refused)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 1
    assert said.startswith("error: /a/[file] can't be read or written") and advice in said


def test_an_error_of_ours_keeps_its_traceback(monkeypatch):
    def broken():
        raise FileNotFoundError(errno.ENOENT, "gone")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(FileNotFoundError):
        cli.main()


@pytest.mark.parametrize(
    ("line", "option", "number"),
    [
        ("serve --workdir work", "--port", "70000"),
        ("serve --workdir work", "--grpc-port", "-1"),
        ("tensorboard --workdir work", "--port", "70000"),
        ("request image.png --grpc 127.0.0.1:1", "--version", "99999999999999999999"),
    ],
)
def test_a_number_that_can_not_be_is_a_mistake_of_usage(line, option, number):
    ended = CliRunner().invoke(cli.app, [*line.split(), option, number], env={"COLUMNS": "200"})
    assert ended.exit_code == 2 and f"Invalid value for '{option}'" in ended.stderr
