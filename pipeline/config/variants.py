"""The section variants: the smaller forms of a blessed model, and what each may cost."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, with_config
from typing_extensions import TypedDict

from pipeline.config.base import TABLE, Section

VariantName = Literal[
    "tflite-float32", "tflite-float16", "tflite-int8-dynamic", "tflite-int8", "pruned"
]
_Share = Annotated[float, Field(ge=0, le=1)]
_Ratio = Annotated[float, Field(gt=0)]


@with_config(TABLE)
class Budget(TypedDict, total=False):
    """What one variant may cost, where that differs from the section's own values."""

    max_drop: _Share
    max_size_ratio: _Ratio
    max_latency_ratio: _Ratio


class Variants(Section):
    """Smaller forms of a blessed model, each blessed or not on its own."""

    names: tuple[VariantName, ...] = Field(
        (),
        description=f"Which ones to make, of {', '.join(get_args(VariantName))}; none by default.",
    )
    max_drop: float = Field(
        0.01, ge=0, le=1, description="Accuracy that a variant may lose against the SavedModel."
    )
    max_size_ratio: float = Field(
        1.0,
        gt=0,
        description="Largest size as a share of the SavedModel's; of pruned, both compressed.",
    )
    max_latency_ratio: float = Field(
        2.0,
        gt=0,
        description="Longest median time of one image as a share of the SavedModel's, on one "
        "thread.",
    )
    budgets: dict[VariantName, Budget] = Field(
        {},
        description="What a variant may cost instead, by name: max_drop, max_size_ratio, "
        "max_latency_ratio.",
    )
    max_images: int = Field(
        10_000,
        ge=1,
        description="Most test images that a variant is tried on; they are the same for all.",
    )
    representative_images: int = Field(
        200, ge=1, description="Training images that tflite-int8 takes its ranges from."
    )
    sparsity: float = Field(
        0.5, gt=0, lt=1, description="Share of each kernel's weights that pruned sets to zero."
    )
    prune_epochs: int = Field(
        2, ge=1, description="Epochs of fine-tuning behind that, at a tenth of train.learning_rate."
    )

    @field_validator("names", mode="before")
    @classmethod
    def _one_alone(cls, value: object) -> object:
        # As in --set variants.names=tflite-int8.
        return (value,) if isinstance(value, str) else value

    @field_validator("names")
    @classmethod
    def _each_once(cls, value: tuple[VariantName, ...]) -> tuple[VariantName, ...]:
        for name in value:
            if value.count(name) > 1:
                raise ValueError(f"{name!r} stands there {value.count(name)} times; once is enough")
        return value
