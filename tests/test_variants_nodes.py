"""VariantMaker and VariantPusher as TFX runs them, where there is nothing to make or to publish."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tfx.types import standard_artifacts as standard

from components import artifacts
from components.variant_maker import VariantMaker
from components.variant_pusher import VariantPusher
from pipeline import config, graph
from tests import exports
from tests.test_registry import export


def nodes(*overrides: str) -> list[str]:
    given = graph.Given(
        data="data",
        known_classes=(),
        champion_uri="",
        lineage={"data": "d", "known_classes": [], "champion": None},
        artifacts="artifacts",
        checkpoints="checkpoints",
        serving_dir="work/serving/model",
    )
    assert given.exports_dir == "work/exports"
    effective = config.load(None, ["transform.image_size=16", "transform.channels=3", *overrides])
    return [node.id for node in graph.build(effective.config, given).components]


def test_a_node_that_is_off_is_not_there():
    assert not {"VariantMaker", "VariantPusher"} & set(nodes())
    on = nodes("variants.names=pruned")
    assert on.index("BlessingGate") < on.index("VariantMaker")
    assert on[-1] == "VariantPusher"


def test_nothing_is_made_of_a_model_that_is_not_blessed(tmp_path):
    blessing = exports.artifact(standard.ModelBlessing, tmp_path / "blessing")
    blessing.set_int_custom_property("blessed", 0)
    VariantMaker.test_call(
        examples=exports.artifact(standard.Examples, tmp_path),
        model=exports.artifact(standard.Model, tmp_path),
        transform_graph=exports.artifact(standard.TransformGraph, tmp_path),
        schema=exports.artifact(standard.Schema, tmp_path),
        predictions=exports.artifact(artifacts.Predictions, tmp_path),
        blessing=blessing,
        variants=exports.artifact(artifacts.Variants, tmp_path / "variants"),
        options="{}",
        code="",
    )
    found = json.loads((tmp_path / "variants" / "variants.json").read_text())
    assert found["variants"] == {} and "not blessed" in found["message"]


@pytest.mark.parametrize("pushed", [0, 1])
def test_variants_go_where_the_model_went(pushed, tmp_path):
    served = tmp_path / "serving" / "model" / "7"
    export(served)
    folder = tmp_path / "variants"
    (folder / "pruned").mkdir(parents=True)
    (folder / "pruned" / "saved_model.pb").write_bytes(b"graph")
    entry = {"blessed": True, "accuracy": 0.9, "bytes": 5}
    (folder / "variants.json").write_text(json.dumps({"variants": {"pruned": entry}}))
    model = exports.artifact(standard.PushedModel, tmp_path / "pushed")
    model.set_int_custom_property("pushed", pushed)
    model.set_string_custom_property("pushed_destination", str(served))
    model.set_string_custom_property("pushed_version", "7")
    model.set_string_custom_property("published_by", "r1")
    VariantPusher.test_call(
        pushed_model=model,
        variants=exports.artifact(artifacts.Variants, folder),
        exports=exports.artifact(artifacts.Exports, tmp_path / "out"),
        exports_dir=str(tmp_path / "exports"),
        code="",
    )
    found = json.loads((tmp_path / "out" / "exports.json").read_text())
    place = tmp_path / "exports" / "pruned" / "7"
    assert found["exports"] == ({"pruned": str(place)} if pushed else {})
    assert Path(place, "saved_model.pb").exists() == bool(pushed)
