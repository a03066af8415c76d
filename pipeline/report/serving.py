"""The serving check: same answers as evaluation's and training's, how fast, how large."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.report.collect import Record


@dataclass(frozen=True)
class Speed:
    """Answers to batches of one size; the champion's were measured beside them, in one run."""

    batch: int
    p50: float | None
    p95: float | None
    images_per_second: float | None
    champion_p50: float | None
    champion_p95: float | None
    ratio: float | None
    ratio_interval: tuple[float, float] | None


@dataclass(frozen=True)
class Serving:
    """What the section shows; `check` and `agreement` are as serving_check.json has them."""

    check: Mapping[str, Any] | None
    agreement: Mapping[str, Any] | None
    speeds: list[Speed]
    size_bytes: int | None
    champion_size_bytes: int | None

    @property
    def compared(self) -> bool:
        """Whether a champion was measured beside."""
        return any(speed.champion_p50 is not None for speed in self.speeds)


def build(record: Record) -> Serving | None:
    """Returns the serving section, or None where nothing was served."""
    check = record.json("serving")
    latency = (record.verdict or {}).get("latency") or (check or {}).get("latency") or {}
    if check is None and not latency:
        return None
    return Serving(
        check=check,
        agreement=(check or {}).get("agreement"),
        speeds=_speeds(latency.get("batches") or {}),
        size_bytes=latency.get("size_bytes"),
        champion_size_bytes=latency.get("champion_size_bytes"),
    )


def _speeds(batches: Mapping[str, Mapping[str, Any]]) -> list[Speed]:
    found = []
    for batch, row in batches.items():
        champion = row.get("champion") or {}
        found.append(
            Speed(
                batch=int(batch),
                p50=row.get("p50_ms"),
                p95=row.get("p95_ms"),
                images_per_second=row.get("images_per_second"),
                champion_p50=champion.get("p50_ms"),
                champion_p95=champion.get("p95_ms"),
                ratio=row.get("ratio"),
                ratio_interval=tuple(row["ratio_interval"]) if row.get("ratio_interval") else None,
            )
        )
    return sorted(found, key=lambda speed: speed.batch)
