"""The section explain: pictures of what the model looked at."""

from __future__ import annotations

from pydantic import Field

from pipeline.config.base import Section


class Explain(Section):
    """Which answers are explained, and how exactly."""

    images: int = Field(
        0,
        ge=0,
        le=200,
        description="Test images to explain: the surest mistakes, and answers that differ from "
        "the champion's; 0 explains none.",
    )
    steps: int = Field(
        64,
        ge=8,
        le=1024,
        description="Steps of the integral of integrated gradients: more are more exact.",
    )
