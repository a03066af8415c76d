"""What train.heads asks of the other sections: the columns of the data, and the thresholds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pipeline.errors import bounded, did_you_mean

if TYPE_CHECKING:
    from pipeline.config.data import Ingest
    from pipeline.config.judging import Evaluate
    from pipeline.config.training import Head, Train

# What a class head gives beside `<name>`, in the signatures and in predictions.parquet.
_BESIDE = ("score", "classes", "probabilities", "predicted")
_THRESHOLDS = {
    "class": ("min_accuracy", "min_class_recall", "max_regression"),
    "regression": ("max_mae", "max_regression"),
}


def check(train: Train, ingest: Ingest, evaluate: Evaluate) -> None:
    """Refuses heads, data and thresholds that don't go together.

    Raises:
      ValueError: a message that names the keys.
    """
    _check_outputs(train.heads)
    if train.heads and ingest.form not in ("auto", "manifest"):
        names = bounded([repr(head["name"]) for head in train.heads])
        raise ValueError(
            f"train.heads asks for {names}, whose targets are columns of a manifest, and "
            f"ingest.form is {ingest.form!r}; set it to 'manifest' or 'auto', or leave "
            "train.heads out"
        )
    kinds = {head["name"]: head["kind"] for head in train.heads}
    for name, thresholds in evaluate.heads.items():
        if name not in kinds:
            hint = did_you_mean(name, kinds) if kinds else " train.heads is empty."
            raise ValueError(f"evaluate.heads.{name}: train.heads has no head {name!r}.{hint}")
        for key in thresholds:
            if key not in _THRESHOLDS[kinds[name]]:
                raise ValueError(
                    f"evaluate.heads.{name}.{key}: {name!r} is a {kinds[name]} head (train.heads), "
                    f"which takes {', '.join(_THRESHOLDS[kinds[name]])}"
                )


def with_columns(train: Train, ingest: Ingest) -> Ingest:
    """Returns the section with the heads' columns to be carried: nobody names them twice."""
    if not train.heads:
        return ingest
    columns = {kind: _columns(train.heads, kind) for kind in _THRESHOLDS}
    return ingest.model_copy(
        update={
            "targets": _joined(ingest.targets, columns["regression"]),
            "class_columns": _joined(ingest.class_columns, columns["class"]),
        }
    )


def _columns(heads: Iterable[Head], kind: str) -> list[str]:
    return [head.get("column", head["name"]) for head in heads if head["kind"] == kind]


def _joined(given: tuple[str, ...], more: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*given, *more)))


def _check_outputs(heads: tuple[Head, ...]) -> None:
    """Refuses two heads that would answer under one name, or read one column."""
    names = {head["name"] for head in heads}
    for head in heads:
        for word in _BESIDE:
            if f"{head['name']}_{word}" in names:
                raise ValueError(
                    f"the head {head['name']!r} of train.heads gives {head['name']}_{word} too, "
                    "which another head is called; choose another name for that one"
                )
    for kind in _THRESHOLDS:
        columns = _columns(heads, kind)
        for column in columns:
            if columns.count(column) > 1:
                raise ValueError(
                    f"two {kind} heads of train.heads read the column {column!r}; "
                    "expected one of each kind"
                )
