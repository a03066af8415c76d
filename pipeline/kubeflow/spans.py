"""What stands behind the steps that join a window's spans.

A compiled package has a fixed graph, and a window has as many spans as there are. So the spans'
own nodes (ImageExampleGen.<span>, StatisticsGen.<span>) are no tasks here. They run inside the
tasks that join them, each span once: what they wrote stays in a folder on the workdir's volume,
under a key of their executor, their properties and their inputs.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfx.dsl.components.base.base_node import BaseNode
from tfx.types import channel_utils
from tfx.types.artifact import Artifact
from tfx.utils import json_utils, name_utils

from pipeline import events, fingerprint
from pipeline.kubeflow.artifacts import properties_from, properties_of, typed

# Part of the folder's name: a change of what lies in it makes everything anew.
_FORMAT = 1
_PROPERTIES = "properties.json"

Made = dict[tuple[str, str], Artifact]
Execute = Callable[[str, str, dict[str, list[Artifact]], dict[str, list[Artifact]], Any], None]


def behind(node: BaseNode, nodes: Sequence[BaseNode]) -> dict[str, Any]:
    """Returns what a step has to run before its own node, as JSON-serializable values.

    Args:
      node: of a window's graph; in any other graph nothing stands behind a node.
      nodes: of the same graph, in the order that the data flows.

    Returns:
      Nothing, or `executor` and `inputs` of the node itself, and `behind`: the spans' nodes that
      it needs, in order.
    """
    by_id = {one.id: one for one in nodes}
    needed: list[str] = []

    def visit(one: BaseNode) -> None:
        for sources in _sources(one).values():
            for source, _ in sources:
                if of_a_span(source) and source not in needed:
                    visit(by_id[source])
                    needed.append(source)

    if of_a_span(node.id) or not any(
        of_a_span(source) for sources in _sources(node).values() for source, _ in sources
    ):
        return {}
    visit(node)
    return {
        "executor": name_utils.get_full_name(node.executor_spec.executor_class),
        "inputs": _sources(node),
        "behind": _described([by_id[one] for one in needed]),
    }


def make(told: Sequence[Mapping[str, Any]], folder: Path, execute: Execute) -> Made:
    """Returns the artifacts of the spans' nodes; what is in the folder is not made again.

    Args:
      told: `behind` of a step's properties.
      folder: on the volume; deleting it costs only time.
      execute: runs an executor: (node, executor, inputs, outputs, properties).
    """
    made: Made = {}
    keys: dict[str, str] = {}
    for node in _whole(told):
        given = {key: [made[source, output] for source, output in sources]
                 for key, sources in node["inputs"].items()}  # fmt: skip
        upstream = [keys[source] for sources in node["inputs"].values() for source, _ in sources]
        parts = [_FORMAT, node["id"], node["executor"], node["properties"], upstream]
        keys[node["id"]] = fingerprint.of_value(parts)
        place = folder / keys[node["id"]]
        if not place.is_dir():
            _make(node, place, given, execute)
            events.note(f"{node['id']}: made, and kept in {place}.")
        for output, path in node["outputs"].items():
            made[node["id"], output] = _read(place, node["id"], output, path)
    return made


def _make(
    node: Mapping[str, Any], place: Path, given: dict[str, list[Artifact]], execute: Execute
) -> None:
    """Makes a node's folder beside its place, then renames: whoever sees it sees all of it."""
    incoming = place.with_name(f".{place.name}.{os.uname().nodename}-{os.getpid()}")
    shutil.rmtree(incoming, ignore_errors=True)
    outputs = {}
    for output, path in node["outputs"].items():
        artifact = typed(path, _folder(incoming, node["id"], output))
        Path(artifact.uri).mkdir(parents=True)
        outputs[output] = [artifact]
    try:
        execute(node["id"], node["executor"], given, outputs, node["properties"])
        kept = {output: properties_of(artifact) for output, [artifact] in outputs.items()}
        (incoming / _PROPERTIES).write_text(json.dumps(kept, sort_keys=True), encoding="utf-8")
    except BaseException:
        shutil.rmtree(incoming, ignore_errors=True)
        raise
    try:
        incoming.rename(place)
    except OSError:
        shutil.rmtree(incoming, ignore_errors=True)
        # Another step may have made the same in the meantime.
        if not place.is_dir():
            raise


def _read(place: Path, node: str, output: str, path: str) -> Artifact:
    artifact = typed(path, _folder(place, node, output))
    kept = json.loads((place / _PROPERTIES).read_text(encoding="utf-8"))
    properties_from(kept[output], artifact)
    return artifact


def _folder(place: Path, node: str, output: str) -> Path:
    # As TFX lays artifacts out: the joining nodes find a span by the third part from the end.
    return place / node / output / "1"


def _described(nodes: Sequence[BaseNode]) -> list[dict[str, Any]]:
    """Describes nodes; one like an earlier one only by what differs.

    A step's input is one argument of its launcher, and Linux takes no longer one than 128 KiB.
    """
    path = name_utils.get_full_name
    found: list[dict[str, Any]] = []
    first: dict[str, tuple[str, dict[str, Any]]] = {}
    for node in nodes:
        executor, properties = path(node.executor_spec.executor_class), plain(node)
        told: dict[str, Any] = {"id": node.id, "inputs": _sources(node), "properties": properties}
        if executor in first:
            like, same = first[executor]
            differs = {key: one for key, one in properties.items() if same.get(key) != one}
            told.update(like=like, properties=differs)
        else:
            first[executor] = node.id, properties
            outputs = {key: path(channel.type) for key, channel in node.outputs.items()}
            told.update(executor=executor, outputs=outputs)
        found.append(told)
    return found


def _whole(told: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields the nodes that `_described` told, each with all that it has."""
    known: dict[str, dict[str, Any]] = {}
    for one in told:
        like = known.get(one.get("like", ""), {})
        properties = {**like.get("properties", {}), **one["properties"]}
        known[one["id"]] = {**like, **one, "properties": properties}
        yield known[one["id"]]


def plain(node: BaseNode) -> dict[str, Any]:
    """Returns a node's execution properties as ML Metadata would hold them.

    Protos and lists are JSON in strings already.
    """
    values = {key: value for key, value in node.exec_properties.items() if value is not None}
    return {
        key: value if isinstance(value, (int, float, str)) else json_utils.dumps(value)
        for key, value in values.items()
    }


def _sources(node: BaseNode) -> dict[str, list[tuple[str, str]]]:
    """Returns {input: [(producing node, its output)]}."""
    return {
        key: [
            (one.producer_component_id, one.output_key)
            for one in channel_utils.get_individual_channels(channel)
        ]
        for key, channel in node.inputs.items()
    }


def of_a_span(node: str) -> bool:
    """Says whether a node, by its id, reads or counts one span of a window."""
    return "." in node
