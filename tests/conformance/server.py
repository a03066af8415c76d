"""Runs a compiled package as Kubeflow Pipelines' driver, launcher and workflow engine would.

What is followed, in kubeflow/pipelines at 2.17.0:

- backend/src/v2/driver/resolve.go: how inputs of a task are resolved (`_parameters`, `_artifacts`),
  which types they must have, and the final status that an exit task gets.
- backend/src/v2/driver/driver.go, `provisionOutputs`: the URIs of outputs,
  ROOT/PIPELINE/RUN/TASK/SALT/NAME, and the files of output parameters.
- backend/src/v2/driver/cache.go and cacheutils/cache.go: the cache's key.
- backend/src/v2/compiler/argocompiler/dag.go: a task runs when all that it depends on have
  succeeded; a task with the strategy ALL_UPSTREAM_TASKS_COMPLETED runs when they have ended.
- backend/src/v2/compiler/argocompiler/argo.go: there are no resolvers; importers have no condition.

The launcher is in `launcher.py`. Only what our packages use is there; anything else is an error.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.conformance.launcher import Launcher, Slots

Json = dict[str, Any]

_CONDITION = re.compile(r"inputs\.parameter_values\['(?P<key>[\w-]+)'\] == '(?P<value>[^']*)'")
_TYPES: dict[str, type | tuple[type, ...]] = {
    "STRING": str,
    "NUMBER_DOUBLE": (int, float),
    "NUMBER_INTEGER": (int, float),
    "BOOLEAN": bool,
    "LIST": list,
    "STRUCT": dict,
    "TASK_FINAL_STATUS": dict,
}


@dataclass(frozen=True)
class TaskRun:
    """How one task ended: SUCCEEDED, CACHED, FAILED or SKIPPED; `tries` of its container."""

    state: str
    artifacts: Mapping[str, Json] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    tries: int = 0
    exit_code: int = 0
    log: str = ""

    @property
    def succeeded(self) -> bool:
        return self.state in ("SUCCEEDED", "CACHED")


@dataclass(frozen=True)
class Run:
    """A finished run: its state and its tasks."""

    id: str
    state: str
    tasks: Mapping[str, TaskRun]


class Server:
    """Keeps the artifacts, the cache and the ids of artifacts over several runs."""

    def __init__(self, folder: Path, launcher: Callable[..., Launcher] = Launcher) -> None:
        """Args:
        folder: holds the bucket and a folder for each pod.
        launcher: makes the launcher of a task.
        """
        self.bucket = folder / "bucket"
        self._pods = folder / "pods"
        self._launcher = launcher
        self._cache: dict[str, TaskRun] = {}
        self._ids = itertools.count(1)
        self._imported: dict[str, Json] = {}
        self._numbers = itertools.count(1)

    def run(self, package: str, parameters: Mapping[str, Any], no_cache: bool = False) -> Run:
        """Runs a package to its end.

        Raises:
          ValueError: it isn't a package that a server would take, or a parameter is missing.
        """
        spec, platforms = yaml.safe_load_all(package)
        _check(spec)
        work = _Work(self, spec, platforms, str(uuid.uuid4()), no_cache)
        inputs = _root_inputs(spec["root"]["inputDefinitions"]["parameters"], parameters)
        state = work.dag("root", spec["root"]["dag"], inputs)
        return Run(work.id, state, work.tasks)

    def pod(self, task: str) -> Path:
        """Returns an empty folder for a pod."""
        path = self._pods / f"{next(self._numbers):03d}-{task}"
        path.mkdir(parents=True)
        return path

    def store(self, artifact: Json) -> Json:
        """Gives an artifact its id, which is its name from now on."""
        return {**artifact, "name": str(next(self._ids))}


class _Work:
    """One run in progress."""

    def __init__(
        self, server: Server, spec: Json, platforms: Json, run_id: str, no_cache: bool
    ) -> None:
        self.id = run_id
        self.tasks: dict[str, TaskRun] = {}
        self._server = server
        self._spec = spec
        self._no_cache = no_cache
        self._platform = platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        root = spec.get("defaultPipelineRoot", "minio://mlpipeline/v2/artifacts")
        self._root = f"{root}/{spec['pipelineInfo']['name']}/{run_id}"

    def dag(self, name: str, dag: Json, inputs: Json) -> str:
        """Runs the tasks of a DAG in the order of their dependencies; returns its state."""
        tasks = dag["tasks"]
        for task in _in_order(tasks):
            spec = tasks[task]
            before = [self.tasks[one] for one in spec.get("dependentTasks", [])]
            if _is_exit_task(spec) or all(one.succeeded for one in before):
                self.tasks[task] = self._task(task, spec, inputs)
            else:
                self.tasks[task] = TaskRun("OMITTED")
        states = {self.tasks[task].state for task in tasks if not _is_exit_task(tasks[task])}
        return "FAILED" if "FAILED" in states else "SUCCEEDED"

    def _task(self, name: str, task: Json, given: Json) -> TaskRun:
        component = self._spec["components"][task["componentRef"]["name"]]
        parameters = self._parameters(task, component, given)
        if "dag" in component:
            state = self.dag(name, component["dag"], parameters)
            return TaskRun(state)
        executor = self._spec["deploymentSpec"]["executors"][component["executorLabel"]]
        if "importer" in executor:
            return self._import(executor["importer"], component, parameters)
        artifacts = self._artifacts(task)
        condition = task.get("triggerPolicy", {}).get("condition")
        if condition and not _holds(condition, parameters):
            return TaskRun("SKIPPED")
        return self._container(name, task, component, executor["container"], parameters, artifacts)

    def _parameters(self, task: Json, component: Json, given: Json) -> Json:
        resolved: Json = {}
        for key, spec in task.get("inputs", {}).get("parameters", {}).items():
            [(kind, value)] = spec.items()
            if kind == "componentInputParameter":
                resolved[key] = given[value]
            elif kind == "runtimeValue":
                resolved[key] = value["constant"]
            elif kind == "taskOutputParameter":
                outputs = self.tasks[value["producerTask"]].parameters
                resolved[key] = outputs[value["outputParameterKey"]]
            elif kind == "taskFinalStatus":
                producer = task["dependentTasks"][0]
                state = "COMPLETE" if self.tasks[producer].succeeded else "FAILED"
                resolved[key] = {
                    "state": state,
                    "pipelineTaskName": producer,
                    "pipelineJobResourceName": self.id,
                    "error": {},
                }
            else:
                raise ValueError(f"parameter {key}: {kind} is not implemented")
        _check_types(component.get("inputDefinitions", {}).get("parameters", {}), resolved)
        return resolved

    def _artifacts(self, task: Json) -> dict[str, Json]:
        resolved = {}
        for key, spec in task.get("inputs", {}).get("artifacts", {}).items():
            source = spec["taskOutputArtifact"]
            producer = self.tasks[source["producerTask"]]
            resolved[key] = dict(producer.artifacts[source["outputArtifactKey"]])
        return resolved

    def _import(self, importer: Json, component: Json, parameters: Json) -> TaskRun:
        uri = parameters[importer["artifactUri"]["runtimeParameter"]]
        [key] = component["outputDefinitions"]["artifacts"]
        known = self._server._imported
        if importer.get("reimport") or uri not in known:
            type_schema = importer["typeSchema"]
            known[uri] = self._server.store({"uri": uri, "type": type_schema, "metadata": {}})
        return TaskRun("SUCCEEDED", {key: known[uri]})

    def _container(
        self,
        name: str,
        task: Json,
        component: Json,
        container: Json,
        parameters: Json,
        artifacts: dict[str, Json],
    ) -> TaskRun:
        platform = self._platform[component["executorLabel"]]
        slots = Slots(
            parameters=parameters,
            inputs=artifacts,
            outputs=self._provision(name, component),
            output_parameters=tuple(component.get("outputDefinitions", {}).get("parameters", {})),
        )
        key = _cache_key(slots, component, container, platform)
        cached = task.get("cachingOptions", {}).get("enableCache", False) and not self._no_cache
        if cached and key in self._server._cache:
            known = self._server._cache[key]
            return TaskRun("CACHED", known.artifacts, known.parameters)
        done = self._try(name, task, container, platform, slots)
        if done.succeeded and cached:
            self._server._cache[key] = done
        return done

    def _try(self, name: str, task: Json, container: Json, platform: Json, slots: Slots) -> TaskRun:
        most = 1 + task.get("retryPolicy", {}).get("maxRetryCount", 0)
        log = ""
        for attempt in range(most):
            launcher = self._server._launcher(
                self._server.pod(name), self._server.bucket, {"pipeline/runid": self.id}
            )
            ended = launcher.execute(container, platform, slots, attempt)
            log += ended.log
            if ended.exit_code == 0:
                stored = {key: self._server.store(one) for key, one in ended.artifacts.items()}
                return TaskRun("SUCCEEDED", stored, ended.parameters, attempt + 1, 0, log)
        return TaskRun("FAILED", tries=most, exit_code=ended.exit_code, log=log)

    def _provision(self, task: str, component: Json) -> dict[str, Json]:
        base = f"{self._root}/{task}/{uuid.uuid4()}"
        definitions = component.get("outputDefinitions", {}).get("artifacts", {})
        return {
            key: {"name": key, "uri": f"{base}/{key}", "type": one["artifactType"], "metadata": {}}
            for key, one in definitions.items()
        }


def _check(spec: Json) -> None:
    """What the server's compiler refuses."""
    if spec["schemaVersion"] != "2.1.0":
        raise ValueError(f"schema version {spec['schemaVersion']}")
    executors = spec["deploymentSpec"]["executors"]
    for label, executor in executors.items():
        if "resolver" in executor:
            raise ValueError(f"{label}: resolver not implemented yet")
    for name, component in spec["components"].items():
        if "executorLabel" in component and component["executorLabel"] not in executors:
            raise ValueError(f"{name}: executor not found")
        for task in component.get("dag", {}).get("tasks", {}).values():
            label = spec["components"][task["componentRef"]["name"]].get("executorLabel")
            conditional = task.get("triggerPolicy", {}).get("condition")
            if conditional and "importer" in executors.get(label, {}):
                raise ValueError("triggerPolicy.condition on importer task is not supported")


