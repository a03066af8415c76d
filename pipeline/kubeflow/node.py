"""A step that runs one node of the graph: TFX's executor between the launcher's ends."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tfx.dsl.components.base import base_beam_executor, base_executor
from tfx.orchestration.portable import outputs_utils
from tfx.types.artifact import Artifact
from tfx.utils import import_utils

from pipeline.errors import SafelightError
from pipeline.kubeflow import names, spans
from pipeline.kubeflow.artifacts import (
    ExecutorInput,
    to_metadata,
    to_tfx,
    write_output,
    write_parameter,
)
from pipeline.kubeflow.prepare import settle
from pipeline.kubeflow.record import Record
from pipeline.workdir import Workdir

_VERDICT = "verdict.json"
# Of a confusion matrix on the pages: one of 1,000 classes is larger than a message to the server
# of metadata may be (4 MiB), and nobody could read it. The report has it.
_MOST_CLASSES = 100
# Writes to what is served: one at a time, whatever else runs on the volume.
_EXCLUSIVE = ("Pusher", "VariantPusher")
# In the workdir's cache: the artifacts of spans, each made once.
_SPANS = "spans"


@dataclass(frozen=True)
class Node:
    """What the compiled step says of its node.

    `inputs` and `outputs` map keys to the Python classes of the artifacts, `sources` maps inputs
    (also those that are only kept for the report) to the node and output that they come from.
    """

    id: str
    executor: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    sources: Mapping[str, tuple[str, str]]


def run(node: Node, given: ExecutorInput, workdir: Workdir, record: Record) -> dict[str, Any]:
    """Runs the node's executor; returns the properties of its last output.

    Raises:
      SafelightError: an input is missing, or what the executor raises.
    """
    told = json.loads(given.parameters[names.PROPERTIES])
    outputs = {key: [to_tfx(given.outputs[key], path, False)] for key, path in node.outputs.items()}
    if names.IMPORTED in given.inputs:
        settle(given.inputs[names.IMPORTED].path)
    execute = partial(_execute, workdir, record, told["beam"])
    try:
        if "behind" in told:
            inputs = _of_spans(told, workdir, execute)
        else:
            inputs = {
                key: [to_tfx(_slot(given, key), path, True)] for key, path in node.inputs.items()
            }
        executor = told.get("executor", node.executor)
        execute(node.id, executor, inputs, outputs, told["properties"])
    except BaseException:
        keep_inputs(node, given, record)
        raise
    outputs_utils.tag_output_artifacts_with_version(outputs)
    if any(key.startswith(names.RECORDED) for key in node.sources):
        keep_inputs(node, given, record)
    for key, [artifact] in outputs.items():
        if key != "model":
            record.keep(node.id, key, Path(artifact.uri))
    metadata = {key: to_metadata(artifact) for key, [artifact] in outputs.items()}
    if names.BLESSED in given.output_parameters:
        metadata.update(_verdict(given, Path(outputs["blessing"][0].uri)))
    write_output(given, metadata)
    return _shown(metadata[list(outputs)[-1]])


def keep_inputs(node: Node, given: ExecutorInput, record: Record) -> None:
    """Keeps the step's inputs beside the run's record, also those of steps the cache answered."""
    for key, (source, output) in node.sources.items():
        if output != "model" and key in given.inputs:
            record.keep(source, output, given.inputs[key].path)


def _of_spans(
    told: Mapping[str, Any], workdir: Workdir, execute: spans.Execute
) -> dict[str, list[Artifact]]:
    """Returns the inputs of a node that joins spans: theirs, made first where they are new."""
    made = spans.make(told["behind"], workdir.cache / _SPANS, execute)
    return {
        key: [made[source, output] for source, output in sources]
        for key, sources in told["inputs"].items()
    }


def _execute(
    workdir: Workdir,
    record: Record,
    beam: list[str],
    node: str,
    executor: str,
    inputs: dict[str, list[Artifact]],
    outputs: dict[str, list[Artifact]],
    properties: dict[str, Any],
) -> None:
    executor_class = import_utils.import_class_by_path(executor)
    with tempfile.TemporaryDirectory(prefix="safelight-") as scratch, _alone(node, workdir):
        common = {
            "tmp_dir": scratch,
            "unique_id": node,
            "stateful_working_dir": scratch,
            "pipeline_run_id": record.run.root.name,
        }
        context: base_executor.BaseExecutor.Context
        if issubclass(executor_class, base_beam_executor.BaseBeamExecutor):
            context = base_beam_executor.BaseBeamExecutor.Context(beam_pipeline_args=beam, **common)
        else:
            context = base_executor.BaseExecutor.Context(extra_flags=beam, **common)
        executor_class(context).Do(inputs, outputs, properties)


def _alone(node: str, workdir: Workdir) -> AbstractContextManager[Any]:
    return workdir.lock(wait=True) if node in _EXCLUSIVE else nullcontext()


def _slot(given: ExecutorInput, key: str) -> Any:
    if key not in given.inputs:
        raise SafelightError(
            f"The step was given no input {key!r}; it has {', '.join(given.inputs) or 'none'}. "
            "Compile the pipeline again with the version of Safelight that is in the image."
        )
    return given.inputs[key]


def _verdict(given: ExecutorInput, blessing: Path) -> dict[str, dict[str, Any]]:
    """Tells the gate's verdict to the pages, and to the condition of the push."""
    verdict = json.loads((blessing / _VERDICT).read_text(encoding="utf-8"))
    write_parameter(given, names.BLESSED, "true" if verdict["blessed"] else "false")
    numbers = {key: value for key, value in verdict["metrics"].items() if value is not None}
    told = {names.METRICS: {**numbers, "test_examples": verdict["test_examples"]}}
    classes = list(verdict["per_class"])
    if len(classes) <= _MOST_CLASSES:
        told[names.CONFUSION] = {
            "confusionMatrix": {
                "annotationSpecs": [{"displayName": name} for name in classes],
                "rows": [{"row": row} for row in verdict["confusion"]],
            }
        }
    return told


def _shown(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if isinstance(value, (int, float, str))}
