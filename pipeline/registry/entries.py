"""What a registry holds and gives, and what becomes of its entries when another is served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.versions import Entry


@dataclass(frozen=True)
class Origin:
    """Where a model that is to be published comes from.

    `data`, `config` and `code` are the fingerprints of its run; `known_classes`, `known_columns`
    and `champion` (a version) are what that run was given.
    """

    by: str
    why: str
    run_id: str
    data: str
    config: str
    code: str
    known_classes: tuple[str, ...] = ()
    champion: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    model_uri: str = ""
    known_columns: Mapping[str, list[str]] = field(default_factory=dict)

    def inputs(self) -> dict[str, Any]:
        """Returns what the run was given, as its entry records it."""
        given = {"known_classes": list(self.known_classes), "champion": self.champion}
        return {**given, **({"known_columns": self.known_columns} if self.known_columns else {})}


@dataclass(frozen=True)
class Pin:
    """Why the version that is served may not be replaced, since when (UTC) and by whom."""

    version: int
    by: str
    why: str
    since: str


@dataclass(frozen=True)
class RunInputs:
    """What a run is given: class names whose order it keeps, and the version to beat.

    `champion_uri` is the directory of that version, "" where there is none. `known_columns` has
    the classes of a manifest's further columns, which the class heads of train.heads learn.
    """

    known_classes: tuple[str, ...] = ()
    champion_version: int | None = None
    champion_uri: str = ""
    known_columns: Mapping[str, list[str]] = field(default_factory=dict)


def live(entries: list[Entry], version: int | None) -> list[Entry]:
    """Returns the entries as `version` is served, and no other."""
    return [
        replace(entry, status="live") if entry.version == version else entry
        for entry in _retired(entries)
    ]


def _retired(entries: list[Entry]) -> list[Entry]:
    """Returns the entries as none of them is served; what another rolled back is marked so."""
    bad = {entry.rolls_back for entry in entries}
    return [
        replace(entry, status="rolled_back")
        if entry.version in bad
        else replace(entry, status="retired")
        if entry.status == "live"
        else entry
        for entry in entries
    ]
