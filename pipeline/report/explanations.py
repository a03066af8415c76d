"""What the model looked at: each picture beside its Grad-CAM and its saliency."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.report import pictures
from pipeline.report.collect import Record
from pipeline.report.pictures import Picture

_SHOWN = 12


@dataclass(frozen=True)
class Explanation:
    """One image; `why` is mistake or flipped, a picture is None where there is none.

    `was` is the champion's answer, or "".
    """

    id: str
    why: str
    label: str
    predicted: str
    was: str
    confidence: float | None
    picture: Picture | None
    gradcam: Picture | None
    saliency: Picture | None


@dataclass(frozen=True)
class Explanations:
    """Some of `total` explained images; `message` says why there is none."""

    shown: list[Explanation]
    total: int
    message: str = ""


def build(record: Record) -> Explanations | None:
    """Returns the explanations, or None where none was made."""
    told, path = record.json("explanations"), record.path("explanations")
    if told is None or path is None:
        return None
    rows = told.get("images") or []
    shown = [
        Explanation(
            id=row["id"],
            why=row["why"],
            label=row["label"] or "",
            predicted=row["predicted"],
            was=row.get("was") or "",
            confidence=row.get("confidence"),
            picture=_picture(path.parent, row.get("picture")),
            gradcam=_picture(path.parent, row.get("gradcam")),
            saliency=_picture(path.parent, row.get("saliency")),
        )
        for row in rows[:_SHOWN]
    ]
    return Explanations(shown, len(rows), told.get("message") or "")


def _picture(folder: Path, name: str | None) -> Picture | None:
    if not name:
        return None
    # The bare name: a file that is not the artifact's own is not shown.
    path = folder / Path(name).name
    return pictures.of_file(path.read_bytes()) if path.is_file() else None
