"""The sections of what becomes of a model: evaluate, serving, push."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from pipeline.config.base import Section

_Share = Annotated[float, Field(ge=0, le=1)]


@with_config(ConfigDict(extra="forbid"))
class HeadFloors(TypedDict, total=False):
    """What one head of train.heads must reach."""

    min_accuracy: _Share
    min_class_recall: _Share
    max_mae: Annotated[float, Field(gt=0)]
    max_regression: Annotated[float, Field(ge=0)]


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
    heads: dict[str, HeadFloors] = Field(
        {},
        description="Floors of the heads of train.heads, by name: min_accuracy, min_class_recall "
        "and max_regression of a class head, max_mae and max_regression (a share of the "
        "champion's) of a regression head. docs/heads.md has the defaults.",
    )


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
