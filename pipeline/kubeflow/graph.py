"""The graph's nodes for Kubeflow: what is compiled, and what a run's `prepare` resolves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tfx.dsl.components.base.base_node import BaseNode

from pipeline import graph
from pipeline.config import Config
from pipeline.graph import Given
from pipeline.kubeflow import spans

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


def properties(node: BaseNode, config: Config, nodes: Sequence[BaseNode]) -> str:
    """Returns a node's execution properties and Beam's options as JSON, for its step.

    Args:
      node: of the graph of this run.
      config: resolved.
      nodes: of the same graph; those of spans stand behind the ones that join them.
    """
    told = {
        "properties": spans.plain(node),
        "beam": graph.beam_args(config),
        **spans.behind(node, nodes),
    }
    return json.dumps(told, sort_keys=True)
