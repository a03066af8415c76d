"""Charts of the blessing: reliability, and how a fact is spread in two sets of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from pipeline.report import drawing, shares
from pipeline.report.drawing import Axes, Format

_WHOLE = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Bin:
    """Answers whose confidence lies between `low` and `high`: their mean, and how many are right.

    `confidence` and `accuracy` are None of no answer.
    """

    low: float
    high: float
    confidence: float | None
    accuracy: float | None
    count: int


def reliability(title: str, bins: Sequence[Bin], write: Format) -> Markup:
    """Returns accuracy over confidence: a point a bin with its 95% interval, and the diagonal.

    On the diagonal a model is right as often as it says. A point's area goes with its images.
    """
    axes = Axes((0.0, 1.0), (0.0, 1.0))
    total = sum(it.count for it in bins) or 1
    (x0, y0), (x1, y1) = axes.at(0, 0), axes.at(1, 1)
    strokes, dots = "", ""
    for it in bins:
        if not it.count or it.confidence is None or it.accuracy is None:
            continue
        x, y = axes.at(it.confidence, it.accuracy)
        known = shares.of(round(it.accuracy * it.count), it.count)
        if known is not None:
            strokes += f"M{x:.1f} {axes.at(0, known.low)[1]:.1f}V{axes.at(0, known.high)[1]:.1f}"
        radius = 2.5 + 6.5 * (it.count / total) ** 0.5
        words = f"{it.count:,} images: {write(it.confidence)} sure, {write(it.accuracy)} right"
        dots += (
            f'<circle class="dot s1" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">'
            f"<title>{escape(words)}</title></circle>"
        )
    body = (
        f"{drawing.grid(axes, _WHOLE, write)}{_shares_axis(axes, write)}"
        f'<path class="best" d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}"/>'
        f'<path class="stroke s1" d="{strokes}"/>{dots}'
    )
    return drawing.svg(title, body)


def spreads(
    title: str,
    edges: Sequence[float],
    named: Sequence[tuple[str, Sequence[float]]],
    write: Format,
) -> Markup:
    """Returns outlines of histograms over common bins.

    Args:
      title: what the chart says, in a sentence.
      edges: of the bins, increasing: one more than each histogram has shares.
      named: a name and the share of the images in each bin; the first is drawn dashed.
      write: from an edge to its text.
    """
    highest = max((value for _, values in named for value in values), default=0.0)
    ticks = drawing.nice_ticks(0.0, highest, count=3)
    axes = Axes((edges[0], edges[-1]), (0.0, ticks[-1]))
    base = axes.at(edges[0], 0)[1]
    outlines = ""
    for number, (_, values) in enumerate(named):
        path = f"M{axes.at(edges[0], 0)[0]:.1f} {base:.1f}"
        for value, right in zip(values, edges[1:], strict=True):
            x, y = axes.at(right, value)
            path += f"V{y:.1f}H{x:.1f}"
        outlines += f'<path class="line s{number}" d="{path}V{base:.1f}"/>'
    texts = ""
    for value, anchor in ((edges[0], "start"), (edges[-1], "end")):
        x, _ = axes.at(value, 0)
        texts += _tick(x, write(value), anchor)
    return drawing.svg(title, f"{drawing.grid(axes, ticks, _share)}{texts}{outlines}")


def _shares_axis(axes: Axes, write: Format) -> str:
    texts = "".join(_tick(axes.at(value, 0)[0], write(value), "middle") for value in _WHOLE)
    middle = (drawing.LEFT + drawing.WIDTH - axes.right) / 2
    return (
        f'{texts}<text class="tick" text-anchor="middle" x="{middle:.1f}" '
        f'y="{drawing.HEIGHT - 4:.1f}">confidence</text>'
    )


def _tick(x: float, text: str, anchor: str) -> str:
    y = drawing.HEIGHT - drawing.BOTTOM + 15
    return (
        f'<text class="tick" text-anchor="{anchor}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
    )


def _share(value: float) -> str:
    return f"{100 * value:.3g}%"
