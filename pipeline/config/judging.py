"""The sections of what becomes of a model: evaluate, serving, push."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator, with_config
from typing_extensions import TypedDict

from pipeline.config.base import TABLE, Section

_Share = Annotated[float, Field(ge=0, le=1)]

CompareBy = Literal["accuracy", "macro_f1", "macro_recall", "worst_class_recall", "cross_entropy"]
Decision = Literal["push", "block"]


@with_config(TABLE)
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
        description="What a challenger may lose against the champion, in the unit of metric; where "
        "the test images are too few to tell, on_undecided decides.",
    )
    confidence: float = Field(
        0.95, gt=0.5, lt=1, description="Of the one-sided bounds that the floors are held to."
    )
    metric: CompareBy = Field(
        "accuracy",
        description="What decides between challenger and champion; max_regression is in its unit.",
    )
    on_better: Decision = Field("push", description="What becomes of a better challenger.")
    on_no_worse: Decision = Field(
        "push", description="Of one that loses no more than max_regression."
    )
    on_worse: Decision = Field("block", description="Of one that surely loses more than that.")
    on_undecided: Decision | Literal["estimate"] = Field(
        "estimate",
        description="Where the test images are too few to tell: estimate pushes what by the "
        "estimate loses no more than max_regression.",
    )
    resamples: int = Field(
        2000, ge=200, le=100_000, description="Of the paired bootstrap, for all but accuracy."
    )
    max_forgetting: float = Field(
        0.0,
        ge=0,
        le=1,
        description="In a window of spans: the accuracy on an older span's test images may fall "
        "by so much against the champion's, beyond chance; 0: a fall is only told.",
    )
    top_k: int = Field(3, ge=1, description="k of the top-k accuracy.")
    slices: tuple[str, ...] | None = Field(
        None,
        description="What to slice the test images by: brightness, contrast, sharpness, "
        "resolution, aspect_ratio, format, source, span, and columns of a manifest; by default all "
        "of these, and the columns of ingest.slices. [] slices by nothing.",
    )
    min_slice_images: int = Field(
        30, ge=2, description="Fewest test images of a slice; smaller ones are not looked at."
    )
    min_slice_accuracy: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Floor for the accuracy of every slice: one that is shown to lie below it "
        "blocks. By default slices are measured and hold nothing up.",
    )
    max_slice_regression: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Accuracy that a challenger may lose against the champion on any slice.",
    )
    heads: dict[str, HeadFloors] = Field(
        {},
        description="Floors of the heads of train.heads, by name: min_accuracy, min_class_recall "
        "and max_regression of a class head, max_mae and max_regression (a share of the "
        "champion's) of a regression head. docs/heads.md has the defaults.",
    )

    @model_validator(mode="after")
    def _decisions_in_order(self) -> Evaluate:
        """Refuses to block one verdict and to let a lesser one pass."""
        willing = {"push": 2, "estimate": 1, "block": 0}
        keys = ("on_better", "on_no_worse", "on_undecided", "on_worse")
        for better, worse in pairwise(keys):
            first, second = getattr(self, better), getattr(self, worse)
            if willing[first] < willing[second]:
                raise ValueError(
                    f"evaluate.{better} is {first!r} and evaluate.{worse} {second!r}: the lesser "
                    f"verdict would pass more easily than the better one. Expected "
                    f"{' >= '.join(keys)} in the order push, estimate, block; change one of the two"
                )
        return self

    @model_validator(mode="after")
    def _slices_for_their_floors(self) -> Evaluate:
        for key in ("min_slice_accuracy", "max_slice_regression"):
            if self.slices == () and getattr(self, key) is not None:
                raise ValueError(
                    f"evaluate.{key} is set and evaluate.slices is empty: nothing would be judged; "
                    "name what to slice by, or leave evaluate.slices out"
                )
        return self


class Serving(Section):
    """How the exported model is tried in a clean process before the push."""

    check_images: int = Field(64, ge=1, description="Real files served through the export.")
    tolerance: float = Field(
        1e-4, gt=0, description="Largest difference of a probability from evaluation's."
    )
    agreement_images: int = Field(
        256,
        ge=0,
        description="Test images that also go training's way, through the transform graph and the "
        "Keras network; 0 leaves that comparison out.",
    )
    agreement_tolerance: float = Field(
        1e-3, gt=0, description="Largest difference of a probability from training's way."
    )
    latency_requests: int = Field(
        0,
        ge=0,
        le=10_000,
        description="Timed requests of 1 and of 32 images each, to the model and to the champion "
        "in turns; 0 times none.",
    )
    max_latency_ratio: float | None = Field(
        None,
        gt=0,
        description="Latency of a request, in multiples of the champion's, above which a model is "
        "blocked.",
    )
    max_size_ratio: float | None = Field(
        None,
        gt=0,
        description="Size of the SavedModel, in multiples of the champion's, above which a model "
        "is blocked.",
    )

    @model_validator(mode="after")
    def _keys_that_go_together(self) -> Serving:
        if self.max_latency_ratio is not None and self.latency_requests < 10:
            raise ValueError(
                f"serving.max_latency_ratio needs requests to time, and serving.latency_requests "
                f"is {self.latency_requests}; expected at least 10, as in 50"
            )
        return self


class Push(Section):
    """Where a blessed model goes."""

    model_name: str = Field(
        "model",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        description="The directory below serving/ and the name that TF Serving serves: letters, "
        "digits, _, . and -; a letter or a digit first.",
    )
