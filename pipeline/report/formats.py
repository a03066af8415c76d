"""How values are written for people; the exact value stands beside, in the `data` element."""

from __future__ import annotations

import json
import math
from typing import Any


def percent(value: float | None) -> str:
    """Writes a share as per cent; never rounds a mistake away, or one into being."""
    if value is None:
        return "–"
    digits = 2 if 0.995 <= value < 1 or 0 < value < 0.005 else 1
    text = f"{100 * value:.{digits}f}"
    if value < 1 and float(text) >= 100:
        text = "> 99.99"
    elif value > 0 and float(text) == 0:
        text = "< 0.01"
    return f"{text}%"


def interval(low: float, high: float) -> str:
    """Writes the ends of an interval of shares, rounded outwards: 94.3–97.1 %."""
    ends = (math.floor(1000 * low + 1e-9) / 10, math.ceil(1000 * high - 1e-9) / 10)
    return f"{ends[0]:.1f}–{ends[1]:.1f}%"


def percent_tick(value: float) -> str:
    """Writes a share on an axis."""
    return f"{100 * value:.4g}%"


def points(value: float | None) -> str:
    """Writes a difference of two shares in percentage points, with its sign."""
    if value is None:
        return "–"
    sign = "+" if value > 0 else "−" if value < 0 else "±"
    return f"{sign}{100 * abs(value):.2f}"


def count(value: float | None) -> str:
    """Writes a whole number with commas between thousands."""
    return "–" if value is None else f"{round(value):,}"


def counted(number: float, one: str, many: str | None = None) -> str:
    """Writes a number with its noun: 1 image, 2 images."""
    return f"{count(number)} {one if number == 1 else many or one + 's'}"


def short(value: float | None) -> str:
    """Writes a number with about three digits."""
    if value is None:
        return "–"
    if value != 0 and (abs(value) < 0.0001 or abs(value) >= 1e7):
        return f"{value:.1e}"
    return count(value) if abs(value) >= 999.5 else f"{value:.3g}"


def signed(value: float | None) -> str:
    """Writes a difference with about three digits and its sign."""
    if value is None:
        return "–"
    sign = "+" if value > 0 else "−" if value < 0 else "±"
    return f"{sign}{short(abs(value))}"


def seconds(value: float | None) -> str:
    """Writes a duration: 0.4 s, 12 s, 3 min 5 s, 2 h 10 min."""
    if value is None:
        return "–"
    if value < 10:
        return f"{value:.1f}\u202fs"
    whole = round(value)
    if whole < 60:
        return f"{whole}\u202fs"
    if whole < 3600:
        return f"{whole // 60}\u202fmin {whole % 60}\u202fs"
    return f"{whole // 3600}\u202fh {whole % 3600 // 60}\u202fmin"


def size(value: float | None) -> str:
    """Writes bytes in the unit that fits (powers of ten)."""
    if value is None:
        return "–"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= 0.9995 * scale:
            return f"{value / scale:.3g}\u202f{unit}"
    return f"{value:.0f}\u202fB"


def number(value: Any) -> str:
    """Writes what a check measured: shares and losses with four decimals, the rest as it is."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) >= 0.0001 or value == 0 else f"{value:.1e}"
    return f"{value}"


def setting(value: Any) -> str:
    """Writes a configuration's value as TOML would have it."""
    return "auto" if value is None else json.dumps(value, ensure_ascii=False)


def moment(value: str) -> str:
    """Writes 2025-01-31T12:00:00Z as 2025-01-31 12:00 UTC."""
    return f"{value[:10]} {value[11:16]} UTC" if value.endswith("Z") and len(value) > 16 else value
