"""The sections of fitting: train and tune."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator, with_config
from typing_extensions import NotRequired, Required, TypedDict

from pipeline import backbones, presets
from pipeline.config.augmentation import Augmentation
from pipeline.config.base import TABLE, Section
from pipeline.errors import ConfigError

_HEAD_NAME = r"^[a-z][a-z0-9_]*$"
_LOSSES = {"class": ("cross-entropy", "focal"), "regression": ("mse", "mae", "huber")}
_NETWORKS = ("preset", "model", "backbone", "feature_vector")
# What `serving_default`, the examples and the tables of predictions call their own.
_RESERVED = frozenset(
    {"label", "score", "classes", "probabilities", "image", "id", "split"}
    | {"predicted", "path", "reason", "detail", "model", "version"}
)


@with_config(TABLE)
class Phase(TypedDict, total=False):
    """A part of training with its own epochs, rate and trainable layers."""

    epochs: Required[Annotated[int, Field(ge=1)]]
    learning_rate: Annotated[float, Field(gt=0)]
    unfreeze: Annotated[str, Field(min_length=1)]
    patience: Annotated[int, Field(ge=0)]
    schedule: Literal["constant", "step", "cosine", "one-cycle", "plateau"]


@with_config(TABLE)
class Head(TypedDict):
    """One more answer of the model, beside the label."""

    name: Annotated[str, Field(pattern=_HEAD_NAME)]
    kind: Literal["class", "regression"]
    column: NotRequired[Annotated[str, Field(min_length=1)]]
    weight: NotRequired[Annotated[float, Field(gt=0)]]
    loss: NotRequired[Literal["cross-entropy", "focal", "mse", "mae", "huber"]]
    minimum: NotRequired[float]
    maximum: NotRequired[float]


class Train(Section):
    """The model and how it is fitted."""

    preset: str | None = Field(
        None, description="The network; by default chosen from the image size and channels."
    )
    model: str = Field(
        "",
        pattern=r"^([A-Za-z_][\w.]*:[A-Za-z_]\w*)?$",
        description="Your own network instead of a preset: module:function, called with the input "
        "(a Keras tensor), that returns the features before the heads.",
    )
    backbone: str = Field(
        "", description="Transfer learning: a network of keras.applications by name (ResNet50)."
    )
    feature_vector: str = Field(
        "",
        description="Transfer learning: a TF Hub / SavedModel feature vector, by handle or local "
        "directory.",
    )
    weights: str = Field(
        "",
        description="What the backbone starts from: `imagenet`, or a local file; empty: random "
        "weights.",
    )
    pooling: Literal["avg", "max"] = Field(
        "avg", description="How the backbone's last feature map becomes a vector."
    )
    head_width: int = Field(
        128, ge=0, description="Units of the dense layer behind a backbone; 0 leaves it out."
    )
    dropout: float | None = Field(
        None, ge=0, lt=1, description="Before the heads; by default the network's own."
    )
    heads: tuple[Head, ...] = Field(
        (),
        description="More answers beside the label: name, kind (class or regression), column of "
        "the manifest (by default the name), weight, loss, minimum, maximum.",
    )
    label_weight: float = Field(
        1.0, gt=0, description="Weight of the label's loss beside those of the other heads."
    )
    epochs: int | None = Field(
        None, ge=1, description="Passes over train; by default the preset's own."
    )
    phases: tuple[Phase, ...] = Field(
        (),
        description="Parts of training, instead of epochs: epochs, learning_rate, unfreeze (none, "
        "all, a share such as 20%, or the first layer to train), patience, schedule.",
    )
    batch_size: int | None = Field(
        None, ge=1, description="Images a step; by default 32 for up to 10,000 images, else 128."
    )
    optimizer: Literal["adam", "adamw", "sgd", "rmsprop", "lion"] = Field(
        "adam", description="What turns gradients into steps."
    )
    learning_rate: float = Field(0.001, gt=0, description="The optimizer's step size at its peak.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Of sgd and rmsprop.")
    nesterov: bool = Field(True, description="Whether sgd looks ahead.")
    schedule: Literal["constant", "step", "cosine", "one-cycle", "plateau"] = Field(
        "constant", description="How the rate moves over the steps of training."
    )
    warmup_epochs: float = Field(
        0.0, ge=0, description="Epochs over which the rate rises from zero to its peak."
    )
    step_epochs: int = Field(10, ge=1, description="schedule=step: epochs between two drops.")
    step_factor: float = Field(
        0.1, gt=0, lt=1, description="What the rate is multiplied by: by step, and by plateau."
    )
    plateau_epochs: int = Field(
        2, ge=1, description="schedule=plateau: epochs without a better eval loss before a drop."
    )
    min_learning_rate: float = Field(0.0, ge=0, description="What the rate never falls below.")
    weight_decay: float = Field(
        0.0, ge=0, description="Decoupled weight decay; biases and normalizations are spared."
    )
    clip_norm: float = Field(
        0.0, ge=0, description="Largest norm of all gradients together; 0 doesn't clip."
    )
    ema: float = Field(
        0.0, ge=0, lt=1, description="Momentum of the weights' moving average; 0 keeps none."
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of each label spread over all classes."
    )
    loss: Literal["auto", "cross-entropy", "focal"] = Field(
        "auto", description="The label's loss; `auto` is the preset's cross-entropy."
    )
    focal_gamma: float = Field(
        2.0, ge=0, description="loss=focal: how much easy images are held back."
    )
    class_weights: (
        Literal["none", "balanced", "effective"] | dict[str, Annotated[float, Field(ge=0)]]
    ) = Field(
        "none",
        description="How much each class counts in the loss: by its inverse frequency, by the "
        "effective number of its images, or given by class.",
    )
    effective_beta: float = Field(
        0.999, gt=0, lt=1, description="class_weights=effective: beta of the effective number."
    )
    oversample: float = Field(
        0.0,
        ge=0,
        le=1,
        description="How far rare classes are drawn more often: 0 not at all, 1 until all are "
        "equally frequent.",
    )
    augment: tuple[Augmentation, ...] = Field(
        (),
        description="Augmentation of the training images, in order: names, or tables of a name "
        "and its options. docs/training-input.md lists them.",
    )
    seed: int = Field(
        17, ge=0, lt=2**32, description="All randomness derives from (seed, epoch, step)."
    )
    patience: int = Field(
        5, ge=0, description="Epochs without a better eval loss before stopping; 0 never stops."
    )
    cache: Literal["auto", "memory", "disk", "off"] = Field(
        "auto", description="Where transformed images are kept between epochs."
    )
    strategy: Literal["auto", "cpu", "gpu", "mirrored", "multi_worker", "tpu"] = Field(
        "auto",
        description="The devices: `auto` takes all GPUs that there are, else the CPU.",
    )
    devices: int = Field(
        0, ge=0, description="Devices to use; 0 takes all. On the CPU: logical devices, to try out."
    )
    workers: int = Field(
        2,
        ge=1,
        le=64,
        description="strategy=multi_worker without TF_CONFIG: processes on this machine.",
    )
    tpu: str = Field("", description="The TPU's name or grpc:// address; empty: this machine's.")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32",
        description="Of the layers' work; weights and probabilities stay float32, and float16 "
        "scales its loss.",
    )
    xla: bool = Field(False, description="Whether the training step is compiled by XLA.")
    accumulate: int = Field(
        1, ge=1, description="Steps whose gradients are added up for one update."
    )
    profile_steps: str = Field(
        "",
        pattern=r"^(\d+(-\d+)?)?$",
        description="Steps that TensorBoard profiles, as in 10-20.",
    )
    board_images: int = Field(
        0, ge=0, le=64, description="Images of each kind that TensorBoard shows; 0: none."
    )

    @field_validator("preset")
    @classmethod
    def _a_preset(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                presets.get(value)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return value

    @field_validator("backbone")
    @classmethod
    def _a_backbone(cls, value: str) -> str:
        if value:
            try:
                backbones.get(value)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return value

    @field_validator("heads")
    @classmethod
    def _heads_apart(cls, value: tuple[Head, ...]) -> tuple[Head, ...]:
        names = [head["name"] for head in value]
        # What Keras measures on eval has val_ before its name, as what a head `val` measures has.
        on_eval = {"val", *(f"val_{name}" for name in ("label", *names))}
        for name in names:
            if name in _RESERVED | on_eval or names.count(name) > 1:
                raise ValueError(f"the head name {name!r} is taken; choose another")
        for head in value:
            low, high = head.get("minimum"), head.get("maximum")
            if low is not None and high is not None and low >= high:
                raise ValueError(f"head {head['name']!r}: minimum {low} is not below {high}")
            fits = (
                ("cross-entropy", "focal") if head["kind"] == "class" else ("mse", "mae", "huber")
            )
            if head.get("loss", fits[0]) not in fits:
                raise ValueError(
                    f"head {head['name']!r} is a {head['kind']} head and takes the loss "
                    f"{' or '.join(fits)}, not {head['loss']!r}"
                )
        return value

    @field_validator("augment", mode="before")
    @classmethod
    def _a_policy(cls, value: Any) -> Any:
        # One step alone, as in --set train.augment=flip.
        return (value,) if isinstance(value, (str, Mapping)) else value

    @field_validator("profile_steps")
    @classmethod
    def _steps_in_order(cls, value: str) -> str:
        first, _, last = value.partition("-")
        if value and not 1 <= int(first) <= int(last or first):
            raise ValueError(
                f"{value!r} are no steps; expected the first one and the last, counted from 1, "
                "as in 10-20"
            )
        return value

    @model_validator(mode="after")
    def _labels_that_mix(self) -> Train:
        mixing = [step.name for step in self.augment if step.mixes_labels]
        numbers = [head["name"] for head in self.heads if head["kind"] == "regression"]
        if mixing and numbers:
            raise ValueError(
                f"train.augment has {mixing[0]!r}, which mixes the labels of two images, and "
                f"train.heads the regression head {numbers[0]!r}, whose numbers can't be mixed so; "
                "leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _one_network(self) -> Train:
        given = [
            name
            for name in ("preset", "model", "backbone", "feature_vector")
            if getattr(self, name)
        ]
        if len(given) > 1:
            raise ValueError(
                f"train.{given[0]} and train.{given[1]} both name the network; give one of them"
            )
        if self.weights and not self.backbone:
            raise ValueError("train.weights belongs to train.backbone, which is not set")
        if self.phases and self.epochs not in (None, sum(phase["epochs"] for phase in self.phases)):
            raise ValueError(
                f"train.epochs {self.epochs} and train.phases, which add up to "
                f"{sum(phase['epochs'] for phase in self.phases)}: give one of them"
            )
        return self

    @property
    def mixes_labels(self) -> bool:
        """Whether augmentation blends images of several classes, so that labels become shares."""
        return any(step.mixes_labels for step in self.augment)


class Tune(Section):
    """A search for good values before training."""

    algorithm: Literal["off", "random", "hyperband", "bayesian"] = Field(
        "off", description="How values are searched for; `off` trains with those given."
    )
    space: dict[str, Any] = Field(
        {},
        description="Keys of train and what to try: a list of values, or a table with min, max, "
        "log and step.",
    )
    trials: int = Field(10, ge=1, le=1000, description="Most trials.")
    minutes: float = Field(
        0.0, ge=0, description="Minutes after which no new trial begins; 0: no such limit."
    )
    epochs: int = Field(5, ge=1, description="Epochs of a trial; the most, with hyperband.")
    objective: Literal["eval_loss", "eval_accuracy"] = Field(
        "eval_accuracy", description="What the best trial is best in, on the split eval."
    )
    images: int = Field(0, ge=0, description="Training images of a trial; 0 takes all.")

    @field_validator("space")
    @classmethod
    def _keys_without_section(cls, value: dict[str, Any]) -> dict[str, Any]:
        return {re.sub(r"^train\.", "", key): what for key, what in value.items()}
