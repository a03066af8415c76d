"""The section calibration: how far probabilities can be trusted, and when to say `unknown`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Section


class Calibration(Section):
    """How the label's probabilities are calibrated, and what they are held to."""

    method: Literal["off", "temperature"] = Field(
        "off",
        description="`temperature`: one number, fitted on the split calib, sharpens or softens the "
        "probabilities inside the exported model.",
    )
    share: float = Field(
        0.1,
        gt=0,
        le=0.5,
        description="Share of train's images that ingest keeps apart as the split calib, by hash; "
        "only where a method or a target precision is set.",
    )
    max_ece: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Expected calibration error on test above which a model is blocked; what "
        "chance alone makes of it is taken off first.",
    )
    target_precision: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of right answers among those that the model gives: below a confidence "
        "found on calib its label is `unknown`.",
    )
    min_answered: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of the test images that a model with a target precision must answer.",
    )
    confidence: float = Field(
        0.95,
        gt=0.5,
        lt=1,
        description="Of the lower bound of that precision, on calib and again on test.",
    )

    @property
    def on(self) -> bool:
        """Whether a split calib is needed."""
        return self.method != "off" or self.target_precision is not None

    @property
    def carved(self) -> float:
        """Returns the share of train that goes to calib; 0 where that isn't needed."""
        return self.share if self.on else 0.0

    def fitting(self) -> dict[str, Any]:
        """Returns what decides the model: the other keys re-run no training."""
        return self.model_dump(mode="json", include={"method", "target_precision", "confidence"})

    @model_validator(mode="after")
    def _keys_that_go_together(self) -> Calibration:
        # Compared, not looked up among the keys that were set: a dumped configuration sets each.
        default = type(self).model_fields["min_answered"].default
        if self.min_answered != default and self.target_precision is None:
            raise ValueError(
                "calibration.min_answered is a share of what a model with a threshold answers; set "
                "calibration.target_precision too, or leave it out"
            )
        return self
