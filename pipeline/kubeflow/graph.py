"""The graph's nodes for Kubeflow: what is compiled, and what a run's `prepare` resolves."""

from __future__ import annotations

import json
from typing import Any

from tfx.dsl.components.base.base_node import BaseNode
from tfx.utils import json_utils

from pipeline import graph
from pipeline.config import Config
from pipeline.graph import Given

# Stands where a run will give a value: the compiled specification holds none of the properties.
_UNKNOWN: dict[str, Any] = {
    "data": "",
    "config": "",
    "code": "",
    "known_classes": [],
    "champion": None,
}


def nodes(config: Config, given: Given | None = None) -> list[BaseNode]:
    """Returns the graph's nodes in the order that the data flows; for compiling without `given`."""
    if given is None:
        given = Given(
            data="",
            known_classes=(),
            champion_uri="",
            lineage=_UNKNOWN,
            artifacts="unused",
            checkpoints="",
            serving_dir="",
        )
    return list(graph.build(config, given).components)


def properties(node: BaseNode, config: Config) -> str:
    """Returns a node's execution properties and Beam's options as JSON, for its step.

    They are what ML Metadata would hold: protos and lists are JSON in strings already.
    """
    values = {key: value for key, value in node.exec_properties.items() if value is not None}
    plain = {
        key: value if isinstance(value, (int, float, str)) else json_utils.dumps(value)
        for key, value in values.items()
    }
    return json.dumps({"properties": plain, "beam": graph.beam_args(config)}, sort_keys=True)
