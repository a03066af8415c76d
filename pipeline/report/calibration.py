"""Whether the model is as often right as it says, and which answers it may give."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from pipeline.report import diagrams, formats
from pipeline.report.collect import Record
from pipeline.report.diagrams import Bin


@dataclass(frozen=True)
class Calibration:
    """What the section shows; `threshold` and what follows are None without abstention.

    `by_chance` is the error that a perfectly calibrated model is expected to show on so many
    images, `temperature` what the logits were divided by; `answered` is the share of the images
    whose confidence reaches the threshold, and `precision` the share of those that is right.
    """

    ece: float | None
    by_chance: float | None
    bins: list[Bin]
    chart: Markup
    temperature: float | None
    threshold: float | None
    target: float | None
    precision: float | None
    answered: float | None


def build(record: Record) -> Calibration | None:
    """Returns the calibration section, or None where it was not measured."""
    told = (record.verdict or {}).get("calibration")
    if not told:
        return None
    bins = [
        Bin(row["from"], row["to"], row["confidence"], row["accuracy"], row["count"])
        for row in told.get("bins") or []
    ]
    filled = [it for it in bins if it.count]
    ece = told.get("ece")
    title = "Accuracy over confidence" + (
        f": on average they are {formats.percent(ece)} apart" if ece is not None else ""
    )
    return Calibration(
        ece=ece,
        by_chance=told.get("ece_by_chance"),
        bins=filled,
        chart=diagrams.reliability(title, bins, formats.percent_tick) if filled else Markup(""),
        temperature=told.get("temperature"),
        threshold=told.get("threshold"),
        target=told.get("target_precision"),
        precision=told.get("precision"),
        answered=told.get("answered"),
    )
