"""What the model has forgotten: its accuracy on the test images of a window's older spans."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.report.collect import Record


@dataclass(frozen=True)
class OlderSpan:
    """An older span: both models' accuracies on its test images.

    `low` and `high` bound the difference; `floor` is what the accuracy must not surely lie below.
    """

    name: str
    images: int
    accuracy: float
    champion: float | None
    low: float | None
    high: float | None
    floor: float | None
    passed: bool

    @property
    def difference(self) -> float | None:
        """The challenger's accuracy less the champion's."""
        return None if self.champion is None else self.accuracy - self.champion


@dataclass(frozen=True)
class Older:
    """The older spans in their order; `allowed` is the fall that is accepted, None if any is."""

    spans: list[OlderSpan]
    allowed: float | None

    @property
    def failed(self) -> int:
        """How many spans are surely forgotten."""
        return sum(not span.passed for span in self.spans)

    @property
    def compared(self) -> bool:
        """Whether there is a champion's accuracy to show."""
        return any(span.champion is not None for span in self.spans)


def build(record: Record) -> Older | None:
    """Returns the older spans, or None where the gate was given none."""
    told = (record.verdict or {}).get("forgetting")
    if not told:
        return None
    allowed = record.request.config["evaluate"].get("max_forgetting") or None
    spans = []
    for row in told:
        before = row.get("champion")
        spans.append(
            OlderSpan(
                name=row["span"],
                images=row["images"],
                accuracy=row["accuracy"],
                champion=before,
                low=row.get("lower"),
                high=row.get("upper"),
                floor=None if before is None or allowed is None else max(before - allowed, 0.0),
                passed=bool(row["passed"]),
            )
        )
    return Older(spans, allowed)
