"""What all charts are drawn with: the place of a value, ticks, axes, and the SVG around them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from markupsafe import Markup, escape

Format = Callable[[float], str]

WIDTH, HEIGHT = 360.0, 220.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 12.0, 14.0, 34.0
_LABEL_GAP = 13.0


@dataclass(frozen=True)
class Axes:
    """Where values lie on the drawing."""

    x: tuple[float, float]
    y: tuple[float, float]
    right: float = RIGHT

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Returns the place of a value."""
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1.0)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1.0)
        width = WIDTH - LEFT - self.right
        return LEFT + across * width, HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns about `count` round values that enclose low..high."""
    span, largest = high - low, max(abs(low), abs(high))
    if span <= 1e-9 * max(largest, 1.0):
        # All but equal: what the digits of a float could not tell apart is not drawn apart.
        span = largest if largest > 1e-9 else 1.0
    rough = span / (count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(number * step, 12) for number in range(first, last + 1)]


def svg(title: str, body: str) -> Markup:
    """Returns the chart; `title` is what a screen reader says."""
    return Markup(
        f'<svg class="chart" role="img" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" '
        f'aria-label="{escape(title)}">{body}</svg>'
    )


def grid(axes: Axes, ticks: Sequence[float], y_format: Format) -> str:
    """Returns a line and a text for each tick of the y axis."""
    parts = []
    for tick in ticks:
        x, y = axes.at(axes.x[0], tick)
        parts.append(
            f'<path class="grid" d="M{x:.1f} {y:.1f}H{WIDTH - axes.right:.1f}"/>'
            f'<text class="tick" text-anchor="end" x="{x - 6:.1f}" y="{y + 4:.1f}">'
            f"{escape(y_format(tick))}</text>"
        )
    return "".join(parts)


def x_axis(axes: Axes, x: Sequence[float], label: str) -> str:
    """Returns the texts below: at most about eight values, and what they are."""
    every = max(1, math.ceil(len(x) / 8))
    parts = []
    for value in x[::every]:
        at, base = axes.at(value, axes.y[0])
        parts.append(
            f'<text class="tick" text-anchor="middle" x="{at:.1f}" y="{base + 15:.1f}">'
            f"{value:g}</text>"
        )
    middle = (LEFT + WIDTH - axes.right) / 2
    parts.append(
        f'<text class="tick" text-anchor="middle" x="{middle:.1f}" y="{HEIGHT - 4:.1f}">'
        f"{escape(label)}</text>"
    )
    return "".join(parts)


def vertical(axes: Axes, value: float) -> str:
    """Returns a dashed line from top to bottom."""
    x, _ = axes.at(value, axes.y[0])
    return f'<path class="best" d="M{x:.1f} {TOP:.1f}V{HEIGHT - BOTTOM:.1f}"/>'


def part(axes: Axes, value: float, name: str) -> str:
    """Returns the beginning of a part: a line, unless it begins with the axis, and its name."""
    x, _ = axes.at(max(value, axes.x[0]), axes.y[0])
    line = f'<path class="part" d="M{x:.1f} 4V{HEIGHT - BOTTOM:.1f}"/>' if x > LEFT else ""
    return f'{line}<text class="tick" x="{x + 3:.1f}" y="{TOP - 5:.1f}">{escape(name)}</text>'


def label_places(wanted: Sequence[float]) -> list[float]:
    """Returns the heights of the lines' names, moved apart so that none covers another."""
    order = sorted(range(len(wanted)), key=lambda number: wanted[number])
    placed = [0.0] * len(wanted)
    lowest = -math.inf
    for number in order:
        placed[number] = max(wanted[number], lowest + _LABEL_GAP)
        lowest = placed[number]
    over = lowest - (HEIGHT - BOTTOM)
    return [place - over for place in placed] if over > 0 else placed


def last(values: Sequence[float | None]) -> float | None:
    """Returns the last number among the values, or None where there is none."""
    return next((v for v in reversed(values) if is_number(v)), None)


def is_number(value: float | None) -> TypeGuard[float]:
    """Says whether there is a value, and a finite one."""
    return value is not None and math.isfinite(value)
