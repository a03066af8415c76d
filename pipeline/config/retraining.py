"""The sections of retraining: retrain and monitor."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import Section


class Retrain(Section):
    """When a new model is trained, on what, and what holds it back."""

    pattern: str = Field(
        "span-{SPAN}",
        pattern=r"\{SPAN\}|\{DD\}",
        description="Where a span lies below the folder of spans: {SPAN} or {YYYY}, {MM} and {DD}, "
        "and {VERSION} if there are several, stand for digits.",
    )
    settle_minutes: float = Field(
        10.0, ge=0, description="A span without _SUCCESS is complete when unchanged for so long."
    )
    window: Literal["all", "rolling", "list"] = Field(
        "all", description="Which spans train: all, the newest `rolling` ones, or those in `spans`."
    )
    rolling: int = Field(5, ge=1, description="window=rolling: how many spans.")
    spans: tuple[int, ...] = Field((), description="window=list: the spans' numbers.")
    golden: str = Field(
        "", description="A folder of labelled images that always judge, and never train."
    )
    new_spans: int = Field(1, ge=0, description="New spans that make a training due; 0: never.")
    new_images: int = Field(0, ge=0, description="Images in new spans that do; 0: never.")
    growth: float = Field(
        0.0,
        ge=0,
        description="Images in new spans that do, as a share of those that the champion comes "
        "from: 0.5, say; 0: never.",
    )
    max_age_days: float = Field(0.0, ge=0, description="Age of the champion that does; 0: never.")
    cron: str = Field("", description="Five fields (UTC): a training is due at each; empty: never.")
    label_drift: float = Field(
        0.0, ge=0, le=1, description="L-infinity distance of a new span's classes; 0: not watched."
    )
    fact_drift: float = Field(
        0.0, ge=0, le=1, description="Jensen-Shannon divergence of a fact; 0: not watched."
    )
    embedding_drift: float = Field(
        0.0,
        ge=0,
        description="Distance of a new span in the champion's own features, as a multiple of what "
        "chance shows: 1.5, say; 0: not watched.",
    )
    new_classes: bool = Field(
        False, description="A class that the champion does not know makes a training due."
    )
    accuracy_drop: float = Field(
        0.0,
        ge=0,
        le=1,
        description="The champion's accuracy on a new span lies below its own by so much, beyond "
        "chance; 0: not watched.",
    )
    label_noise: float = Field(
        0.2,
        ge=0,
        le=1,
        description="The champion is sure of other classes than the labels say on so much more of "
        "a new span than is usual, and the images look as ever: quarantine; 0: not watched.",
    )
    runs_per_day: int = Field(4, ge=1, description="Most trainings in 24 hours.")
    backoff_minutes: float = Field(
        30.0, ge=0, description="Pause after a failed run; it doubles with each that follows."
    )
    max_backoff_hours: float = Field(24.0, gt=0, description="Longest such pause.")
    start: Literal["warm", "cold", "both"] = Field(
        "warm",
        description="From the champion's weights where network and classes allow, or anew; both: "
        "one of each, and the better on eval goes on.",
    )
    poll_seconds: float = Field(
        60.0, gt=0, description="--watch looks at least so often; file events wake it sooner."
    )
    port: int = Field(
        9108, ge=0, le=65535, description="--watch: health and metrics on 127.0.0.1; 0: a free one."
    )

    @field_validator("pattern")
    @classmethod
    def _a_number_or_a_whole_date(cls, value: str) -> str:
        missing = [name for name in ("{YYYY}", "{MM}", "{DD}") if name not in value]
        if "{SPAN}" not in value and missing:
            raise ValueError(
                f"without {', '.join(missing)} it names no day; expected {{SPAN}}, or all of "
                "{YYYY}, {MM} and {DD}"
            )
        return value

    @field_validator("cron")
    @classmethod
    def _five_fields(cls, value: str) -> str:
        if value:
            from croniter import croniter

            if len(value.split()) != 5 or not croniter.is_valid(value):
                raise ValueError("expected five fields of cron, as in '0 3 * * *'")
        return value

    @model_validator(mode="after")
    def _what_goes_together(self) -> Retrain:
        if self.window == "list" and not self.spans:
            raise ValueError("retrain.window is 'list', and retrain.spans names no span")
        return self


class Monitor(Section):
    """What `safelight monitor` says of logged requests."""

    min_requests: int = Field(200, ge=1, description="Fewer requests tell nothing.")
    max_class_shift: float = Field(
        0.1, gt=0, le=1, description="L-infinity distance of predicted classes from training's."
    )
    max_fact_drift: float = Field(
        0.1, gt=0, le=1, description="Jensen-Shannon divergence of a fact from training's."
    )
    max_score_drop: float = Field(
        0.1, gt=0, le=1, description="Fall of the mean score against the blessing's own test."
    )
    label_next: int = Field(100, ge=1, description="Images in the manifest of what to label next.")
