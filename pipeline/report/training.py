"""How the model was fitted: curves, and what each epoch reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pipeline.heads import LABEL
from pipeline.report import figures, formats
from pipeline.report.collect import Record
from pipeline.report.figures import Series


@dataclass(frozen=True)
class Phase:
    """A part of training: `last` is its last epoch, `unfreeze` what of the backbone it trained."""

    name: str
    first: int
    last: int
    unfreeze: str
    learning_rate: float | None
    parameters: int | None


@dataclass(frozen=True)
class Training:
    """What the section shows; `epochs` are history.json's rows, `charts` are (name, chart)."""

    network: str
    epochs: list[dict[str, Any]]
    best: dict[str, Any] | None
    charts: list[tuple[str, Markup]]
    phases: list[Phase]
    stopped_early: bool
    resumed_from: int | None
    seconds: float | None
    images_per_second: float | None


def build(record: Record) -> Training | None:
    """Returns the training section, or None if there is no history."""
    history = record.json("history")
    if not history or not history.get("epochs"):
        return None
    epochs = history["epochs"]
    best = next((row for row in epochs if row["epoch"] == history.get("best_epoch")), None)
    phases = _phases(history.get("phases") or [])
    return Training(
        network=_network(record.request.config["train"]),
        epochs=epochs,
        best=best,
        charts=_charts(epochs, best, phases),
        phases=phases if len(phases) > 1 else [],
        stopped_early=bool(history.get("stopped_early")),
        resumed_from=history.get("resumed_from"),
        seconds=history.get("seconds"),
        images_per_second=history.get("images_per_second"),
    )


def _network(train: dict[str, Any]) -> str:
    named = (train.get(key) for key in ("model", "feature_vector", "backbone", "preset"))
    return next((str(name) for name in named if name), "")


def _phases(told: list[dict[str, Any]]) -> list[Phase]:
    return [
        Phase(
            name=str(phase["name"]),
            first=int(phase["first_epoch"]),
            last=int(phase["first_epoch"]) + int(phase["epochs"]) - 1,
            unfreeze=str(phase.get("unfreeze") or ""),
            learning_rate=phase.get("learning_rate"),
            parameters=phase.get("trainable_parameters"),
        )
        for phase in told
        if phase.get("epochs")
    ]


def _charts(
    epochs: list[dict[str, Any]], best: dict[str, Any] | None, phases: list[Phase]
) -> list[tuple[str, Markup]]:
    """Returns the curves of loss and accuracy, and one for each further head."""
    starts = [(phase.first - 0.5, phase.name) for phase in phases] if len(phases) > 1 else []
    mark = float(best["epoch"]) if best and len(epochs) > 1 else None
    found = [
        ("Loss", _curve(epochs, epochs, "loss", "Loss", formats.short, mark, starts)),
        (
            "Accuracy",
            _curve(epochs, epochs, "accuracy", "Accuracy", formats.percent_tick, mark, starts),
        ),
    ]
    for head in epochs[-1].get("heads") or {}:
        if head == LABEL:
            continue
        rows = [(row.get("heads") or {}).get(head, {}) for row in epochs]
        key, kind, written = (
            ("accuracy", "accuracy", formats.percent_tick)
            if "accuracy" in rows[-1]
            else ("mae", "mean absolute error", formats.short)
        )
        name = f"{head}: {kind}"
        found.append((name, _curve(epochs, rows, key, name, written, mark, starts)))
    return [(name, chart) for name, chart in found if chart]


def _curve(
    epochs: list[dict[str, Any]],
    rows: list[dict[str, Any]],
    key: str,
    name: str,
    y_format: figures.Format,
    best: float | None,
    starts: list[tuple[float, str]],
) -> Markup:
    """Draws `key` of `rows`, one a row of `epochs`, for train and eval."""
    series = [Series("train", [row.get(key) for row in rows])]
    series.append(Series("eval", [row.get(f"eval_{key}") for row in rows]))
    last = epochs[-1]
    title = f"{name} by epoch: after epoch {last['epoch']}, " + ", ".join(
        f"{line.name} {y_format(line.y[-1])}" for line in series if line.y[-1] is not None
    )
    return figures.line_chart(
        title,
        [float(row["epoch"]) for row in epochs],
        [line for line in series if any(value is not None for value in line.y)],
        y_format,
        "epoch",
        best=best,
        parts=starts,
    )
