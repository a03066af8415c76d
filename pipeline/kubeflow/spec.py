"""The graph as a pipeline specification of Kubeflow Pipelines v2 (schema 2.1.0).

TFX's own KubeflowV2DagRunner writes for the managed service: artifact types that the open-source
server shows as nothing, no artifact types of one's own, no outputs for its pages, no platform
document (docs/decisions/0006-kubeflow.md). Here the same TFX nodes become `system.*` artifacts, and
their execution properties arrive at run time from the first step, `prepare`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tfx.dsl.components.base.base_node import BaseNode
from tfx.utils import name_utils

from pipeline.config import Config, Kubeflow, Step
from pipeline.kubeflow import names, parts
from pipeline.kubeflow.parts import Spec

SCHEMA_VERSION = "2.1.0"

# What the server's pages know how to show; everything else is a plain artifact.
_SYSTEM_TYPES = {
    "Examples": "system.Dataset",
    "Model": "system.Model",
    "PushedModel": "system.Model",
}
# A second try finds the same data bad.
_NEVER_RETRIED = ("ValidationGate",)
# This one keeps every artifact beside the run's record, also those of steps that the cache
# answered: it runs in every run that comes so far, blessed or not.
_RECORDER = "BlessingGate"
_GATE = "BlessingGate"
# These publish: only what is blessed.
_PUSHERS = ("Pusher", "VariantPusher")
_NOT_RECORDED = ("model", "pushed_model")


def pipeline_spec(config: Config, nodes: Sequence[BaseNode], sdk: str, data: str = "") -> Spec:
    """Returns the specification, ready for YAML.

    Args:
      config: the effective configuration; what is still open in it is chosen by `prepare`.
      nodes: the graph's, in the order that the data flows.
      sdk: who compiled it, for `sdkVersion`.
      data: the default of the parameter `data`; "" makes it one that a run must give.
    """
    options = config.kubeflow
    tasks: Spec = {}
    components: Spec = {}
    executors: Spec = {}
    if options.data == "bucket":
        _add_importer(tasks, components, executors)
    _add_prepare(tasks, components, executors, config, nodes)
    for node in nodes:
        _add_node(tasks, components, executors, options, node, nodes)
    _add_report(components, executors, options, nodes)
    parameters = _parameters(data)
    components[names.component(names.GROUP)] = {
        "dag": {"tasks": tasks},
        "inputDefinitions": {
            "parameters": {key: {"parameterType": "STRING"} for key in parameters}
        },
    }
    spec = {
        "pipelineInfo": {"name": options.name},
        "schemaVersion": SCHEMA_VERSION,
        "sdkVersion": sdk,
        "root": {
            "dag": {"tasks": {names.GROUP: _group_task(parameters), names.REPORT: _report_task()}},
            "inputDefinitions": {"parameters": parameters},
        },
        "components": components,
        "deploymentSpec": {"executors": executors},
    }
    if options.pipeline_root:
        spec["defaultPipelineRoot"] = options.pipeline_root
    return spec


def steps(config: Config, nodes: Sequence[BaseNode]) -> dict[str, Step]:
    """Returns {task name: what it takes instead} of every task with a container."""
    found: dict[str, Step] = {names.PREPARE: {}, names.REPORT: {}}
    return {**found, **{names.task(n.id): config.kubeflow.steps.get(n.id, {}) for n in nodes}}


def properties_key(node: str) -> str:
    """Returns the output parameter of `prepare` that carries a node's execution properties."""
    return f"{names.PROPERTIES}-{names.task(node)}"


def _parameters(data: str) -> Spec:
    optional = {"parameterType": "STRING", "defaultValue": "", "isOptional": True}
    given = {**optional, "defaultValue": data} if data else {"parameterType": "STRING"}
    return {
        names.DATA: {**given, "description": "The images: a folder, a manifest or TFRecords."},
        names.FINGERPRINT: {**optional, "description": "Of the data; empty: worked out."},
        names.SPANS: {
            **optional,
            "description": "A window below data, as JSON: name, path, fingerprint, golden, judged "
            "of each span; empty: all of data.",
        },
        names.CHAMPION: {
            **optional,
            "description": "Directory of the version to beat; empty: the one served; none: none.",
        },
        names.OVERRIDES: {
            **optional,
            "description": "section.key=value lines, or TOML, over the compiled configuration.",
        },
    }


def _group_task(parameters: Spec) -> Spec:
    return {
        "componentRef": {"name": names.component(names.GROUP)},
        "taskInfo": {"name": names.GROUP},
        "inputs": {"parameters": {key: {"componentInputParameter": key} for key in parameters}},
    }


