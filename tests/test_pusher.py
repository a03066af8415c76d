"""The pusher: what is blessed is published once, and what is not stays out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tfx.dsl.components.base.base_executor import BaseExecutor
from tfx.proto import pusher_pb2
from tfx.types import Channel, standard_artifacts
from tfx.utils import json_utils, proto_utils

from components.versioned_pusher import Executor, versioned_pusher
from pipeline import registry
from pipeline.errors import NotBlessed
from tests import exports
from tests.test_registry import export

LINEAGE = {"data": "d", "config": "c", "code": "k", "known_classes": ["a"], "champion": None}


@pytest.fixture
def model(tmp_path):
    export(tmp_path / "artifact" / "Format-Serving")
    return exports.artifact(standard_artifacts.Model, tmp_path / "artifact")


def push(model, root: Path, run_id: str = "r1", blessed: int = 1, **lineage):
    """Runs the executor as TFX does; returns the PushedModel."""
    blessing = exports.artifact(standard_artifacts.ModelBlessing, root / "blessing")
    Path(blessing.uri).mkdir(parents=True, exist_ok=True)
    verdict = {"metrics": {"accuracy": 0.9}, "champion": {"verdict": "undecided"}}
    (root / "blessing" / "verdict.json").write_text(json.dumps(verdict))
    blessing.set_int_custom_property("blessed", blessed)
    pushed = exports.artifact(standard_artifacts.PushedModel, root / "pushed")
    node = versioned_pusher(
        Channel(type=standard_artifacts.Model),
        Channel(type=standard_artifacts.ModelBlessing),
        str(root / "serving" / "model"),
        {"lineage": {**LINEAGE, **lineage}, "code": "x"},
    )
    assert node.id == "Pusher"
    destination = node.exec_properties["push_destination"]
    if not isinstance(destination, str):
        assert isinstance(destination, pusher_pb2.PushDestination)
        destination = proto_utils.proto_to_json(destination)
    properties = {**node.exec_properties, "push_destination": destination}
    context = BaseExecutor.Context(pipeline_run_id=run_id)
    Executor(context).Do(
        {"model": [model], "model_blessing": [blessing]}, {"pushed_model": [pushed]}, properties
    )
    return pushed


def test_blessed_model_is_published(model, tmp_path):
    pushed = push(model, tmp_path)
    serving = tmp_path / "serving" / "model"
    assert pushed.get_int_custom_property("pushed") == 1
    assert pushed.get_string_custom_property("pushed_destination") == str(serving / "1")
    assert pushed.get_string_custom_property("pushed_version") == "1"
    assert pushed.get_string_custom_property("published_by") == "r1"
    assert (serving / "1" / "saved_model.pb").read_bytes() == b"graph"
    champion = registry.open(serving).champion()
    assert champion is not None
    assert champion.inputs == {"known_classes": ["a"], "champion": None}
    assert (champion.run_id, champion.data, champion.metrics) == ("r1", "d", {"accuracy": 0.9})
    assert champion.model_uri == model.uri


def test_who_pushed_and_why_not(model, tmp_path):
    push(model, tmp_path, by="safelight retrain: 2 new spans")
    opened = registry.open(tmp_path / "serving" / "model")
    champion = opened.champion()
    assert champion is not None and champion.by == "safelight retrain: 2 new spans"
    opened.pin("ann", "audit")
    with pytest.raises(NotBlessed, match="pinned"):
        push(model, tmp_path, run_id="r2", data="other")
    assert registry.read(opened.root).current == 1


def test_not_blessed_is_not_published(model, tmp_path):
    pushed = push(model, tmp_path, blessed=0)
    assert pushed.get_int_custom_property("pushed") == 0
    assert not (tmp_path / "serving").exists()


def test_killed_before_it_was_recorded(model, tmp_path):
    push(model, tmp_path)
    again = push(model, tmp_path, run_id="r2")
    assert again.get_string_custom_property("pushed_version") == "1"
    assert again.get_string_custom_property("published_by") == "r1"
    assert not (tmp_path / "serving" / "model" / "2").exists()


def test_other_lineage_is_another_version(model, tmp_path):
    push(model, tmp_path)
    pushed = push(model, tmp_path, run_id="r2", data="d2", champion=1)
    assert pushed.get_string_custom_property("pushed_version") == "2"
    champion = registry.open(tmp_path / "serving" / "model").champion()
    assert champion is not None
    assert champion.why == "within the margin of version 1 by its estimate"


def test_what_is_served_changed_since_the_run_began(model, tmp_path):
    """Two runs that version 1 judged: the second was never compared with the first one's model."""
    push(model, tmp_path, served=0)
    push(model, tmp_path, run_id="A", data="d2", champion=1, served=1)
    with pytest.raises(NotBlessed, match="version 1 was served; now version 2 is.*Run again"):
        push(model, tmp_path, run_id="B", data="d3", champion=1, served=1)
    with pytest.raises(NotBlessed, match="nothing was served; now version 2 is"):
        push(model, tmp_path, run_id="B", data="d3", served=0)
    assert registry.read(tmp_path / "serving" / "model").current == 2
    # The first one's step, tried again, finds its own version.
    again = push(model, tmp_path, run_id="A", data="d2", champion=1, served=1)
    assert again.get_string_custom_property("pushed_version") == "2"
    # An older or no version may judge, as asked, as long as what is served stays.
    pushed = push(model, tmp_path, run_id="B", data="d3", champion=None, served=2)
    assert pushed.get_string_custom_property("pushed_version") == "3"


def test_json_of_the_configuration_is_what_tfx_makes(model, tmp_path):
    node = versioned_pusher(
        Channel(type=standard_artifacts.Model),
        Channel(type=standard_artifacts.ModelBlessing),
        str(tmp_path),
        {"lineage": LINEAGE, "code": "x"},
    )
    assert json_utils.loads(node.exec_properties["custom_config"])["lineage"] == LINEAGE
