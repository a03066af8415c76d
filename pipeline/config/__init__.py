"""The one typed configuration: every key, its default, its meaning and what can't go together.

Read once, at the command line: defaults, then a profile (a name from `pipeline/profiles/` or a
TOML file of your own), then `--set section.key=value`. It reaches the stages as JSON in their
execution properties, so that a change of a value re-runs exactly what reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline import search
from pipeline.config import heads as _heads
from pipeline.config import reading
from pipeline.config import slices as _slices
from pipeline.config.base import Mode, Section
from pipeline.config.calibration import Calibration
from pipeline.config.data import Ingest, Transform, Validation
from pipeline.config.explain import Explain
from pipeline.config.judging import Evaluate, Push, Serving
from pipeline.config.retraining import Monitor, Retrain
from pipeline.config.robustness import Robustness
from pipeline.config.running import Beam, Kubeflow, Metadata, Step
from pipeline.config.training import Train, Tune
from pipeline.config.variants import Variants
from pipeline.errors import ConfigError, did_you_mean
from pipeline.lanes import Traversable, tomllib

__all__ = [
    "Beam",
    "Calibration",
    "Config",
    "Effective",
    "Evaluate",
    "Explain",
    "Ingest",
    "Kubeflow",
    "Metadata",
    "Mode",
    "Monitor",
    "Push",
    "Retrain",
    "Robustness",
    "Section",
    "Serving",
    "Step",
    "Train",
    "Transform",
    "Tune",
    "Validation",
    "Variants",
    "entries",
    "load",
    "profiles",
    "validated",
]


class Config(Section):
    """The whole configuration."""

    ingest: Ingest = Field(default_factory=Ingest)
    validation: Validation = Field(default_factory=Validation)
    transform: Transform = Field(default_factory=Transform)
    tune: Tune = Field(default_factory=Tune)
    train: Train = Field(default_factory=Train)
    calibration: Calibration = Field(default_factory=Calibration)
    evaluate: Evaluate = Field(default_factory=Evaluate)
    serving: Serving = Field(default_factory=Serving)
    robustness: Robustness = Field(default_factory=Robustness)
    explain: Explain = Field(default_factory=Explain)
    variants: Variants = Field(default_factory=Variants)
    push: Push = Field(default_factory=Push)
    retrain: Retrain = Field(default_factory=Retrain)
    monitor: Monitor = Field(default_factory=Monitor)
    metadata: Metadata = Field(default_factory=Metadata)
    beam: Beam = Field(default_factory=Beam)
    kubeflow: Kubeflow = Field(default_factory=Kubeflow)

    @model_validator(mode="after")
    def _keys_that_go_together(self) -> Config:
        size, preset = self.transform.image_size, self.train.preset
        if size is not None and preset is not None and size < 12:
            raise ValueError(
                f"transform.image_size {size} is too small for train.preset {preset!r}: "
                "its two poolings need at least 12 pixels"
            )
        if self.ingest.max_pixels > self.transform.max_pixels:
            raise ValueError(
                f"ingest.max_pixels {self.ingest.max_pixels} is more than transform.max_pixels "
                f"{self.transform.max_pixels}: the model would refuse images that ingest takes"
            )
        try:
            search.check(self.tune, self.train)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        _heads.check(self.train, self.ingest, self.evaluate)
        # Frozen for everybody else: this is still the construction.
        ingest = _heads.with_columns(self.train, self.ingest)
        self.__dict__["ingest"] = _slices.with_columns(self.evaluate, ingest)
        return self


class Effective(BaseModel):
    """A configuration and, for each key set by somebody, who set it."""

    model_config = ConfigDict(frozen=True)

    config: Config
    origins: dict[str, str]

    def origin(self, key: str) -> str:
        """Returns where the value of `section.key` came from."""
        return self.origins.get(key, "default")


def load(
    profile: str | None = None,
    overrides: Sequence[str] = (),
    base: Mapping[str, Mapping[str, Any]] | None = None,
) -> Effective:
    """Reads the configuration: defaults, then the base, then the profile, then the overrides.

    Args:
      profile: the name of a shipped profile, or a path that ends in `.toml`.
      overrides: `section.key=value` each, the value as in TOML (a bare word is a string); of a key
        that holds a table also `section.key.name=value`.
      base: values that were there before, {section: {key: value}}; they count as set by nobody.

    Raises:
      ConfigError: an unknown profile, section or key, or a value that its key refuses.
    """
    values = {section: dict(keys) for section, keys in (base or {}).items()}
    origins: dict[str, str] = {}
    if profile:
        _merge(values, origins, _read_profile(profile), f"profile {profile}")
    for override in overrides:
        key, (section, name, *below), value = reading.override(override)
        said = f"--set {key}"
        if below:
            value = _into_table(values, section, name, below, value)
            # The rest of the table is still somebody else's.
            earlier = origins.get(f"{section}.{name}")
            said = f"{earlier}, {said}" if earlier else said
        _merge(values, origins, {section: {name: value}}, said)
    return Effective(config=validated(values, origins), origins=origins)


def validated(values: Mapping[str, Any], origins: Mapping[str, str] | None = None) -> Config:
    """Returns the configuration of these values, or a ConfigError that names each bad one."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(reading.explain(error, Config, origins or {}, values)) from None


