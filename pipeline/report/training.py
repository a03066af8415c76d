"""How the model was fitted: curves, and what each epoch reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pipeline.report import figures, formats
from pipeline.report.collect import Record
from pipeline.report.figures import Series


@dataclass(frozen=True)
class Training:
    """What the section shows; `epochs` are history.json's rows."""

    preset: str
    epochs: list[dict[str, Any]]
    best: dict[str, Any] | None
    loss: Markup
    accuracy: Markup
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
    return Training(
        preset=record.request.config["train"]["preset"] or "",
        epochs=epochs,
        best=best,
        loss=_curve(epochs, best, "loss", "Loss", formats.short),
        accuracy=_curve(epochs, best, "accuracy", "Accuracy", formats.percent_tick),
        stopped_early=bool(history.get("stopped_early")),
        resumed_from=history.get("resumed_from"),
        seconds=history.get("seconds"),
        images_per_second=history.get("images_per_second"),
    )


def _curve(
    epochs: list[dict[str, Any]],
    best: dict[str, Any] | None,
    key: str,
    name: str,
    y_format: figures.Format,
) -> Markup:
    series = [Series("train", [row.get(key) for row in epochs])]
    series.append(Series("eval", [row.get(f"eval_{key}") for row in epochs]))
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
        best=float(best["epoch"]) if best and len(epochs) > 1 else None,
    )
