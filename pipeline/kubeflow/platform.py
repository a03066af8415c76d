"""The `platforms:` document: what Kubernetes must know of each step, and TFX does not write.

Field names are those of `kfp_kubernetes.KubernetesExecutorConfig` (Kubeflow Pipelines'
kubernetes_platform/proto/kubernetes_executor_config.proto), in the forms that servers from 2.3 to
2.17 read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.config import Kubeflow, Step
from pipeline.kubeflow import names

# Argo puts the run's id on every pod; the record of a run is found by it. It comes by the
# environment because a parameter would stand in the cache's key and make every run a new one.
_RUN_ID_LABEL = "metadata.labels['pipeline/runid']"


def document(options: Kubeflow, steps: Mapping[str, Step]) -> dict[str, Any]:
    """Returns the document.

    Args:
      options: the section `kubeflow`.
      steps: {task name: what the task takes instead}, of every task with a container.
    """
    executors = {
        names.executor(task): _executor(options, task, step) for task, step in steps.items()
    }
    return {"platforms": {"kubernetes": {"deploymentSpec": {"executors": executors}}}}


def _executor(options: Kubeflow, task: str, step: Step) -> dict[str, Any]:
    minutes = step.get("timeout_minutes", options.timeout_minutes)
    config: dict[str, Any] = {
        # 64-bit integers are strings in protobuf's JSON.
        "activeDeadlineSeconds": str(60 * minutes),
        "fieldPathAsEnv": [{"name": names.RUN_ID, "fieldPath": _RUN_ID_LABEL}],
        "imagePullPolicy": options.image_pull_policy,
        # What the network policies of deploy/kubeflow know a step by.
        "podMetadata": {
            "labels": {
                "app.kubernetes.io/name": names.STEP,
                "app.kubernetes.io/part-of": names.PART_OF,
                "app.kubernetes.io/component": task,
            }
        },
        "pvcMount": [
            {"constant": volume["claim"], "mountPath": volume["path"]} for volume in options.volumes
        ],
    }
    selector = {**options.node_selector, **step.get("node_selector", {})}
    if selector:
        config["nodeSelector"] = {"labels": selector}
    tolerations = [*options.tolerations, *step.get("tolerations", ())]
    if tolerations:
        config["tolerations"] = [dict(toleration) for toleration in tolerations]
    if options.secrets:
        config["secretAsEnv"] = [
            {
                "secretName": secret["secret"],
                "keyToEnv": [{"secretKey": secret["key"], "envVar": secret["env"]}],
            }
            for secret in options.secrets
        ]
    if options.image_pull_secrets:
        config["imagePullSecret"] = [{"secretName": name} for name in options.image_pull_secrets]
    return config
