"""Runs the compiled graph's nodes one at a time, as TFX's LocalDagRunner does.

LocalDagRunner runs the whole graph in one call and says nothing on the way. Here each node is
launched by TFX's own Launcher, so that progress, times and cache hits can be told.
"""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf
from ml_metadata.proto import metadata_store_pb2
from tfx.dsl.compiler import compiler, constants
from tfx.orchestration import metadata
from tfx.orchestration.local import runner_utils
from tfx.orchestration.portable import launcher, runtime_parameter_utils
from tfx.orchestration.portable.mlmd import execution_lib
from tfx.proto.orchestration import pipeline_pb2

from pipeline import graph
from pipeline.config import Config
from pipeline.errors import SafelightError
from pipeline.runners.metadata import connection_config
from pipeline.runs import Request
from pipeline.workdir import Workdir


@dataclass(frozen=True)
class Done:
    """How a node ended: its outputs' URIs, its last output's custom properties, cached or not."""

    uris: dict[str, str]
    properties: dict[str, str]
    cached: bool


class NodeRunner:
    """The graph of one request, ready to be run node by node in the order of `names`."""

    def __init__(self, config: Config, request: Request, workdir: Workdir) -> None:
        given = graph.Given(
            data=request.data,
            spans=tuple(request.spans),
            known_classes=tuple(request.inputs["known_classes"]),
            known_columns=request.inputs.get("known_columns", {}),
            champion_uri=request.inputs["champion_uri"],
            lineage={
                **request.lineage,
                "known_classes": request.inputs["known_classes"],
                "known_columns": request.inputs.get("known_columns", {}),
                "champion": request.inputs["champion"],
            },
            artifacts=str(workdir.artifacts),
            checkpoints=str(workdir.checkpoints),
            serving_dir=str(workdir.serving(config.push.model_name)),
        )
        self.config = config
        # Trainer's child takes the accelerators; nothing in this process may.
        tf.config.set_visible_devices([], "GPU")
        self._connection = connection_config(config.metadata.url, workdir.metadata)
        self._ir = compiler.Compiler().compile(graph.build(config, given))
        runtime_parameter_utils.substitute_runtime_parameter(
            self._ir, {constants.PIPELINE_RUN_ID_PARAMETER_NAME: request.run_id}
        )
        if not request.inputs["published"]:
            # ML Metadata decides nothing about what is served: a push that it remembers may have
            # been rolled back or deleted since, so only the registry can say that it still holds.
            _never_cached(self._ir, "Pusher")
        self._deployment = runner_utils.extract_local_deployment_config(self._ir)
        self._nodes = {
            node.pipeline_node.node_info.id: node.pipeline_node for node in self._ir.nodes
        }

    @property
    def names(self) -> list[str]:
        """Returns the nodes' ids in topological order."""
        return list(self._nodes)

    def run(self, name: str) -> Done:
        """Runs one node, or takes its outputs from the cache.

        Raises:
          SafelightError: from the node's executor, or because its inputs are missing.
        """
        node_launcher = launcher.Launcher(
            pipeline_node=self._nodes[name],
            mlmd_connection=metadata.Metadata(self._connection),
            pipeline_info=self._ir.pipeline_info,
            pipeline_runtime_spec=self._ir.runtime_spec,
            executor_spec=runner_utils.extract_executor_spec(self._deployment, name),
            custom_driver_spec=runner_utils.extract_custom_driver_spec(self._deployment, name),
        )
        info = node_launcher.launch()
        if info is None or info.execution_id is None:
            raise SafelightError(f"{name} was not run: its inputs are missing.")
        return self._outputs(name, info.execution_id)

    def _outputs(self, name: str, execution_id: int) -> Done:
        with metadata.Metadata(self._connection) as handle:
            [execution] = handle.store.get_executions_by_id([execution_id])
            outputs = execution_lib.get_output_artifacts(handle, execution_id)
        states = metadata_store_pb2.Execution
        if execution.last_known_state not in (states.COMPLETE, states.CACHED):
            raise SafelightError(f"{name} could not be run: its inputs could not be resolved.")
        properties: dict[str, str] = {}
        uris: dict[str, str] = {}
        for key, artifacts in outputs.items():
            uris[key] = artifacts[0].uri
            for field, value in artifacts[0].mlmd_artifact.custom_properties.items():
                properties[field] = value.string_value or str(value.int_value)
        return Done(uris, properties, cached=execution.last_known_state == states.CACHED)


def _never_cached(ir: pipeline_pb2.Pipeline, name: str) -> None:
    for node in ir.nodes:
        if node.pipeline_node.node_info.id == name:
            node.pipeline_node.execution_options.caching_options.enable_cache = False
