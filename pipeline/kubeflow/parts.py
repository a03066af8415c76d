"""What a pipeline specification is put together from: containers, artifacts, sources of inputs."""

from __future__ import annotations

from typing import Any

from pipeline.config import Kubeflow, Step
from pipeline.kubeflow import names

ENTRYPOINT = ("python", "-m", "pipeline.kubeflow.entrypoint")

Spec = dict[str, Any]


def container(options: Kubeflow, step: Step, *arguments: str) -> Spec:
    """Returns an executor: our entrypoint with these arguments, in the image and with its share."""
    cpu = step.get("cpu", options.cpu)
    memory = step.get("memory_gb", options.memory_gb)
    resources: Spec = {
        "cpuLimit": cpu,
        "cpuRequest": cpu,
        "memoryLimit": memory,
        "memoryRequest": memory,
    }
    if "gpus" in step:
        resources["accelerator"] = {
            "count": str(step["gpus"]),
            "type": step.get("gpu_type", "nvidia.com/gpu"),
        }
    return {
        "container": {
            "image": options.image,
            "command": list(ENTRYPOINT),
            "args": [
                *arguments,
                "--workdir",
                options.workdir,
                "--record-megabytes",
                str(options.record_megabytes),
                "--executor-input",
                "{{$}}",
            ],
            "resources": resources,
        }
    }


def artifact(title: str) -> Spec:
    """Returns the definition of an input or output of this schema title."""
    return {"artifactType": {"schemaTitle": title, "schemaVersion": "0.0.1"}}


def from_task(node: str, key: str) -> Spec:
    """Returns an input that is a node's output artifact."""
    return {"taskOutputArtifact": {"producerTask": names.task(node), "outputArtifactKey": key}}


def from_parameter(task: str, key: str) -> Spec:
    """Returns an input that is a task's output parameter."""
    return {"taskOutputParameter": {"producerTask": task, "outputParameterKey": key}}


def constant(value: str) -> Spec:
    """Returns an input that is known when the pipeline is compiled."""
    return {"runtimeValue": {"constant": value}}
