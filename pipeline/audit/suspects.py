"""Which labels are probably wrong: confident learning on out-of-fold probabilities, by cleanlab.

Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels",
Journal of Artificial Intelligence Research 70 (2021).
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.audit.source import Images
from pipeline.ingest import corrections

COLUMNS: Final = (
    corrections.PATH,
    corrections.LABEL,
    corrections.SUGGESTED,
    "quality",
    "label_probability",
    "suggested_probability",
    "split",
    corrections.ACTION,
)

_FILTER: Final = "prune_by_noise_rate"


@dataclass(frozen=True)
class Suspect:
    """An image whose label is probably wrong.

    Attributes:
      row: of the image.
      label: what the data says.
      suggested: what the models of the other folds say.
      quality: of the label, 0 to 1; low is bad.
      label_probability: of `label`, by those models.
      suggested_probability: of `suggested`.
    """

    row: int
    label: str
    suggested: str
    quality: float
    label_probability: float
    suggested_probability: float


def find(
    labels: Sequence[str], probabilities: npt.NDArray[np.float32], classes: Sequence[str]
) -> list[Suspect]:
    """Returns the suspects, the worst label first.

    Args:
      labels: class names [images].
      probabilities: out of fold, [images, classes].
      classes: names, in the order of the columns; those that no image has are left out.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    present = set(labels)
    here = [index for index, name in enumerate(classes) if name in present]
    names = [classes[index] for index in here]
    number = {name: index for index, name in enumerate(names)}
    given = np.array([number[label] for label in labels], np.int64)
    chances = probabilities[:, here].astype(np.float64)
    chances /= chances.sum(axis=1, keepdims=True)
    with warnings.catch_warnings():
        # It warns of each class of few images, by its number here.
        warnings.filterwarnings("ignore", "May not flag all label issues")
        wrong = find_label_issues(given, chances, filter_by=_FILTER, n_jobs=1)
    quality = get_label_quality_scores(given, chances)
    best = chances.argmax(axis=1)
    # What the models call by its own label is no suspect, whatever its probability.
    rows = np.flatnonzero(wrong & (best != given))
    found = [
        Suspect(
            row=int(row),
            label=names[given[row]],
            suggested=names[best[row]],
            quality=float(quality[row]),
            label_probability=float(chances[row, given[row]]),
            suggested_probability=float(chances[row, best[row]]),
        )
        for row in rows
    ]
    return sorted(found, key=lambda one: (one.quality, -one.suggested_probability, one.row))


def decided_before(file: Path) -> list[dict[str, Any]]:
    """Returns the rows of an earlier table that decide something, as they stand there.

    Raises:
      DataRefused: as of `corrections.read`.
    """
    lines = {one.line for one in corrections.read(file).values()}
    return [
        {column: row.get(column) or "" for column in COLUMNS}
        for line, row in corrections.rows(file)
        # Ingest has nothing to do about a label that stays: the person has decided all the same.
        if line in lines or str(row[corrections.ACTION]).strip().lower() == corrections.KEEP
    ]


def write(
    path: Path,
    suspects: Sequence[Suspect],
    images: Images,
    before: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Writes the table of corrections: what was decided before, then the suspects, undecided.

    Args:
      path: a .csv file.
      suspects: of `find`.
      images: that they are rows of.
      before: rows of an earlier table, which this one takes the place of.
    """
    temporary = path.with_name(f".{path.name}.new")
    # Paths may be no UTF-8: they are written with the bytes that they have.
    with open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(before)
        for one in suspects:
            values = (
                images.ids[one.row].decode("utf-8", "surrogateescape"),
                one.label,
                one.suggested,
                f"{one.quality:.4f}",
                f"{one.label_probability:.4f}",
                f"{one.suggested_probability:.4f}",
                images.splits[one.row],
                "",
            )
            writer.writerow(dict(zip(COLUMNS, values, strict=True)))
    temporary.replace(path)
