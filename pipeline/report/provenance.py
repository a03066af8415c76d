"""Where the model comes from: fingerprints, seed, versions, and the whole configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.report import formats
from pipeline.report.collect import Record, without_secrets


@dataclass(frozen=True)
class Setting:
    """A key of the effective configuration, and who set it."""

    key: str
    value: str
    origin: str


@dataclass(frozen=True)
class Provenance:
    """What would have to be the same for the run to be the same."""

    data: str
    lineage: dict[str, str]
    seed: int | None
    model: str
    known_classes: list[str]
    champion: int | None
    versions: dict[str, str]
    settings: list[Setting]
    changed: int


def build(record: Record) -> Provenance:
    """Returns what run.json records, and the model's own fingerprint if there is a model."""
    request = record.request
    settings = list(_settings(request.config, request.origins, request.chosen))
    return Provenance(
        data=without_secrets(request.data),
        lineage=request.lineage,
        seed=request.config.get("train", {}).get("seed"),
        model=record.predictions.model if record.predictions else "",
        known_classes=list(request.inputs.get("known_classes", [])),
        champion=request.inputs.get("champion"),
        versions=request.versions,
        settings=settings,
        changed=sum(setting.origin != "default" for setting in settings),
    )


def _settings(
    config: dict[str, dict[str, Any]], origins: dict[str, str], chosen: list[str]
) -> list[Setting]:
    from_data = {line.partition(" = ")[0] for line in chosen}
    found = []
    for section, keys in config.items():
        for name, value in keys.items():
            key = f"{section}.{name}"
            default = "chosen from the data" if key in from_data else "default"
            text = without_secrets(formats.setting(value))
            found.append(Setting(key, text, origins.get(key, default)))
    return found
