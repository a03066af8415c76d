"""What `safelight predict` gives: lines, one JSON object, a CSV or a Parquet file."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import console
from pipeline.errors import UsageError
from pipeline.evaluator import head_columns
from pipeline.evaluator.head_columns import Classes, Floats, HeadColumns, Values
from pipeline.heads import Head

_SHOWN = 20


@dataclass(frozen=True)
class Prediction:
    """What the model says about one file, or why it could not be asked.

    Attributes:
      path: as it was given, or found in a folder that was given.
      label: the most probable class, or `unknown` where the model isn't sure enough to say; None
        for a file that can't be used.
      probabilities: float32 [classes], in the order of the model's classes.
      reason: one of images.REASONS, `missing` or `refused` (by the model); None where all is well.
      detail: why, in a few words.
      heads: what the heads beside the label say, by name, one row each.
    """

    path: str
    label: str | None = None
    probabilities: Floats | None = None
    reason: str | None = None
    detail: str | None = None
    heads: Mapping[str, HeadColumns] = field(default_factory=dict)

    @property
    def score(self) -> float | None:
        """Returns the probability of the most probable class."""
        return None if self.probabilities is None else float(self.probabilities.max())


def write(
    path: Path,
    predictions: Sequence[Prediction],
    classes: Sequence[str],
    heads: Sequence[Head] = (),
) -> None:
    """Writes all predictions beside `path` (.csv or .parquet), then renames.

    A CSV has a column for each class, named after it (`label: <class>` where another column is
    called so); a Parquet file a list `probabilities` in the
    order of the schema metadata's `classes`. A regression head adds a column of its name, a class
    head also `<name>_score` and its probabilities: in a CSV a column `<name>: <class>` each.

    Raises:
      UsageError: another suffix, or the folder can't be written to.
    """
    check_output(path)
    temporary = path.with_name(f".{path.name}.new")
    try:
        if path.suffix.lower() == ".csv":
            _write_csv(temporary, predictions, classes, heads)
        else:
            _write_parquet(temporary, predictions, classes, heads)
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


def _write_csv(
    path: Path, predictions: Sequence[Prediction], classes: Sequence[str], heads: Sequence[Head]
) -> None:
    further = [name for head in heads for name in _csv_columns(head)]
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        fixed = ["path", "label", "score", "reason", "detail"]
        taken = {*fixed, *further}
        named = [f"label: {name}" if name in taken else name for name in classes]
        writer.writerow([*fixed, *named, *further])
        for one in predictions:
            given = [""] * len(classes) if one.probabilities is None else one.probabilities.tolist()
            more = [value for head in heads for value in _csv_values(head, one)]
            writer.writerow([one.path, one.label, one.score, one.reason, one.detail, *given, *more])


def _csv_columns(head: Head) -> list[str]:
    if head.kind == "regression":
        return [head.name]
    return [head.name, head.score, *(f"{head.name}: {name}" for name in head.classes)]


def _csv_values(head: Head, one: Prediction) -> list[Any]:
    said = one.heads.get(head.name)
    if said is None:
        return [""] * len(_csv_columns(head))
    if isinstance(said, Values):
        return said.predicted.tolist()
    return [said.predicted[0], float(said.probabilities.max()), *said.probabilities[0].tolist()]


def _write_parquet(
    path: Path, predictions: Sequence[Prediction], classes: Sequence[str], heads: Sequence[Head]
) -> None:
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
        metadata={"classes": json.dumps(list(classes)), **head_columns.metadata(heads)},
    )
    columns = {name: [getattr(one, name) for one in predictions] for name in schema.names}
    for head in heads:
        said = [one.heads.get(head.name) for one in predictions]
        kind = pa.float32() if head.kind == "regression" else pa.string()
        schema = schema.append(pa.field(head.name, kind))
        columns[head.name] = [None if row is None else row.predicted[0] for row in said]
        if head.kind == "class":
            schema = schema.append(pa.field(head.score, pa.float32()))
            schema = schema.append(pa.field(head.probabilities, pa.list_(pa.float32())))
            given = [row.probabilities[0] if isinstance(row, Classes) else None for row in said]
            columns[head.score] = [None if row is None else row.max() for row in given]
            columns[head.probabilities] = given
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
                **_heads_as_json(one, top),
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


def _heads_as_json(one: Prediction, top: int) -> dict[str, Any]:
    """Returns `heads`: a class head's label, score and top, a regression head's number."""
    told: dict[str, Any] = {}
    for name, said in one.heads.items():
        if isinstance(said, Values):
            told[name] = float(said.predicted[0])
            continue
        best = _best(said.probabilities[0], said.classes, top)
        told[name] = {
            "label": said.predicted[0],
            "score": float(said.probabilities.max()),
            "top": [{"label": label, "probability": p} for label, p in best],
        }
    return {"heads": told} if told else {}


def show(predictions: Sequence[Prediction], classes: Sequence[str], top: int, whole: bool) -> None:
    """Prints a line a file: path, the first classes with their probabilities, then each head."""
    for one in predictions if whole else predictions[:_SHOWN]:
        if one.reason is not None:
            console.stderr.print(f"{one.path}: {one.reason}: {one.detail}", markup=False)
            continue
        said = [] if one.label in classes else [str(one.label)]
        told = "  ".join([*said, *(f"{name} {p:.1%}" for name, p in _top(one, classes, top))])
        more = "".join(f"\t{name} {_said(said)}" for name, said in one.heads.items())
        sys.stdout.write(f"{one.path}\t{told}{more}\n")
    if not whole and len(predictions) > _SHOWN:
        console.stderr.print(f"… and {len(predictions) - _SHOWN:,} more in the output file")


def _said(said: HeadColumns) -> str:
    if isinstance(said, Values):
        return f"{said.predicted[0]:.4g}"
    return f"{said.predicted[0]} {said.probabilities.max():.1%}"


def _top(one: Prediction, classes: Sequence[str], top: int) -> list[tuple[str, float]]:
    return [] if one.probabilities is None else _best(one.probabilities, classes, top)


def _best(probabilities: Floats, classes: Sequence[str], top: int) -> list[tuple[str, float]]:
    best = np.argsort(-probabilities, kind="stable")[:top]
    return [(classes[index], float(probabilities[index])) for index in best]
