"""Accuracy under noise, blur and the like: a small chart a kind, all on one scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pipeline.report import figures, formats
from pipeline.report.collect import Record
from pipeline.report.figures import Series

_CHAMPION, _MODEL = "champion", "model"


@dataclass(frozen=True)
class Level:
    """One strength of one kind: accuracy with its interval, and the champion's."""

    strength: int
    accuracy: float
    low: float
    high: float
    champion: float | None


@dataclass(frozen=True)
class Kind:
    """One way to spoil images, at its strengths."""

    name: str
    levels: list[Level]
    chart: Markup


@dataclass(frozen=True)
class Robustness:
    """What the section shows; `clean` is the accuracy on the same images as they are."""

    images: int
    clean: float | None
    kinds: list[Kind]

    @property
    def compared(self) -> bool:
        """Whether there is a champion's accuracy to show."""
        return any(level.champion is not None for kind in self.kinds for level in kind.levels)


def build(record: Record) -> Robustness | None:
    """Returns the robustness section, or None where it was not measured."""
    told = (record.verdict or {}).get("robustness")
    if not told or not told.get("kinds"):
        return None
    clean = told.get("clean")
    levels = {name: _levels(rows) for name, rows in told["kinds"].items()}
    within = _range(clean, [level for rows in levels.values() for level in rows])
    kinds = [
        Kind(_title(name), rows, _chart(_title(name), clean, rows, within))
        for name, rows in levels.items()
    ]
    return Robustness(images=told.get("images", 0), clean=clean, kinds=kinds)


def _title(kind: str) -> str:
    return "JPEG" if kind == "jpeg" else kind.replace("_", " ").capitalize()


def _levels(rows: Sequence[Mapping[str, Any]]) -> list[Level]:
    found = [
        Level(row["strength"], row["accuracy"], row["lower"], row["upper"], row.get("champion"))
        for row in rows
    ]
    return sorted(found, key=lambda level: level.strength)


def _range(clean: float | None, levels: Sequence[Level]) -> tuple[float, float]:
    ends = [value for level in levels for value in (level.low, level.high, level.champion)]
    known = [value for value in (*ends, clean) if value is not None]
    return min(known), max(known)


def _chart(
    name: str, clean: float | None, levels: Sequence[Level], within: tuple[float, float]
) -> Markup:
    """Draws accuracy over strength; strength 0 is the image as it is."""
    x = [0.0, *(float(level.strength) for level in levels)]
    ours = Series(
        _MODEL,
        [clean, *(level.accuracy for level in levels)],
        ends=[None, *((level.low, level.high) for level in levels)],
    )
    theirs = Series(_CHAMPION, [None, *(level.champion for level in levels)])
    compared = any(value is not None for value in theirs.y)
    worst = levels[-1]
    title = (
        f"Accuracy by strength of {name}: {formats.percent(clean)} without, "
        f"{formats.percent(worst.accuracy)} at strength {worst.strength}"
    )
    # The champion is drawn dashed and grey in every chart, as what the model is held to.
    series = [theirs, ours] if compared else [Series("", [None] * len(x)), ours]
    return figures.line_chart(title, x, series, formats.percent_tick, "strength", within=within)
