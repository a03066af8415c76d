"""What can't run on Kubeflow Pipelines, found before anything is compiled."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from pipeline.config import Config, Kubeflow
from pipeline.errors import ConfigError, did_you_mean

# Only these put accelerators to use; the others hide them from TensorFlow.
ACCELERATED = ("Trainer", "Tuner")

_BUCKET = ("gs://", "s3://", "minio://")
_RESERVED = ("/gcs", "/s3", "/minio", "/oci", "/kfp-launcher", "/kfp-workspace", "/tmp", "/")
_IMAGE = re.compile(r"[\w][\w.:/-]*(:[\w][\w.-]*|@sha256:[0-9a-f]{64})")


def check(config: Config, nodes: Sequence[str], data: str = "") -> None:
    """Refuses a configuration that would fail on the cluster.

    Args:
      config: the effective one.
      nodes: ids of the graph's nodes.
      data: the default of the parameter `data`, if there is one.

    Raises:
      ConfigError: its `reasons` say what to set, one sentence a finding.
    """
    options = config.kubeflow
    found = [
        *_check_image(options),
        *_check_volumes(options),
        *_check_steps(options, nodes),
        *_check_paths(config),
    ]
    if data:
        found += check_data(data, options)
    if found:
        raise ConfigError("This can't run on Kubeflow Pipelines as it is configured.", found)


def check_data(data: str, options: Kubeflow) -> list[str]:
    """Returns what is wrong with a value of the parameter `data`."""
    if options.data == "bucket":
        if data.startswith(_BUCKET):
            return []
        return [
            f"data is {data!r}; with kubeflow.data = bucket it is a gs://, s3:// or minio:// "
            "folder."
        ]
    if _below_a_volume(data, options):
        return []
    if data.startswith(_BUCKET):
        return [f"data is {data!r}: to have it downloaded, set kubeflow.data=bucket."]
    mounted = ", ".join(volume["path"] for volume in options.volumes)
    return [
        f"data is {data!r}, a local path that no step can see; expected a path on a volume "
        f"({mounted or 'there is none: set kubeflow.volumes'}), or kubeflow.data=bucket."
    ]


def check_spans(paths: Sequence[str], options: Kubeflow) -> list[str]:
    """Returns what is wrong with the paths of a window's spans."""
    if options.data == "bucket":
        return [
            "spans are read from a volume, each once; with kubeflow.data = bucket the launcher "
            "downloads all of data instead. Set kubeflow.data=volume."
        ]
    return [reason for path in paths for reason in check_data(path, options)]


def _check_image(options: Kubeflow) -> Iterator[str]:
    if not options.image:
        yield (
            "kubeflow.image is not set: build one with `make image`, push it to a registry that "
            "the cluster reaches, and set kubeflow.image=REGISTRY/safelight:TAG."
        )
    elif not _IMAGE.fullmatch(options.image) or options.image.endswith(":latest"):
        yield (
            f"kubeflow.image is {options.image!r}; expected a fixed tag or digest, as in "
            "registry.example.com/safelight:0.1.0: steps of one run must not differ."
        )


def _check_volumes(options: Kubeflow) -> Iterator[str]:
    paths = [volume["path"] for volume in options.volumes]
    for path in paths:
        if not path.startswith("/") or path in _RESERVED or "/../" in f"{path}/":
            yield (
                f"kubeflow.volumes mounts at {path!r}; expected an absolute path other than "
                f"{', '.join(_RESERVED)}, which Kubeflow itself uses."
            )
    for path in sorted({path for path in paths if paths.count(path) > 1}):
        yield f"kubeflow.volumes mounts two claims at {path!r}; give each a path of its own."
    if not _below_a_volume(options.workdir, options):
        yield (
            f"kubeflow.workdir is {options.workdir!r}, which lies on no volume and would be lost "
            f"with each step; expected a path below one of: {', '.join(paths) or 'none is set'} "
            "(kubeflow.volumes)."
        )


def _check_steps(options: Kubeflow, nodes: Sequence[str]) -> Iterator[str]:
    for node, step in options.steps.items():
        if node == "Tuner" and node not in nodes:
            yield "kubeflow.steps.Tuner: there is no search; set tune.algorithm, or leave it out."
        elif node not in nodes:
            yield f"kubeflow.steps.{node}: there is no such step.{did_you_mean(node, nodes)}"
        if "gpus" not in step:
            if "gpu_type" in step:
                yield f"kubeflow.steps.{node} has a gpu_type and no gpus: set how many."
            continue
        if node not in ACCELERATED:
            yield (
                f"kubeflow.steps.{node} asks for GPUs, which this step would not use; only "
                f"{' and '.join(ACCELERATED)} do."
            )
        missing = [key for key in ("cpu", "memory_gb") if key not in step]
        if missing:
            yield (
                f"kubeflow.steps.{node} asks for GPUs without {' and '.join(missing)}: a GPU waits "
                f"for what feeds it. Set, for one, cpu = 4 and memory_gb = 16."
            )


def _check_paths(config: Config) -> Iterator[str]:
    if config.metadata.url:
        yield (
            "metadata.url is set: on Kubeflow, the server keeps ML Metadata itself. Leave it empty."
        )
    if config.kubeflow.ca_file and not PurePosixPath(config.kubeflow.ca_file).is_absolute():
        yield f"kubeflow.ca_file is {config.kubeflow.ca_file!r}; expected an absolute path."


def _below_a_volume(path: str, options: Kubeflow) -> bool:
    pure = PurePosixPath(path)
    if not pure.is_absolute() or ".." in pure.parts:
        return False
    return any(
        pure == PurePosixPath(volume["path"]) or PurePosixPath(volume["path"]) in pure.parents
        for volume in options.volumes
    )
