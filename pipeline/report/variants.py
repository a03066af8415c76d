"""The variants: smaller or faster models made of this one, each judged by itself."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.report import outcome
from pipeline.report.collect import Record
from pipeline.report.outcome import Check


@dataclass(frozen=True)
class Variant:
    """One variant: `drop` is the accuracy that it lost, with its interval.

    `ratio` is its p50 latency, `size_ratio` its size, each as a share of the SavedModel's.
    """

    name: str
    file: str
    size: int | None
    size_ratio: float | None
    accuracy: float | None
    drop: float | None
    low: float | None
    high: float | None
    p50: float | None
    ratio: float | None
    blessed: bool
    checks: list[Check]

    @property
    def failed(self) -> list[Check]:
        """The checks that it did not pass."""
        return [check for check in self.checks if not check.passed]


def build(record: Record) -> list[Variant]:
    """Returns the variants in their order; none where none was made."""
    told = (record.json("variants") or {}).get("variants") or {}
    return [
        Variant(
            name=name,
            file=row.get("file") or "",
            size=row.get("bytes"),
            size_ratio=row.get("size_ratio"),
            accuracy=row.get("accuracy"),
            drop=row.get("drop"),
            low=row.get("lower"),
            high=row.get("upper"),
            p50=row.get("p50_ms"),
            ratio=row.get("ratio"),
            blessed=bool(row.get("blessed")),
            checks=outcome.checks(row),
        )
        for name, row in told.items()
    ]
