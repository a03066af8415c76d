"""What every section of the configuration is."""

from __future__ import annotations

from typing import Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

Mode = Literal["off", "warn", "fail"]
# Of the tables that keys hold. JSON, as which values reach the stages, has no infinity.
TABLE: Final = ConfigDict(extra="forbid", allow_inf_nan=False)


class Section(BaseModel):
    """A frozen group of keys; an unknown key is an error."""

    # Validators are built where a configuration is first read, as --help reads none.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _as_the_schema_says(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[str(info.field_name)]
        kinds = (field.annotation, *get_args(field.annotation))
        if isinstance(value, bool) and bool not in kinds:
            # Else 1 and 0: max_ece = true would switch the bound on, where nothing reaches it.
            raise ValueError(
                "true and false are for switches; `safelight config --schema` says what it takes"
            )
        # What is left to be chosen is shown so: it may be written so, over a profile's value, say.
        return None if value == "auto" and field.default is None else value
