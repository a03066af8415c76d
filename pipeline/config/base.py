"""What every section of the configuration is."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Mode = Literal["off", "warn", "fail"]


class Section(BaseModel):
    """A frozen group of keys; an unknown key is an error."""

    # Validators are built where a configuration is first read, as --help reads none.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)
