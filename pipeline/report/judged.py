"""What the final gate found beside its checks: the worst slices, and the classes it mixes up."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.report.collect import Record

_WORST = 12


@dataclass(frozen=True)
class SliceRow:
    """A slice that the gate judged; `champion` is the served version's accuracy on it."""

    feature: str
    bucket: str
    examples: int
    value: float
    low: float
    high: float
    champion: float | None
    passed: bool


@dataclass(frozen=True)
class Slices:
    """The slices, the worst first; `axis` is where the drawing of intervals begins."""

    rows: list[SliceRow]
    axis: float

    @property
    def worst(self) -> list[SliceRow]:
        """Those that are shown at once: all that failed, and the worst of the others."""
        failed = sum(not row.passed for row in self.rows)
        return self.rows[: max(_WORST, failed)]

    @property
    def others(self) -> list[SliceRow]:
        """Those that are folded away."""
        return self.rows[len(self.worst) :]

    @property
    def compared(self) -> bool:
        """Whether there is a champion's accuracy to show."""
        return any(row.champion is not None for row in self.rows)


@dataclass(frozen=True)
class Pair:
    """`count` images of `truth` were called `predicted`; the champion did so `before` times."""

    truth: str
    predicted: str
    count: int
    before: int | None


def slices(record: Record) -> Slices | None:
    """Returns the judged slices, or None where the gate judged none."""
    told = (record.verdict or {}).get("slices")
    if not told:
        return None
    rows = [
        SliceRow(
            feature=row["feature"].replace("_", " "),
            bucket=str(row["bucket"]),
            examples=row["examples"],
            value=row["accuracy"],
            low=row["lower"],
            high=row["upper"],
            champion=row.get("champion"),
            passed=bool(row["passed"]),
        )
        for row in told
    ]
    lowest = min(row.low for row in rows)
    return Slices(rows, axis=min(int(lowest * 10) / 10, 0.9))


def confused(record: Record) -> list[Pair]:
    """Returns the pairs of classes that are confused most often; none where none is recorded."""
    told = (record.verdict or {}).get("confused") or []
    return [
        Pair(row["truth"], row["predicted"], row["count"], row.get("champion_count"))
        for row in told
    ]
