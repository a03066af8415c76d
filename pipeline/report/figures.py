"""Charts as inline SVG: coloured by the page's own CSS, so that they follow light and dark.

Each chart has a title that a screen reader speaks, tells its series apart by dashes and labels as
well as by colour, and is drawn at the size at which a phone shows it, so that text stays legible.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

Format = Callable[[float], str]

_WIDTH, _HEIGHT = 360.0, 220.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 12.0, 14.0, 34.0
_LABEL_GAP = 13.0
_SHADES = 6


@dataclass(frozen=True)
class Series:
    """A line: y over x, None or NaN where there is no value; `dots` leaves the line itself out."""

    name: str
    y: Sequence[float | None]
    marks: Sequence[str] = field(default_factory=tuple)
    dots: bool = False


@dataclass(frozen=True)
class Axes:
    """Where values lie on the drawing."""

    x: tuple[float, float]
    y: tuple[float, float]
    right: float = _RIGHT

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Returns the place of a value."""
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1.0)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1.0)
        width = _WIDTH - _LEFT - self.right
        return _LEFT + across * width, _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)


def line_chart(
    title: str,
    x: Sequence[float],
    series: Sequence[Series],
    y_format: Format,
    x_label: str,
    best: float | None = None,
    parts: Sequence[tuple[float, str]] = (),
) -> Markup:
    """Returns a line chart.

    Args:
      title: what the chart says, in a sentence.
      x: increasing, one value a point; whole numbers are ticked.
      series: lines over `x`; a line with one value is a dot.
      y_format: from a value to a tick's text.
      x_label: below the axis.
      best: where a vertical line goes, if anywhere.
      parts: where each part of `x` begins, and its name, written above it.
    """
    values = [v for line in series for v in line.y if _is_number(v)]
    if not values or not x:
        return Markup("")
    ticks = nice_ticks(min(values), max(values))
    names_width = max(len(line.name) for line in series) * 6.2 + 12
    axes = Axes((x[0], x[-1]), (ticks[0], ticks[-1]), right=names_width)
    drawn = [_grid(axes, ticks, y_format), _x_axis(axes, x, x_label)]
    drawn += [_part(axes, at, name) for at, name in parts]
    if best is not None:
        drawn.append(_vertical(axes, best))
    places = _label_places([axes.at(0, _last(line.y))[1] for line in series])
    for number, line in enumerate(series):
        drawn.append(_line(axes, x, line, number))
        end = _WIDTH - names_width + 6
        drawn.append(
            f'<text class="name s{number}" x="{end:.1f}" y="{places[number] + 4:.1f}">'
            f"{escape(line.name)}</text>"
        )
    return _svg(title, "".join(drawn))


def steps_chart(
    title: str,
    labels: Sequence[str],
    series: Sequence[Series],
    y_format: Format,
    x_label: str,
) -> Markup:
    """Returns a chart of one point a run; `marks` of a series are the points' CSS classes."""
    values = [v for line in series for v in line.y if _is_number(v)]
    if not values:
        return Markup("")
    ticks = nice_ticks(min(values), max(values))
    x = [float(number) for number in range(1, len(labels) + 1)]
    axes = Axes((0.5, len(labels) + 0.5), (ticks[0], ticks[-1]))
    parts = [_grid(axes, ticks, y_format), _x_axis(axes, x, x_label)]
    for number, line in enumerate(series):
        parts.append(_line(axes, x, line, number, "steps" if line.marks else "line"))
        parts.extend(
            _mark(axes.at(at, value), kind, f"{label}: {y_format(value)}")
            for at, value, kind, label in zip(x, line.y, line.marks, labels, strict=True)
            if _is_number(value)
        )
    return _svg(title, "".join(parts))


def heat_map(title: str, shares: npt.NDArray[np.float64]) -> Markup:
    """Returns a matrix [rows, columns] of shares in 0-1 as shaded cells; zeros are blank.

    All cells of a shade are one path: 100 x 100 classes take some tens of kilobytes.
    """
    rows, columns = shares.shape
    level = shade(shares)
    paths = []
    for kind, chosen in (("h", ~np.eye(rows, columns, dtype=bool)), ("d", np.eye(rows, columns))):
        for step in range(1, _SHADES):
            cells = np.argwhere((level == step) & (chosen > 0))
            if len(cells):
                path = "".join(f"M{column} {row}h1v1h-1z" for row, column in cells.tolist())
                paths.append(f'<path class="{kind}{step}" d="{path}"/>')
    frame = f'<rect class="frame" width="{columns}" height="{rows}"/>'
    return Markup(
        f'<svg class="heat" role="img" viewBox="0 0 {columns} {rows}" '
        f'preserveAspectRatio="xMidYMid meet" aria-label="{escape(title)}">'
        f"{frame}{''.join(paths)}</svg>"
    )


def size_bars(title: str, sizes: Sequence[int]) -> Markup:
    """Returns the class sizes as one row of thin bars from a common base."""
    if not sizes:
        return Markup("")
    width, height, largest = float(len(sizes)), 40.0, max(max(sizes), 1)
    bars = "".join(
        f"M{number + 0.1:.1f} {height:.0f}v{-height * size / largest:.2f}h0.8V{height:.0f}z"
        for number, size in enumerate(sizes)
    )
    return Markup(
        f'<svg class="sizes" role="img" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'preserveAspectRatio="none" aria-label="{escape(title)}"><path d="{bars}"/></svg>'
    )


