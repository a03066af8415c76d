"""The images whose answer changed against the champion, as pictures: those lost first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.report import pictures
from pipeline.report.collect import Record
from pipeline.report.pictures import Picture

_SHOWN = 24


@dataclass(frozen=True)
class Flip:
    """An image that one of the two models alone names rightly.

    `confidence` is this model's, in the answer that it gives now.
    """

    id: str
    label: str
    before: str
    now: str
    confidence: float | None
    picture: Picture | None

    @property
    def lost(self) -> bool:
        """Whether the champion was right and this model is not."""
        return self.before == self.label


@dataclass(frozen=True)
class Flipped:
    """Some of `lost` images that the champion alone had right, and of `gained` that it had not."""

    lost: int
    gained: int
    shown: list[Flip]


def build(record: Record) -> Flipped | None:
    """Returns the flipped images, or None where the gate recorded none."""
    told = (record.verdict or {}).get("flipped")
    if not told or not told.get("lost", 0) + told.get("gained", 0):
        return None
    rows = told.get("images", [])[:_SHOWN]
    stored = record.stored_by_name(row["id"] for row in rows)
    shown = []
    for row in rows:
        image = stored.get(row["id"])
        shown.append(_flip(row, pictures.of_file(image.encoded) if image else None))
    return Flipped(lost=told.get("lost", 0), gained=told.get("gained", 0), shown=shown)


def _flip(row: Mapping[str, Any], picture: Picture | None) -> Flip:
    return Flip(
        id=row["id"],
        label=row["label"],
        before=row["was"],
        now=row["is"],
        confidence=row.get("confidence"),
        picture=picture,
    )