def _root_inputs(definitions: Json, given: Mapping[str, Any]) -> Json:
    unknown = set(given) - set(definitions)
    if unknown:
        raise ValueError(f"unknown parameters: {sorted(unknown)}")
    inputs = {
        key: spec["defaultValue"] for key, spec in definitions.items() if "defaultValue" in spec
    }
    inputs.update(given)
    missing = set(definitions) - set(inputs)
    if missing:
        raise ValueError(f"parameters without a value: {sorted(missing)}")
    return inputs


def _in_order(tasks: Json) -> Iterator[str]:
    done: set[str] = set()
    while len(done) < len(tasks):
        ready = [
            name
            for name, task in tasks.items()
            if name not in done and set(task.get("dependentTasks", [])) <= done
        ]
        if not ready:
            raise ValueError(f"tasks wait for each other: {sorted(set(tasks) - done)}")
        yield from ready
        done.update(ready)


def _is_exit_task(task: Json) -> bool:
    return task.get("triggerPolicy", {}).get("strategy") == "ALL_UPSTREAM_TASKS_COMPLETED"


def _holds(condition: str, parameters: Json) -> bool:
    match = _CONDITION.fullmatch(condition)
    if match is None:
        raise ValueError(f"the condition {condition!r} is not understood here")
    return bool(parameters[match["key"]] == match["value"])


def _check_types(definitions: Json, values: Json) -> None:
    for key, spec in definitions.items():
        if key not in values:
            if not spec.get("isOptional") and "defaultValue" not in spec:
                raise ValueError(f"neither value nor default value for parameter {key}")
        elif not isinstance(values[key], _TYPES[spec["parameterType"]]):
            raise ValueError(f"parameter {key} is no {spec['parameterType']}: {values[key]!r}")


def _cache_key(slots: Slots, component: Json, container: Json, platform: Json) -> str:
    key = {
        "inputArtifactNames": {name: one["name"] for name, one in slots.inputs.items()},
        "inputParameterValues": slots.parameters,
        "outputArtifactsSpec": {
            name: {k: v for k, v in one.items() if k != "uri"}
            for name, one in slots.outputs.items()
        },
        "outputParametersSpec": component.get("outputDefinitions", {}).get("parameters", {}),
        "image": container["image"],
        "cmdArgs": [*container["command"], *container["args"]],
        "pvcNames": sorted({one["constant"] for one in platform.get("pvcMount", [])}),
    }
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
