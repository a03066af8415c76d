"""What `safelight predict` gives: lines, one JSON object, a CSV or a Parquet file."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import console
from pipeline.errors import UsageError
from pipeline.predictions import Floats

_SHOWN = 20


@dataclass(frozen=True)
class Prediction:
    """What the model says about one file, or why it could not be asked.

    Attributes:
      path: as it was given, or found in a folder that was given.
      label: the most probable class; None for a file that can't be used.
      probabilities: float32 [classes], in the order of the model's classes.
      reason: one of images.REASONS, `missing` or `refused` (by the model); None where all is well.
      detail: why, in a few words.
    """

    path: str
    label: str | None = None
    probabilities: Floats | None = None
    reason: str | None = None
    detail: str | None = None

    @property
    def score(self) -> float | None:
        """Returns the probability of `label`."""
        return None if self.probabilities is None else float(self.probabilities.max())


def write(path: Path, predictions: Sequence[Prediction], classes: Sequence[str]) -> None:
    """Writes all predictions beside `path` (.csv or .parquet), then renames.

    A CSV has a column for each class, named after it; a Parquet file a list `probabilities` in the
    order of the schema metadata's `classes`.

    Raises:
      UsageError: another suffix, or the folder can't be written to.
    """
    check_output(path)
    temporary = path.with_name(f".{path.name}.new")
    try:
        if path.suffix.lower() == ".csv":
            _write_csv(temporary, predictions, classes)
        else:
            _write_parquet(temporary, predictions, classes)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(f"--output {path} can't be written: {error.strerror}.") from error


def check_output(output: Path | None) -> None:
    """Says so early if the output can't be written.

    Raises:
      UsageError: another suffix than .csv or .parquet, or a folder that is not there.
    """
    if output is None:
        return
    if output.suffix.lower() not in (".csv", ".parquet"):
        raise UsageError(f"--output {output}: expected a name that ends in .csv or .parquet.")
    if not output.absolute().parent.is_dir():
        raise UsageError(f"--output {output}: there is no folder {output.absolute().parent}.")


def _write_csv(path: Path, predictions: Sequence[Prediction], classes: Sequence[str]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "score", "reason", "detail", *classes])
        for one in predictions:
            given = [""] * len(classes) if one.probabilities is None else one.probabilities.tolist()
            writer.writerow([one.path, one.label, one.score, one.reason, one.detail, *given])


def _write_parquet(path: Path, predictions: Sequence[Prediction], classes: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("path", pa.string()),
            ("label", pa.string()),
            ("score", pa.float32()),
            ("reason", pa.string()),
            ("detail", pa.string()),
            ("probabilities", pa.list_(pa.float32())),
        ],
        metadata={"classes": json.dumps(list(classes))},
    )
    columns = {name: [getattr(one, name) for one in predictions] for name in schema.names}
    pq.write_table(pa.table(columns, schema=schema), path)


def as_json(
    predictions: Sequence[Prediction], classes: Sequence[str], model_dir: Path, top: int
) -> dict[str, Any]:
    """Returns what --json prints: `model`, `predictions` and `bad`."""
    return {
        "model": str(model_dir),
        "predictions": [
            {
                "path": one.path,
                "label": one.label,
                "score": one.score,
                "top": [{"label": name, "probability": p} for name, p in _top(one, classes, top)],
            }
            for one in predictions
            if one.reason is None
        ],
        "bad": [
            {"path": one.path, "reason": one.reason, "detail": one.detail}
            for one in predictions
            if one.reason is not None
        ],
    }


def show(predictions: Sequence[Prediction], classes: Sequence[str], top: int, whole: bool) -> None:
    """Prints a line a file: path, then the first classes with their probabilities."""
    for one in predictions if whole else predictions[:_SHOWN]:
        if one.reason is not None:
            console.stderr.print(f"{one.path}: {one.reason}: {one.detail}", markup=False)
            continue
        told = "  ".join(f"{name} {p:.1%}" for name, p in _top(one, classes, top))
        sys.stdout.write(f"{one.path}\t{told}\n")
    if not whole and len(predictions) > _SHOWN:
        console.stderr.print(f"… and {len(predictions) - _SHOWN:,} more in the output file")


def _top(one: Prediction, classes: Sequence[str], top: int) -> list[tuple[str, float]]:
    if one.probabilities is None:
        return []
    best = np.argsort(-one.probabilities, kind="stable")[:top]
    return [(classes[index], float(one.probabilities[index])) for index in best]
