"""The command line as a whole: its version, its help, and a word that it doesn't know."""

from __future__ import annotations

from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from pipeline import cli, config


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