def histogram(
    title: str, counts: Sequence[int], edges: Sequence[float], x_format: Format
) -> Markup:
    """Returns bars of counts between `edges`, which lie around zero: one more than counts."""
    ticks = nice_ticks(0, max(max(counts), 1))
    axes = Axes((edges[0], edges[-1]), (0, ticks[-1]))
    bars = []
    for count, left, right in zip(counts, edges, edges[1:], strict=False):
        x, y = axes.at(left, count)
        width, base = axes.at(right, 0)[0] - x, _HEIGHT - _BOTTOM
        bars.append(f"M{x + 0.5:.1f} {base:.1f}V{y:.1f}h{width - 1:.1f}V{base:.1f}z")
    drawn = [_grid(axes, ticks, lambda value: f"{value:,.0f}")]
    drawn.append(f'<path class="bars" d="{"".join(bars)}"/>')
    drawn.append(_vertical(axes, 0))
    for value, anchor in ((edges[0], "start"), (0.0, "middle"), (edges[-1], "end")):
        x, _ = axes.at(value, 0)
        drawn.append(
            f'<text class="tick" text-anchor="{anchor}" x="{x:.1f}" '
            f'y="{_HEIGHT - _BOTTOM + 15:.1f}">{escape(x_format(value))}</text>'
        )
    return _svg(title, "".join(drawn))


def sample_mark(kind: str) -> Markup:
    """Returns the mark that stands for `kind` in a `steps_chart`, for a legend."""
    mark = _mark((8.0, 8.0), kind, "")
    return Markup(f'<svg class="sample" viewBox="0 0 16 16" aria-hidden="true">{mark}</svg>')


def shade(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Returns the shade (0 for nothing, then 1 to 5) of each share; small ones are kept visible."""
    edges = np.array([0.0, 0.05, 0.2, 0.5, 0.8])
    return np.asarray(np.searchsorted(edges, shares, side="left"), dtype=np.int64)


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


def _svg(title: str, body: str) -> Markup:
    return Markup(
        f'<svg class="chart" role="img" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" '
        f'aria-label="{escape(title)}">{body}</svg>'
    )


def _grid(axes: Axes, ticks: Sequence[float], y_format: Format) -> str:
    parts = []
    for tick in ticks:
        x, y = axes.at(axes.x[0], tick)
        parts.append(
            f'<path class="grid" d="M{x:.1f} {y:.1f}H{_WIDTH - axes.right:.1f}"/>'
            f'<text class="tick" text-anchor="end" x="{x - 6:.1f}" y="{y + 4:.1f}">'
            f"{escape(y_format(tick))}</text>"
        )
    return "".join(parts)


def _x_axis(axes: Axes, x: Sequence[float], label: str) -> str:
    every = max(1, math.ceil(len(x) / 8))
    parts = []
    for value in x[::every]:
        at, base = axes.at(value, axes.y[0])
        parts.append(
            f'<text class="tick" text-anchor="middle" x="{at:.1f}" y="{base + 15:.1f}">'
            f"{value:g}</text>"
        )
    middle = (_LEFT + _WIDTH - axes.right) / 2
    parts.append(
        f'<text class="tick" text-anchor="middle" x="{middle:.1f}" y="{_HEIGHT - 4:.1f}">'
        f"{escape(label)}</text>"
    )
    return "".join(parts)


def _vertical(axes: Axes, value: float) -> str:
    x, _ = axes.at(value, axes.y[0])
    return f'<path class="best" d="M{x:.1f} {_TOP:.1f}V{_HEIGHT - _BOTTOM:.1f}"/>'


def _part(axes: Axes, value: float, name: str) -> str:
    """Returns the beginning of a part: a line, unless it begins with the axis, and its name."""
    x, _ = axes.at(max(value, axes.x[0]), axes.y[0])
    line = f'<path class="part" d="M{x:.1f} 4V{_HEIGHT - _BOTTOM:.1f}"/>' if x > _LEFT else ""
    return f'{line}<text class="tick" x="{x + 3:.1f}" y="{_TOP - 5:.1f}">{escape(name)}</text>'


def _line(axes: Axes, x: Sequence[float], line: Series, number: int, kind: str = "line") -> str:
    points = [axes.at(at, value) for at, value in zip(x, line.y, strict=True) if _is_number(value)]
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
    drawn = len(points) > 1 and not line.dots
    parts = [f'<path class="{kind} s{number}" d="{path}"/>'] if drawn else []
    if line.dots or (not line.marks and len(points) <= 30):
        parts += [
            f'<circle class="dot s{number}" cx="{a:.1f}" cy="{b:.1f}" r="2.2"/>' for a, b in points
        ]
    return "".join(parts)


def _mark(place: tuple[float, float], kind: str, words: str) -> str:
    """Returns a point whose shape, not colour alone, says its kind."""
    x, y = place
    shapes = {
        "pushed": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5"/>',
        "unchanged": f'<circle class="hollow" cx="{x:.1f}" cy="{y:.1f}" r="4"/>',
        "not_blessed": f'<path d="M{x:.1f} {y - 6:.1f}l6 10.5h-12z"/>',
    }
    cross = f'<path class="cross" d="M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"/>'
    title = f"<title>{escape(words)}</title>" if words else ""
    return f'<g class="mark {kind}">{title}{shapes.get(kind, cross)}</g>'


def _label_places(wanted: Sequence[float]) -> list[float]:
    """Returns the heights of the lines' names, moved apart so that none covers another."""
    order = sorted(range(len(wanted)), key=lambda number: wanted[number])
    placed = [0.0] * len(wanted)
    lowest = -math.inf
    for number in order:
        placed[number] = max(wanted[number], lowest + _LABEL_GAP)
        lowest = placed[number]
    over = lowest - (_HEIGHT - _BOTTOM)
    return [place - over for place in placed] if over > 0 else placed


def _last(values: Sequence[float | None]) -> float:
    return next((v for v in reversed(values) if _is_number(v)), 0.0)


def _is_number(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)
