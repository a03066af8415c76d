"""The steps of train.augment: each a name and its options, checked as they are read."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator

from pipeline.config.base import Section


class Step(Section):
    """One step of an augmentation policy."""

    mixes_labels: ClassVar[bool] = False

    name: str


def _read(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Augmentation = Annotated[Step, BeforeValidator(_read)]
