"""The user's own network: where it is found, what a change of it does, and how it is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import config as configuration
from pipeline import lineage, own_model
from pipeline.config import Train
from pipeline.errors import ConfigError
from pipeline.runners import local
from pipeline.runs import Request, RunDir

pytestmark = pytest.mark.current

NET = "import blocks\n\n\ndef build(pixels):\n    return blocks.double(pixels)\n"
ROOT = Path(__file__).parent.parent


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a module, a package and a neighbour, in which the command was started."""
    (tmp_path / "own_nets_a.py").write_text("def build(pixels):\n    return pixels\n\nWIDTH = 3\n")
    package = tmp_path / "own_nets_b" / "deep"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "__init__.py").write_text("")
    (package / "wide.py").write_text("def build(pixels):\n    return pixels\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_module_is_found_without_importing_it(here):
    assert own_model.source("own_nets_a:build") == here / "own_nets_a.py"
    # Its package raises when it is imported.
    assert own_model.source("own_nets_b.deep.wide:build").name == "wide.py"


def test_a_function_is_loaded(here):
    assert own_model.load("own_nets_a:build")(5) == 5


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("own_nets_z:build", "no module 'own_nets_z'"),
        ("own_nets_b.deep.thin:build", "no module 'own_nets_b.deep.thin'"),
        ("own_nets_a:biuld", "Did you mean 'build'"),
        ("own_nets_a:WIDTH", "no function 'WIDTH'"),
        ("own_nets_b.deep.wide:build", "failed with RuntimeError: imported"),
        ("math:sqrt", "expected one file of Python"),
        ("sys:exit", "is built into Python; expected one file of Python"),
    ],
)
def test_what_is_not_there_is_named(here, name, words):
    with pytest.raises(ConfigError) as caught:
        own_model.load(name)
    assert words in str(caught.value)


def test_a_change_of_the_source_is_a_change_of_trainer_and_tuner(here):
    train = Train(model="own_nets_a:build")
    before, without = lineage.code(train), lineage.code(Train())
    (here / "own_nets_a.py").write_text("def build(pixels):\n    return pixels + 1\n")
    after = lineage.code(train)
    assert {node for node in before if before[node] != after[node]} == {"Tuner", "Trainer"}
    assert {node for node in before if before[node] != without[node]} == {"Tuner", "Trainer"}


def test_a_child_started_elsewhere_finds_the_module_and_its_neighbours(here):
    (here / "own_nets_c.py").write_text(NET)
    (here / "blocks.py").write_text("def double(x):\n    return 2 * x\n")
    assert own_model.python_path("") == {}
    environment = {**os.environ, **own_model.python_path("own_nets_c:build")}
    code = "from pipeline import own_model; print(own_model.load('own_nets_c:build')(21))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "42", done.stderr


def test_the_record_keeps_the_sources_that_a_search_may_build(here):
    config = configuration.load(
        overrides=[
            "tune.algorithm=random",
            'tune.space.model=["own_nets_a:build", "own_nets_b.deep.wide:build"]',
        ]
    ).config
    run = RunDir(here / "run")
    run.root.mkdir()
    asked = Request("r", "", "d", config.model_dump(mode="json"), {}, [], {}, {}, {}, {})
    local.keep_own_models(run, asked)
    assert sorted(path.name for path in run.root.iterdir()) == ["own_nets_a.py", "wide.py"]
