"""The sections of where a pipeline runs: metadata, beam, kubeflow."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, with_config
from typing_extensions import TypedDict

from pipeline.config.base import TABLE, Section


class Metadata(Section):
    """Where ML Metadata is kept."""

    url: str = Field(
        "",
        description="sqlite (empty: metadata.sqlite in the workdir), "
        "mysql://user:password@host:port/db or postgresql://user:password@host:port/db.",
    )


class Beam(Section):
    """How Beam runs."""

    runner: str = Field("DirectRunner", description="Beam's runner, by name.")
    args: tuple[str, ...] = Field((), description="More of Beam's own options, as --name=value.")


@with_config(TABLE)
class Volume(TypedDict):
    """A claim (PersistentVolumeClaim) and the path that steps see it at."""

    claim: str
    path: str


@with_config(TABLE)
class Secret(TypedDict):
    """An environment variable of every step, from a key of a Kubernetes secret."""

    env: str
    secret: str
    key: str


@with_config(TABLE)
class Toleration(TypedDict, total=False):
    """A Kubernetes toleration."""

    key: str
    operator: Literal["Exists", "Equal"]
    value: str
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


@with_config(TABLE)
class Step(TypedDict, total=False):
    """What one step takes that differs from `kubeflow`'s own values."""

    cpu: Annotated[float, Field(gt=0)]
    memory_gb: Annotated[float, Field(gt=0)]
    gpus: Annotated[int, Field(ge=1)]
    gpu_type: str
    retries: Annotated[int, Field(ge=0, le=10)]
    timeout_minutes: Annotated[int, Field(ge=1)]
    cache: bool
    node_selector: dict[str, str]
    tolerations: tuple[Toleration, ...]


class Kubeflow(Section):
    """How the pipeline runs on Kubeflow Pipelines, and how it is reached."""

    name: str = Field(
        "safelight",
        pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
        description="The pipeline's name there: a-z, 0-9 and -, up to 63 of them.",
    )
    image: str = Field("", description="The image of every step, with its tag: make image.")
    volumes: tuple[Volume, ...] = Field(
        ({"claim": "safelight", "path": "/safelight"},),
        description="Claims that every step mounts and writes to (ReadWriteMany).",
    )
    workdir: str = Field(
        "/safelight/workdir",
        description="The workdir: on a volume. Pushed models, checkpoints and reports lie there.",
    )
    data: Literal["volume", "bucket"] = Field(
        "volume",
        description="Where the parameter `data` points: a path on a volume, or a gs://, s3:// or "
        "minio:// folder that the launcher downloads.",
    )
    pipeline_root: str = Field(
        "", description="Where artifacts go: gs://, s3:// or minio://; empty: the server's default."
    )
    cpu: float = Field(1.0, gt=0, description="Cores that a step asks for, and its limit.")
    memory_gb: float = Field(4.0, gt=0, description="Memory (10^9 bytes) of a step, and its limit.")
    retries: int = Field(1, ge=0, le=10, description="Tries after a step's first failure.")
    timeout_minutes: int = Field(240, ge=1, description="A step that takes longer is ended.")
    cache: bool = Field(True, description="Whether steps may be answered from the cache.")
    steps: dict[str, Step] = Field(
        {},
        description="What a step takes instead, by node: "
        "[kubeflow.steps.Trainer] cpu, memory_gb, gpus, gpu_type, retries, timeout_minutes, cache, "
        "node_selector, tolerations.",
    )
    node_selector: dict[str, str] = Field({}, description="Labels of the nodes that steps run on.")
    tolerations: tuple[Toleration, ...] = Field(
        (), description="Taints that steps tolerate: key, operator, value, effect."
    )
    secrets: tuple[Secret, ...] = Field(
        (), description="Environment variables from secrets: env, secret, key."
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        "IfNotPresent", description="When a node pulls the image."
    )
    image_pull_secrets: tuple[str, ...] = Field((), description="Secrets of the image's registry.")
    service_account: str = Field("", description="The account that a run uses; empty: the default.")
    record_megabytes: int = Field(
        512,
        ge=0,
        description="An artifact up to this size is kept beside the run's record, for its report.",
    )
    endpoint: str = Field(
        "", description="URL of the Kubeflow Pipelines API, as in http://HOST/pipeline."
    )
    namespace: str = Field(
        "", description="The profile's namespace, where there are several users."
    )
    experiment: str = Field("safelight", description="The experiment that runs are listed under.")
    token_env: str = Field(
        "", description="Name of the environment variable that holds the bearer token."
    )
    token_file: str = Field(
        "",
        description="A file with the bearer token, read again for each request: a service "
        "account's, which the node renews.",
    )
    cookies_env: str = Field(
        "", description="Name of the environment variable that holds the session's cookie."
    )
    ca_file: str = Field("", description="Certificates to trust for the endpoint, a PEM file.")

    @field_validator("pipeline_root")
    @classmethod
    def _a_bucket(cls, value: str) -> str:
        if value and not value.startswith(("gs://", "s3://", "minio://")):
            raise ValueError("expected gs://, s3:// or minio://, or nothing for the server's own")
        return value
