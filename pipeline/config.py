"""The one typed configuration: every key, its default, its meaning and what can't go together.

Read once, at the command line: defaults, then a profile (a name from `pipeline/profiles/` or a
TOML file of your own), then `--set section.key=value`. It reaches the stages as JSON in their
execution properties, so that a change of a value re-runs exactly what reads it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
    with_config,
)
from typing_extensions import TypedDict

from pipeline.errors import ConfigError, did_you_mean

if sys.version_info >= (3, 11):
    from importlib.resources.abc import Traversable

    import tomllib
else:
    from importlib.abc import Traversable

    import tomli as tomllib

Mode = Literal["off", "warn", "fail"]
Preset = Literal["mnist-cnn", "mnist-cnn-small", "cifar10-cnn", "image64-cnn"]


class Section(BaseModel):
    """A frozen group of keys; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Ingest(Section):
    """How images are found, decoded, checked and split."""

    split: str = Field(
        "70/10/20",
        description="Per cent of the images for train/eval/test, by hash of the pixels. Split "
        "folders given in the data win; with one held-out folder, eval is carved from train.",
    )
    error_budget: float = Field(
        0.05, ge=0, le=1, description="Share of bad files above which the run stops (exit 4)."
    )
    max_images: int = Field(
        0, ge=0, description="Take at most this many images, evenly by hash; 0 takes all."
    )
    min_side: int = Field(4, ge=1, description="Pixels; a shorter side is `too_small`.")
    max_pixels: int = Field(
        50_000_000,
        ge=1,
        le=178_000_000,
        description="Width x height above which a file is refused unread.",
    )
    workers: int = Field(0, ge=0, description="Decoding processes; 0 takes all cores.")
    file_seconds: float = Field(
        60.0, gt=0, description="Seconds that decoding one file may take before it is given up."
    )
    form: Literal["auto", "folders", "splits", "manifest", "tfrecords"] = Field(
        "auto", description="How the data is laid out; by default found out."
    )
    label_from: Literal["top", "path"] = Field(
        "top",
        description="In nested class folders: the class is the `top` folder, or the whole `path` "
        "of folders (animals/cat).",
    )
    follow_links: bool = Field(
        False, description="Whether symbolic links and manifest paths may leave the data."
    )
    near_duplicates: Literal["report", "drop", "off"] = Field(
        "report",
        description="Images that look the same in two splits: shown as pairs, or dropped from "
        "the training side too.",
    )
    manifest: str = Field(
        "", description="The manifest's name below DATA; by default manifest.csv or the like."
    )
    path_column: str = Field("", description="The manifest's column of paths; by default found.")
    label_column: str = Field("", description="The manifest's column of labels.")
    split_column: str = Field("", description="The manifest's column of splits.")
    group_column: str = Field(
        "", description="The manifest's column of groups, which no split tears apart."
    )
    targets: tuple[str, ...] = Field((), description="Numeric columns of the manifest to carry.")
    slices: tuple[str, ...] = Field(
        (), description="Columns of the manifest to slice evaluation by."
    )
    record_image: str = Field(
        "", description="TFRecords: the feature of the encoded image; by default image/encoded."
    )
    record_label: str = Field(
        "", description="TFRecords: the feature of the label; by default image/class/text|label."
    )
    record_group: str = Field("", description="TFRecords: the feature of the group, if any.")

    @field_validator("split")
    @classmethod
    def _three_shares(cls, value: str) -> str:
        try:
            shares = [float(part) for part in value.split("/")]
        except ValueError:
            shares = []
        if len(shares) != 3 or min(shares) <= 0 or not math.isclose(sum(shares), 100):
            raise ValueError("expected three positive shares that add up to 100, as in 70/10/20")
        return value

    @property
    def shares(self) -> tuple[float, float, float]:
        """The shares of train, eval and test; they add up to 1."""
        train, held_out, test = (float(part) / 100 for part in self.split.split("/"))
        return train, held_out, test


class Validation(Section):
    """What the gate behind ExampleValidator does about each finding."""

    anomalies: Mode = Field("fail", description="A TFDV anomaly against the curated schema.")
    few_images: Mode = Field("fail", description="A class has too few images in a split.")
    min_images: int = Field(2, ge=1, description="Fewest images a class needs in train and test.")
    imbalance: Mode = Field("warn", description="The largest class dwarfs the smallest.")
    max_imbalance: float = Field(
        20.0, ge=1, description="Largest over smallest class in train before `imbalance` speaks."
    )
    unseen_labels: Mode = Field("fail", description="A class stands in test or eval, not in train.")
    split_mix: Mode = Field("warn", description="Splits hold the classes in different shares.")
    max_split_distance: float = Field(
        0.1, gt=0, le=1, description="L-infinity distance of class shares between two splits."
    )


