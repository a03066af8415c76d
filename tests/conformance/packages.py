"""Small packages of shell commands, for the stand-in server's own tests."""

from __future__ import annotations

from typing import Any

import yaml

Json = dict[str, Any]


def package(tasks: dict[str, Json], parameters: Json | None = None) -> str:
    """Returns a package: a group of tasks, and an exit task that writes the status to a file.

    Args:
      tasks: {name: {"shell": command, "needs": [task], "in": {input: task}, "out": [artifact],
        "params": [output parameter], "given": {input parameter: spec}, "when": condition,
        "retries": n, "cache": bool}}.
      parameters: the pipeline's inputs and their definitions.
    """
    parameters = parameters or {}
    components: Json = {}
    executors: Json = {}
    inner = {name: _task(name, task, components, executors) for name, task in tasks.items()}
    components["comp-pipeline"] = {
        "dag": {"tasks": inner},
        "inputDefinitions": {
            "parameters": {key: {"parameterType": "STRING"} for key in parameters}
        },
    }
    components["comp-report"] = {
        "executorLabel": "exec-report",
        "inputDefinitions": {"parameters": {"status": {"parameterType": "TASK_FINAL_STATUS"}}},
    }
    executors["exec-report"] = _container("cat <<'END'\n{{$}}\nEND")
    root = {
        "pipeline": {
            "componentRef": {"name": "comp-pipeline"},
            "inputs": {"parameters": {key: {"componentInputParameter": key} for key in parameters}},
        },
        "report": {
            "componentRef": {"name": "comp-report"},
            "dependentTasks": ["pipeline"],
            "inputs": {"parameters": {"status": {"taskFinalStatus": {"producerTask": "pipeline"}}}},
            "triggerPolicy": {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"},
        },
    }
    specification = {
        "schemaVersion": "2.1.0",
        "pipelineInfo": {"name": "small"},
        "root": {"dag": {"tasks": root}, "inputDefinitions": {"parameters": parameters}},
        "components": components,
        "deploymentSpec": {"executors": executors},
    }
    platform = {"activeDeadlineSeconds": "60"}
    deployment = {"executors": dict.fromkeys(executors, platform)}
    platforms = {"platforms": {"kubernetes": {"deploymentSpec": deployment}}}
    return yaml.safe_dump_all([specification, platforms])


def _task(name: str, task: Json, components: Json, executors: Json) -> Json:
    artifact = {"artifactType": {"schemaTitle": "system.Artifact"}}
    given = task.get("given", {})
    components[f"comp-{name}"] = {
        "executorLabel": f"exec-{name}",
        "inputDefinitions": {
            "parameters": {key: {"parameterType": "STRING"} for key in given},
            "artifacts": dict.fromkeys(task.get("in", {}), artifact),
        },
        "outputDefinitions": {
            "artifacts": dict.fromkeys(task.get("out", []), artifact),
            "parameters": {key: {"parameterType": "STRING"} for key in task.get("params", [])},
        },
    }
    executors[f"exec-{name}"] = _container(task["shell"])
    spec: Json = {
        "componentRef": {"name": f"comp-{name}"},
        "dependentTasks": [*task.get("needs", []), *task.get("in", {}).values()],
        "cachingOptions": {"enableCache": True} if task.get("cache") else {},
        "inputs": {
            "parameters": given,
            "artifacts": {
                key: {"taskOutputArtifact": {"producerTask": source, "outputArtifactKey": key}}
                for key, source in task.get("in", {}).items()
            },
        },
    }
    if "when" in task:
        spec["triggerPolicy"] = {"condition": task["when"]}
    if "retries" in task:
        spec["retryPolicy"] = {"maxRetryCount": task["retries"]}
    return spec


def _container(shell: str) -> Json:
    return {"container": {"image": "none", "command": ["sh", "-ec"], "args": [shell]}}