def _report_task() -> Spec:
    return {
        "componentRef": {"name": names.component(names.REPORT)},
        "taskInfo": {"name": names.REPORT},
        "cachingOptions": {},
        "dependentTasks": [names.GROUP],
        "inputs": {
            "parameters": {names.STATUS: {"taskFinalStatus": {"producerTask": names.GROUP}}}
        },
        "triggerPolicy": {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"},
    }


def _add_report(
    components: Spec, executors: Spec, options: Kubeflow, nodes: Sequence[BaseNode]
) -> None:
    components[names.component(names.REPORT)] = {
        "executorLabel": names.executor(names.REPORT),
        "inputDefinitions": {
            "parameters": {names.STATUS: {"parameterType": "TASK_FINAL_STATUS", "isOptional": True}}
        },
        "outputDefinitions": {"artifacts": {names.HTML: parts.artifact("system.HTML")}},
    }
    ids = json.dumps([node.id for node in nodes])
    executors[names.executor(names.REPORT)] = parts.container(options, {}, "report", "--nodes", ids)


def _add_importer(tasks: Spec, components: Spec, executors: Spec) -> None:
    """The launcher downloads what an importer names; it need not run where it is unconditional."""
    definition = parts.artifact("system.Dataset")
    components[names.component(names.IMPORT)] = {
        "executorLabel": names.executor(names.IMPORT),
        "inputDefinitions": {"parameters": {"uri": {"parameterType": "STRING"}}},
        "outputDefinitions": {"artifacts": {names.IMPORTED: definition}},
    }
    executors[names.executor(names.IMPORT)] = {
        "importer": {
            "artifactUri": {"runtimeParameter": "uri"},
            "typeSchema": definition["artifactType"],
            # The same folder stays the same artifact, which the cache knows again; whether its
            # content has changed is in the fingerprint that `prepare` works out.
            "reimport": False,
        }
    }
    tasks[names.IMPORT] = {
        "componentRef": {"name": names.component(names.IMPORT)},
        "taskInfo": {"name": names.IMPORT},
        "cachingOptions": {},
        "inputs": {"parameters": {"uri": {"componentInputParameter": names.DATA}}},
    }


def _add_prepare(
    tasks: Spec, components: Spec, executors: Spec, config: Config, nodes: Sequence[BaseNode]
) -> None:
    asked = (names.DATA, names.FINGERPRINT, names.SPANS, names.CHAMPION, names.OVERRIDES)
    strings = {key: {"parameterType": "STRING"} for key in (*asked, names.CONFIG)}
    values = config.model_dump(mode="json")
    # What is left open is chosen by the step, for the data that it finds.
    values["train"] = config.train.model_dump(mode="json", include=config.train.model_fields_set)
    task: Spec = {
        "componentRef": {"name": names.component(names.PREPARE)},
        "taskInfo": {"name": names.PREPARE},
        # It looks at the data and at what is served, which the cache can't know.
        "cachingOptions": {},
        "inputs": {
            "parameters": {
                **{key: {"componentInputParameter": key} for key in asked},
                names.CONFIG: parts.constant(json.dumps(values, sort_keys=True)),
            }
        },
    }
    component: Spec = {
        "executorLabel": names.executor(names.PREPARE),
        "inputDefinitions": {"parameters": strings},
        "outputDefinitions": {
            "parameters": {properties_key(node.id): {"parameterType": "STRING"} for node in nodes}
        },
    }
    _give_imported(task, component, config.kubeflow)
    tasks[names.PREPARE] = task
    components[names.component(names.PREPARE)] = component
    executors[names.executor(names.PREPARE)] = parts.container(config.kubeflow, {}, "prepare")


def _add_node(
    tasks: Spec,
    components: Spec,
    executors: Spec,
    options: Kubeflow,
    node: BaseNode,
    nodes: Sequence[BaseNode],
) -> None:
    name = names.task(node.id)
    step = options.steps.get(node.id, {})
    sources = _sources(node, nodes)
    inputs = {key: parts.from_task(*source) for key, source in sources.items()}
    upstream = {names.task(source) for source, _ in sources.values()}
    upstream |= {names.task(one.id) for one in node.upstream_nodes}
    if node.id in _PUSHERS:
        upstream.add(names.task(_GATE))
    task: Spec = {
        "componentRef": {"name": names.component(name)},
        "taskInfo": {"name": name},
        "cachingOptions": _caching(options, step, node, nodes),
        "dependentTasks": sorted(upstream | {names.PREPARE}),
        "inputs": {
            "artifacts": inputs,
            "parameters": {
                names.PROPERTIES: parts.from_parameter(names.PREPARE, properties_key(node.id))
            },
        },
        **_retries(options, step, node.id),
    }
    component: Spec = {
        "executorLabel": names.executor(name),
        "inputDefinitions": {
            "artifacts": {
                key: parts.artifact(_system_type(*s, nodes)) for key, s in sources.items()
            },
            "parameters": {names.PROPERTIES: {"parameterType": "STRING"}},
        },
        "outputDefinitions": {
            "artifacts": {
                key: parts.artifact(_SYSTEM_TYPES.get(channel.type.TYPE_NAME, "system.Artifact"))
                for key, channel in node.outputs.items()
            }
        },
    }
    if node.id == _GATE:
        _add_gate_outputs(component["outputDefinitions"])
    if node.id in _PUSHERS:
        _push_only_if_blessed(task, component)
    if not node.inputs:
        _give_imported(task, component, options)
    tasks[name] = _without_empty(task)
    components[names.component(name)] = _without_empty(component)
    executors[names.executor(name)] = parts.container(
        options, step, "node", "--node", node.id, *_types(node), "--sources", _dump(sources)
    )


def _sources(node: BaseNode, nodes: Sequence[BaseNode]) -> dict[str, tuple[str, str]]:
    """Returns {input key: (producing node, its output key)}; for the recorder, everything else."""
    found = {
        key: (channel.producer_component_id, channel.output_key)
        for key, channel in node.inputs.items()
    }
    if node.id == _RECORDER:
        before = nodes[: [one.id for one in nodes].index(node.id)]
        for one in before:
            for key in one.outputs:
                if (one.id, key) not in found.values() and key not in _NOT_RECORDED:
                    found[f"{names.RECORDED}-{names.task(one.id)}-{key}"] = (one.id, key)
    return found


def _types(node: BaseNode) -> list[str]:
    """Returns the arguments that say which Python classes the step needs."""
    path = name_utils.get_full_name
    return [
        "--executor",
        path(node.executor_spec.executor_class),
        "--inputs",
        _dump({key: path(channel.type) for key, channel in node.inputs.items()}),
        "--outputs",
        _dump({key: path(channel.type) for key, channel in node.outputs.items()}),
    ]


def _add_gate_outputs(outputs: Spec) -> None:
    outputs["artifacts"][names.METRICS] = parts.artifact("system.Metrics")
    outputs["artifacts"][names.CONFUSION] = parts.artifact("system.ClassificationMetrics")
    outputs["parameters"] = {names.BLESSED: {"parameterType": "STRING"}}


def _push_only_if_blessed(task: Spec, component: Spec) -> None:
    task["inputs"]["parameters"][names.BLESSED] = parts.from_parameter(
        names.task(_GATE), names.BLESSED
    )
    task["triggerPolicy"] = {"condition": f"inputs.parameter_values['{names.BLESSED}'] == 'true'"}
    component["inputDefinitions"]["parameters"][names.BLESSED] = {"parameterType": "STRING"}


def _give_imported(task: Spec, component: Spec, options: Kubeflow) -> None:
    """Has the launcher download the data before the step, where it lies in a bucket."""
    if options.data != "bucket":
        return
    artifact = {
        "taskOutputArtifact": {"producerTask": names.IMPORT, "outputArtifactKey": names.IMPORTED}
    }
    task["inputs"].setdefault("artifacts", {})[names.IMPORTED] = artifact
    task["dependentTasks"] = sorted({*task.get("dependentTasks", ()), names.IMPORT})
    definitions = component["inputDefinitions"].setdefault("artifacts", {})
    definitions[names.IMPORTED] = parts.artifact("system.Dataset")


def _caching(options: Kubeflow, step: Step, node: BaseNode, nodes: Sequence[BaseNode]) -> Spec:
    """Never from the cache: the gate and what comes behind it.

    What they say depends on what is served now, or belongs to this run alone; and what the
    recorder does not see would be missing from the run's record.
    """
    ids = [one.id for one in nodes]
    before = ids.index(node.id) < ids.index(_GATE)
    return {"enableCache": True} if step.get("cache", options.cache) and before else {}


def _retries(options: Kubeflow, step: Step, node: str) -> Spec:
    count = step.get("retries", 0 if node in _NEVER_RETRIED else options.retries)
    if not count:
        return {}
    policy = {
        "maxRetryCount": count,
        "backoffDuration": "30s",
        "backoffFactor": 2.0,
        "backoffMaxDuration": "3600s",
    }
    return {"retryPolicy": policy}


def _system_type(source: str, key: str, nodes: Sequence[BaseNode]) -> str:
    [channel] = [one.outputs[key] for one in nodes if one.id == source]
    return _SYSTEM_TYPES.get(channel.type.TYPE_NAME, "system.Artifact")


def _without_empty(spec: Spec) -> Spec:
    """Drops empty groups of inputs, as protobuf's JSON does; `cachingOptions: {}` says no cache."""
    for group in ("inputs", "inputDefinitions", "outputDefinitions"):
        if group in spec:
            spec[group] = {key: value for key, value in spec[group].items() if value}
    return spec


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