def entries(config: Config) -> Iterator[tuple[str, Any, Any]]:
    """Yields (section.key, value, pydantic's FieldInfo) of every key, in order."""
    for section_name in Config.model_fields:
        section = getattr(config, section_name)
        for name, field in type(section).model_fields.items():
            yield f"{section_name}.{name}", getattr(section, name), field


def profiles() -> list[str]:
    """Returns the names of the shipped profiles."""
    names = (entry.name for entry in _profiles().iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def _profiles() -> Traversable:
    return resources.files("pipeline").joinpath("profiles")


def _read_profile(profile: str) -> dict[str, Any]:
    if profile.endswith(".toml"):
        path = Path(profile)
        if not path.is_file():
            found = "is a folder" if path.is_dir() else "does not exist"
            raise ConfigError(f"The profile {profile} {found}; expected a TOML file.")
        text = _text(path)
    elif profile in profiles():
        text = _profiles().joinpath(f"{profile}.toml").read_text()
    else:
        hint = did_you_mean(profile, profiles())
        raise ConfigError(f"There is no profile {profile!r}.{hint} Or name a FILE.toml.")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"The profile {profile} is not valid TOML: {error}.") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors begin with a mark
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"The profile {path} is not UTF-8 (byte {error.start}: {error.reason}), as TOML is; "
            "save it as UTF-8."
        ) from None
    except OSError as error:
        raise ConfigError(
            f"The profile {path} can't be read: {error.strerror}; expected a TOML file that this "
            "user may read."
        ) from None


def _merge(
    values: dict[str, dict[str, Any]],
    origins: dict[str, str],
    more: Mapping[str, Any],
    origin: str,
) -> None:
    for section, keys in more.items():
        if section not in Config.model_fields:
            raise ConfigError(
                f"{origin}: unknown section {section!r}."
                f"{did_you_mean(section, Config.model_fields)}"
            )
        known = _section_type(section).model_fields
        if not isinstance(keys, Mapping):
            raise ConfigError(f"{origin}: {section!r} is a section; expected keys below it.")
        for key, value in keys.items():
            if key not in known:
                raise ConfigError(
                    f"{origin}: unknown key {section}.{key}.{did_you_mean(key, known)}"
                )
            values.setdefault(section, {})[key] = value
            origins[f"{section}.{key}"] = origin


def _section_type(section: str) -> type[Section]:
    annotation = Config.model_fields[section].annotation
    assert isinstance(annotation, type) and issubclass(annotation, Section)
    return annotation


def _into_table(
    values: Mapping[str, Mapping[str, Any]],
    section: str,
    name: str,
    below: Sequence[str],
    value: Any,
) -> Any:
    """Returns what a key holds, with `value` at `below`; unknown keys are refused by `_merge`."""
    field = (
        _section_type(section).model_fields.get(name) if section in Config.model_fields else None
    )
    if field is None:
        return value
    if not reading.holds_tables(field.annotation):
        raise ConfigError(
            f"--set {'.'.join([section, name, *below])}: {section}.{name} holds no table, so there "
            f"is nothing below it; expected --set {section}.{name}=value."
        )
    held = values.get(section, {}).get(name, field.get_default(call_default_factory=True))
    return reading.placed(held, below, value)
