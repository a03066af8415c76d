"""The graph of a window: spans with nodes of their own, joined under a folder's names."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tfx.orchestration.pipeline import Pipeline

from pipeline import config, graph
from pipeline.retrain.windows import Member
from tests.e2e.command import STAGES


def built(spans: tuple[dict[str, Any], ...] = (), champion: str = "", **options: Any) -> Pipeline:
    given = graph.Given(
        data="/data",
        known_classes=("b", "a"),
        champion_uri=champion,
        lineage={
            "data": "whole",
            "config": "c",
            "code": "k",
            "known_classes": [],
            "champion": None,
        },
        artifacts="/work/artifacts",
        checkpoints="/work/checkpoints",
        serving_dir="/work/serving/model",
        spans=spans,
    )
    keys = {"transform.image_size": 32, "transform.channels": 3, **options}
    loaded = config.load(overrides=[f"{key}={value}" for key, value in keys.items()])
    return graph.build(loaded.config, given)


def span(name: str, **role: bool) -> dict[str, Any]:
    return Member(name, f"/data/{name}", f"f-{name}", **role).to_dict()


WINDOW = (span("span-1-r1", judged=False), span("span-2-r3"), span("golden", golden=True))


def test_spans_are_read_and_counted_by_nodes_of_their_own():
    ids = [node.id for node in built(WINDOW).components]
    names = [one["name"] for one in WINDOW]
    assert {one for one in ids if "." in one} == {
        f"{kind}.{name}" for kind in ("ImageExampleGen", "StatisticsGen") for name in names
    }
    assert [one for one in ids if "." not in one] == [node.id for node in built().components]
    assert [node.id for node in built().components] == STAGES


def test_another_champion_re_reads_no_span():
    nodes = {node.id: node for node in built(WINDOW).components}
    read = nodes["ImageExampleGen.span-2-r3"].exec_properties
    assert (read["data"], read["fingerprint"]) == ("/data/span-2-r3", "f-span-2-r3")
    assert read["known_classes"] == "[]"
    joined = nodes["ImageExampleGen"].exec_properties
    assert json.loads(joined["known_classes"]) == ["b", "a"]
    assert joined["fingerprint"] == "whole"
    assert [one["golden"] for one in json.loads(joined["spans"])] == [False, False, True]


def test_the_golden_set_is_not_counted_into_what_trains():
    [node] = [node for node in built(WINDOW).components if node.id == "StatisticsGen"]
    producers = {one.id for one in node.upstream_nodes}
    assert producers == {"StatisticsGen.span-1-r1", "StatisticsGen.span-2-r3"}


@pytest.mark.parametrize(
    ("spans", "start", "warm"),
    [
        (WINDOW, "warm", True),
        (WINDOW, "both", True),
        (WINDOW, "cold", False),
        ((), "warm", False),
        ((), "both", False),
    ],
)
def test_a_warm_start_is_for_windows_and_can_be_left_out(spans, start, warm):
    nodes = built(spans, champion="/work/serving/model/3", **{"retrain.start": start}).components
    [trainer] = [node for node in nodes if node.id == "Trainer"]
    custom = json.loads(trainer.exec_properties["custom_config"])
    assert custom.get("warm_start") == ("/work/serving/model/3" if warm else None)
    assert custom.get("also_cold", False) == (warm and start == "both")