class Transform(Section):
    """The graph from encoded bytes to pixels, shared by training, evaluation and serving."""

    image_size: int | None = Field(
        None, ge=8, le=1024, description="Side in pixels; by default chosen from the data."
    )
    channels: Literal[1, 3] | None = Field(
        None, description="1 (grey) or 3 (RGB); by default chosen from the data."
    )
    resize: Literal["stretch", "pad", "crop"] = Field(
        "stretch", description="How an image that is not square becomes square."
    )
    normalize: Literal["unit", "standard"] = Field(
        "unit",
        description="`unit`: values in [0, 1]. `standard`: zero mean and unit variance per "
        "channel, from a full pass over the facts recorded at ingest.",
    )
    max_pixels: int = Field(
        50_000_000, ge=1, description="Width x height that the serving graph decodes at most."
    )


class Train(Section):
    """The model and how it is fitted."""

    preset: Preset | None = Field(
        None, description="The network; by default chosen from the image size and channels."
    )
    epochs: int | None = Field(
        None, ge=1, description="Passes over train; by default the preset's own."
    )
    batch_size: int | None = Field(
        None, ge=1, description="Images a step; by default 32 for up to 10,000 images, else 128."
    )
    learning_rate: float = Field(0.001, gt=0, description="Adam's step size.")
    seed: int = Field(
        17, ge=0, lt=2**32, description="All randomness derives from (seed, epoch, step)."
    )
    patience: int = Field(
        5, ge=0, description="Epochs without a better eval loss before stopping; 0 never stops."
    )
    cache: Literal["auto", "memory", "disk", "off"] = Field(
        "auto", description="Where transformed images are kept between epochs."
    )


class Evaluate(Section):
    """What a model must reach on `test` before it is blessed."""

    min_accuracy: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Floor for the lower confidence bound of accuracy; by default the share of "
        "the largest class plus a tenth of the rest.",
    )
    min_class_recall: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Floor for the worst class's recall: its upper confidence bound must reach "
        "it; by default half of 1/classes.",
    )
    max_regression: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Accuracy that a challenger may lose against the champion; where the test "
        "images are too few to tell, the estimate decides.",
    )
    confidence: float = Field(
        0.95, gt=0.5, lt=1, description="Of the one-sided bounds that the floors are held to."
    )
    top_k: int = Field(3, ge=1, description="k of the top-k accuracy.")


class Serving(Section):
    """How the exported model is tried in a clean process before the push."""

    check_images: int = Field(64, ge=1, description="Real files served through the export.")
    tolerance: float = Field(
        1e-4, gt=0, description="Largest difference of a probability from evaluation's."
    )


class Push(Section):
    """Where a blessed model goes."""

    model_name: str = Field(
        "model",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        description="The directory below serving/ and the name that TF Serving serves.",
    )


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


@with_config(ConfigDict(extra="forbid"))
class Volume(TypedDict):
    """A claim (PersistentVolumeClaim) and the path that steps see it at."""

    claim: str
    path: str


@with_config(ConfigDict(extra="forbid"))
class Secret(TypedDict):
    """An environment variable of every step, from a key of a Kubernetes secret."""

    env: str
    secret: str
    key: str


@with_config(ConfigDict(extra="forbid"))
class Toleration(TypedDict, total=False):
    """A Kubernetes toleration."""

    key: str
    operator: Literal["Exists", "Equal"]
    value: str
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


@with_config(ConfigDict(extra="forbid"))
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
        description="The pipeline's name there.",
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


class Config(Section):
    """The whole configuration."""

    ingest: Ingest = Field(default_factory=Ingest)
    validation: Validation = Field(default_factory=Validation)
    transform: Transform = Field(default_factory=Transform)
    train: Train = Field(default_factory=Train)
    evaluate: Evaluate = Field(default_factory=Evaluate)
    serving: Serving = Field(default_factory=Serving)
    push: Push = Field(default_factory=Push)
    metadata: Metadata = Field(default_factory=Metadata)
    beam: Beam = Field(default_factory=Beam)
    kubeflow: Kubeflow = Field(default_factory=Kubeflow)

    @model_validator(mode="after")
    def _keys_that_go_together(self) -> Config:
        size, preset = self.transform.image_size, self.train.preset
        if size is not None and preset is not None and size < 12:
            raise ValueError(
                f"transform.image_size {size} is too small for train.preset {preset!r}: "
                "its two poolings need at least 12 pixels"
            )
        return self


