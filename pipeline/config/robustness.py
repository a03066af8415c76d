"""The section of how a model bears pictures that are worse than those of the test split."""

from __future__ import annotations

from pydantic import Field, model_validator

from pipeline.config.base import Section

# Fewer tell nothing: 30 images leave a share of one half uncertain by 15 points to either side.
_FEWEST = 30


class Robustness(Section):
    """Test images under noise, blur, JPEG compression, brightness and contrast."""

    images: int = Field(
        0, ge=0, description="Test images to spoil in 15 ways each, evenly by class; 0 is off."
    )
    min_accuracy: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Floor for the lower confidence bound of the mean accuracy over the 15 ways.",
    )
    max_regression: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Mean accuracy over the 15 ways that a challenger may lose against the "
        "champion on the same spoiled images.",
    )

    @model_validator(mode="after")
    def _enough_images(self) -> Robustness:
        if 0 < self.images < _FEWEST:
            raise ValueError(
                f"robustness.images is {self.images}: so few tell nothing; expected 0 (off) or at "
                f"least {_FEWEST}"
            )
        for key in ("min_accuracy", "max_regression"):
            if getattr(self, key) is not None and not self.images:
                raise ValueError(
                    f"robustness.{key} is set and robustness.images is 0: nothing would be "
                    "judged; set robustness.images=1000, or leave the threshold out"
                )
        return self
