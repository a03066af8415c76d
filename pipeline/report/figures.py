"""Charts as inline SVG: coloured by the page's own CSS, so that they follow light and dark.

Each chart has a title that a screen reader speaks, tells its series apart by dashes and labels as
well as by colour, and is drawn at the size at which a phone shows it, so that text stays legible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

from pipeline.report import drawing
from pipeline.report.drawing import Axes, Format, is_number

_SHADES = 6


@dataclass(frozen=True)
class Series:
    """A line: y over x, None or NaN where there is no value; `dots` leaves the line itself out.

    `ends` are the lower and the upper end of each point's interval, drawn as a stroke through it.
    """

    name: str
    y: Sequence[float | None]
    marks: Sequence[str] = field(default_factory=tuple)
    dots: bool = False
    ends: Sequence[tuple[float, float] | None] = field(default_factory=tuple)


def line_chart(
    title: str,
    x: Sequence[float],
    series: Sequence[Series],
    y_format: Format,
    x_label: str,
    best: float | None = None,
    parts: Sequence[tuple[float, str]] = (),
    within: tuple[float, float] | None = None,
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
      within: what the y axis has to enclose, for charts that are to be compared; by default the
        values.
    """
    values = [v for line in series for v in line.y if is_number(v)]
    if not values or not x:
        return Markup("")
    ticks = drawing.nice_ticks(*(within or (min(values), max(values))))
    names_width = max(len(line.name) for line in series) * 6.2 + 12
    axes = Axes((x[0], x[-1]), (ticks[0], ticks[-1]), right=names_width)
    drawn = [drawing.grid(axes, ticks, y_format), drawing.x_axis(axes, x, x_label)]
    drawn += [drawing.part(axes, at, name) for at, name in parts]
    if best is not None:
        drawn.append(drawing.vertical(axes, best))
    drawn += [_line(axes, x, line, number) for number, line in enumerate(series)]
    # A line without a value has no end for its name to stand at.
    ends = {number: drawing.last(line.y) for number, line in enumerate(series)}
    named = {number: end for number, end in ends.items() if end is not None}
    places = drawing.label_places([axes.at(0, end)[1] for end in named.values()])
    at = drawing.WIDTH - names_width + 6
    drawn += [
        f'<text class="name s{number}" x="{at:.1f}" y="{place + 4:.1f}">'
        f"{escape(series[number].name)}</text>"
        for number, place in zip(named, places, strict=True)
    ]
    return drawing.svg(title, "".join(drawn))


def steps_chart(
    title: str,
    labels: Sequence[str],
    series: Sequence[Series],
    y_format: Format,
    x_label: str,
) -> Markup:
    """Returns a chart of one point a run; `marks` of a series are the points' CSS classes."""
    values = [v for line in series for v in line.y if is_number(v)]
    if not values:
        return Markup("")
    ticks = drawing.nice_ticks(min(values), max(values))
    x = [float(number) for number in range(1, len(labels) + 1)]
    axes = Axes((0.5, len(labels) + 0.5), (ticks[0], ticks[-1]))
    parts = [drawing.grid(axes, ticks, y_format), drawing.x_axis(axes, x, x_label)]
    for number, line in enumerate(series):
        parts.append(_line(axes, x, line, number, "steps" if line.marks else "line"))
        parts.extend(
            _mark(axes.at(at, value), kind, f"{label}: {y_format(value)}")
            for at, value, kind, label in zip(x, line.y, line.marks, labels, strict=True)
            if is_number(value)
        )
    return drawing.svg(title, "".join(parts))


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
    ticks = drawing.nice_ticks(0, max(max(counts), 1))
    axes = Axes((edges[0], edges[-1]), (0, ticks[-1]))
    bars = []
    for count, left, right in zip(counts, edges, edges[1:], strict=False):
        x, y = axes.at(left, count)
        width, base = axes.at(right, 0)[0] - x, drawing.HEIGHT - drawing.BOTTOM
        bars.append(f"M{x + 0.5:.1f} {base:.1f}V{y:.1f}h{width - 1:.1f}V{base:.1f}z")
    # There is no half of an image: at a step of 2.5, a line in two has no whole number.
    whole = [tick for tick in ticks if tick.is_integer()]
    drawn = [drawing.grid(axes, whole, lambda value: f"{value:,.0f}")]
    drawn.append(f'<path class="bars" d="{"".join(bars)}"/>')
    drawn.append(drawing.vertical(axes, 0))
    for value, anchor in ((edges[0], "start"), (0.0, "middle"), (edges[-1], "end")):
        x, _ = axes.at(value, 0)
        drawn.append(
            f'<text class="tick" text-anchor="{anchor}" x="{x:.1f}" '
            f'y="{drawing.HEIGHT - drawing.BOTTOM + 15:.1f}">{escape(x_format(value))}</text>'
        )
    return drawing.svg(title, "".join(drawn))


def sample_mark(kind: str) -> Markup:
    """Returns the mark that stands for `kind` in a `steps_chart`, for a legend."""
    mark = _mark((8.0, 8.0), kind, "")
    return Markup(f'<svg class="sample" viewBox="0 0 16 16" aria-hidden="true">{mark}</svg>')


def shade(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Returns the shade (0 for nothing, then 1 to 5) of each share; small ones are kept visible."""
    edges = np.array([0.0, 0.05, 0.2, 0.5, 0.8])
    return np.asarray(np.searchsorted(edges, shares, side="left"), dtype=np.int64)


def _line(axes: Axes, x: Sequence[float], line: Series, number: int, kind: str = "line") -> str:
    points = [axes.at(at, value) for at, value in zip(x, line.y, strict=True) if is_number(value)]
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
    drawn = len(points) > 1 and not line.dots
    parts = [_strokes(axes, x, line, number)] if line.ends else []
    parts += [f'<path class="{kind} s{number}" d="{path}"/>'] if drawn else []
    if line.dots or (not line.marks and len(points) <= 30):
        parts += [
            f'<circle class="dot s{number}" cx="{a:.1f}" cy="{b:.1f}" r="2.2"/>' for a, b in points
        ]
    return "".join(parts)


def _strokes(axes: Axes, x: Sequence[float], line: Series, number: int) -> str:
    """Returns the intervals of a line's points."""
    path = ""
    for at, ends in zip(x, line.ends, strict=True):
        if ends is not None:
            (a, low), (_, high) = axes.at(at, ends[0]), axes.at(at, ends[1])
            path += f"M{a:.1f} {low:.1f}V{high:.1f}"
    return f'<path class="stroke s{number}" d="{path}"/>'


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
