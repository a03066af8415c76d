"""What is settled before a run's worker starts: choices from the data, room on the disk."""

from __future__ import annotations

import shutil
from collections import namedtuple
from types import SimpleNamespace

import pytest

from pipeline import config as configuration
from pipeline.errors import ConfigError, SafelightError
from pipeline.ingest.scan import scan
from pipeline.runners import local, worker
from pipeline.workdir import open_workdir
from tests import made

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def colours(tmp_path):
    return made.class_folders(tmp_path / "colours", {"red": 4, "blue": 4})


def resolved(data, *overrides):
    effective = configuration.load(None, overrides)
    return local.resolve(effective.config, scan(str(data), effective.config.ingest))


def test_what_is_left_open_is_chosen_from_the_data_and_said(colours):
    config, said = resolved(colours)
    assert (config.transform.image_size, config.transform.channels) == (32, 3)
    assert config.train.preset == "cifar10-cnn" and config.train.epochs == 10
    assert config.train.batch_size == 32
    assert "train.preset = cifar10-cnn" in said and len(said) == 5


def test_grey_digits_get_the_digits_network(tmp_path):
    data = made.class_folders(tmp_path / "d", {"red": 3, "white": 3}, size=(28, 28), grey=True)
    config, _ = resolved(data)
    assert (config.transform.image_size, config.transform.channels) == (28, 1)
    assert config.train.preset == "mnist-cnn"


def test_what_is_given_is_not_chosen(colours):
    config, said = resolved(
        colours, "transform.image_size=48", "train.preset=image64-cnn", "train.epochs=2"
    )
    assert config.transform.image_size == 48 and config.train.preset == "image64-cnn"
    assert said == ["transform.channels = 3", "train.batch_size = 32"]


def test_without_a_readable_header_the_size_has_to_be_given(colours):
    for path in colours.rglob("*.png"):
        path.write_bytes(b"not an image")
    with pytest.raises(ConfigError, match=r"--set transform\.image_size"):
        resolved(colours)
    config, _ = resolved(colours, "transform.image_size=32", "transform.channels=3")
    assert config.transform.image_size == 32


def test_too_little_disk_is_said_before_anything_starts(colours, tmp_path, monkeypatch):
    workdir = open_workdir(tmp_path / "work")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12 - 1000, 1000))
    effective = configuration.load()
    found = scan(str(colours), effective.config.ingest)
    with pytest.raises(SafelightError, match="Too little disk.*Free some space"):
        local.prepare(workdir, effective, found)
    assert not workdir.runs.exists()


def test_a_request_holds_all_that_the_worker_needs(colours, tmp_path):
    workdir = open_workdir(tmp_path / "work")
    effective = configuration.load("smoke", ["train.epochs=3"])
    found = scan(str(colours), effective.config.ingest)
    request = local.prepare(workdir, effective, found).read_request()
    assert request.data == str(colours) and request.scan["files"] == 8
    assert request.config["train"]["epochs"] == 3
    assert request.origins["train.epochs"] == "--set train.epochs"
    assert request.inputs == {
        "known_classes": [],
        "known_columns": {},
        "champion": None,
        "champion_uri": "",
        "published": False,
    }
    assert set(request.lineage) == {"data", "config", "code"}


@pytest.mark.parametrize(("by", "version", "place"), [("", 2, "/s/2"), ("earlier", None, None)])
def test_a_failure_behind_the_push_does_not_deny_it(
    colours, tmp_path, monkeypatch, by, version, place
):
    """A run that failed tells the version that it pushed, and no earlier run's."""
    workdir = open_workdir(tmp_path / "work")
    effective = configuration.load()
    run = local.prepare(workdir, effective, scan(str(colours), effective.config.ingest))
    properties = {
        "pushed_version": "2",
        "pushed_destination": "/s/2",
        "published_by": by or run.root.name,
    }

    def node(name):
        if name == "Explainer":
            raise SafelightError("no disk")
        return SimpleNamespace(uris={}, properties=properties, cached=False)

    def nodes(execution):
        for name in ("Pusher", "Explainer"):
            execution._run_node(SimpleNamespace(run=node, config=effective.config), name)

    monkeypatch.setattr(worker.Execution, "_run_nodes", nodes)
    result = worker.Execution(workdir, run).run_all()
    assert (result.outcome, result.reasons) == ("failed", ["no disk"])
    assert [stage.state for stage in result.stages] == ["complete", "failed"]
    assert (result.version, result.pushed_to) == (version, place)