class Effective(BaseModel):
    """A configuration and, for each key set by somebody, who set it."""

    model_config = ConfigDict(frozen=True)

    config: Config
    origins: dict[str, str]

    def origin(self, key: str) -> str:
        """Returns where the value of `section.key` came from."""
        return self.origins.get(key, "default")


def load(profile: str | None = None, overrides: Sequence[str] = ()) -> Effective:
    """Reads the configuration: defaults, then the profile, then the overrides.

    Args:
      profile: the name of a shipped profile, or a path that ends in `.toml`.
      overrides: `section.key=value` each, the value as in TOML (a bare word is a string).

    Raises:
      ConfigError: an unknown profile, section or key, or a value that its key refuses.
    """
    values: dict[str, dict[str, Any]] = {}
    origins: dict[str, str] = {}
    if profile:
        _merge(values, origins, _read_profile(profile), f"profile {profile}")
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or key.count(".") != 1:
            raise ConfigError(
                f"--set {override!r} is not of the form section.key=value, "
                "as in --set train.epochs=3."
            )
        section, name = key.strip().split(".")
        _merge(values, origins, {section: {name: _toml_value(text.strip())}}, f"--set {key}")
    return Effective(config=validated(values, origins), origins=origins)


def validated(values: Mapping[str, Any], origins: Mapping[str, str] | None = None) -> Config:
    """Returns the configuration of these values, or a ConfigError that names each bad one."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, origins or {})) from None


def entries(config: Config) -> Iterator[tuple[str, Any, Any]]:
    """Yields (section.key, value, pydantic's FieldInfo) of every key, in order."""
    for section_name in Config.model_fields:
        section = getattr(config, section_name)
        for name, field in type(section).model_fields.items():
            yield f"{section_name}.{name}", getattr(section, name), field


def profiles() -> list[str]:
    """Returns the names of the shipped profiles."""
    names = (entry.name for entry in _profiles().iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def _profiles() -> Traversable:
    return resources.files("pipeline").joinpath("profiles")


def _read_profile(profile: str) -> dict[str, Any]:
    if profile.endswith(".toml"):
        path = Path(profile)
        if not path.is_file():
            raise ConfigError(f"The profile {profile} does not exist; expected a TOML file.")
        text = path.read_text(encoding="utf-8")
    elif profile in profiles():
        text = _profiles().joinpath(f"{profile}.toml").read_text()
    else:
        hint = did_you_mean(profile, profiles())
        raise ConfigError(f"There is no profile {profile!r}.{hint} Or name a FILE.toml.")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"The profile {profile} is not valid TOML: {error}.") from None


def _merge(
    values: dict[str, dict[str, Any]],
    origins: dict[str, str],
    more: Mapping[str, Any],
    origin: str,
) -> None:
    for section, keys in more.items():
        if section not in Config.model_fields:
            raise ConfigError(
                f"{origin}: unknown section {section!r}."
                f"{did_you_mean(section, Config.model_fields)}"
            )
        known = _section_type(section).model_fields
        if not isinstance(keys, Mapping):
            raise ConfigError(f"{origin}: {section!r} is a section; expected keys below it.")
        for key, value in keys.items():
            if key not in known:
                raise ConfigError(
                    f"{origin}: unknown key {section}.{key}.{did_you_mean(key, known)}"
                )
            values.setdefault(section, {})[key] = value
            origins[f"{section}.{key}"] = origin


def _section_type(section: str) -> type[Section]:
    annotation = Config.model_fields[section].annotation
    assert isinstance(annotation, type) and issubclass(annotation, Section)
    return annotation


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(error: ValidationError, origins: Mapping[str, str]) -> str:
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"][:2])
        message = problem["msg"].removeprefix("Value error, ")
        if not key:
            lines.append(f"{message}.")
            continue
        origin = origins.get(key, "the configuration")
        lines.append(f"{key} = {problem['input']!r} ({origin}): {message}.")
    return "\n".join(lines)
