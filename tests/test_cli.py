"""The command line as a whole: its version, its help, and a word that it doesn't know."""

from __future__ import annotations

import json
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from pipeline import cli, config, runs
from pipeline.workdir import open_workdir


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
    told = [(run["run_id"], run["reasons"]) for run in json.loads(line)]
    assert told == [("a", [reason]), ("b", [reason])]


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
