"""The suspects as a page of pictures: one file, without scripts or network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.audit.source import Source
from pipeline.audit.suspects import Suspect
from pipeline.report import pictures, records, render
from pipeline.report.collect import readable
from pipeline.report.pictures import Picture

# A page with more takes long to open, and nobody looks through it at one go.
MOST: Final = 500


@dataclass(frozen=True)
class Shown:
    """One suspect on the page; `line` is that of the table."""

    id: str
    split: str
    line: int
    label: str
    suggested: str
    label_probability: float
    suggested_probability: float
    picture: Picture | None


def write(
    path: Path,
    source: Source,
    suspects: Sequence[Suspect],
    *,
    table: str,
    first_line: int,
    folds: int,
    epochs: int,
) -> None:
    """Writes the page.

    Args:
      path: an .html file.
      source: the run that was audited.
      suspects: in the order of the table.
      table: the table's name.
      first_line: the line of the first suspect in it.
      folds: of the audit.
      epochs: that each fold was trained for, at most.
    """
    images = source.images
    stored = _stored(source, suspects[:MOST])
    shown = [
        Shown(
            id=readable(images.ids[one.row]),
            split=images.splits[one.row],
            line=first_line + number,
            label=readable(one.label),
            suggested=readable(one.suggested),
            label_probability=one.label_probability,
            suggested_probability=one.suggested_probability,
            picture=stored.get(one.row),
        )
        for number, one in enumerate(suspects[:MOST])
    ]
    context = {
        "run_id": source.request.run_id,
        "images": len(images.ids),
        "total": len(suspects),
        "shown": shown,
        "table": table,
        "folds": folds,
        "epochs": epochs,
    }
    render.replace(path, render.render("suspects.html.j2", context))


def _stored(source: Source, suspects: Sequence[Suspect]) -> dict[int, Picture]:
    """Returns the pictures of the suspects by their rows, as far as they can be read."""
    images = source.images
    rows: dict[tuple[str, int], int] = {
        (images.splits[one.row], images.places[one.row]): one.row for one in suspects
    }
    found: dict[int, Picture] = {}
    for split in sorted({split for split, _ in rows}):
        places = [place for of_split, place in rows if of_split == split]
        for place, image in records.each(source.examples, split, places):
            picture = pictures.of_file(image.encoded)
            if picture is not None:
                found[rows[split, place]] = picture
    return found
