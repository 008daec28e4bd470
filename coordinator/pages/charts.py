"""Charts as SVG: they fill the available width, text keeps its size, and colours come from the style sheet.

Positions are percentages of the plot's width and height. SVG paths cannot use percentages, so each path is in a
nested SVG that is stretched over the plot, with strokes that keep their width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A scale from `low` to `high` with the values of its tick labels."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def share(self, value: float) -> float:
        """The position of a value in percent of the axis."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)


def nice_axis(low: float, high: float, *, steps: int = 4, whole: bool = False) -> Axis:
    """An axis that contains both values, with ticks at round numbers.

    Args:
        low: the smallest value.
        high: the largest value.
        steps: approximate number of intervals between ticks.
        whole: ticks at whole numbers only.
    """
    span = next(span for span in (high - low, abs(high), 1.0) if span > _SMALLEST_SPAN)
    raw = span / steps
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * (1 - 1e-9))
    if whole:
        step = max(1.0, float(math.ceil(step)))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    ticks = tuple(round(step * n, 10) for n in range(first, last + 1))
    return Axis(low=ticks[0], high=ticks[-1], ticks=ticks)


_SMALLEST_SPAN = 1e-9
"""Ticks are rounded to ten decimal places, so a smaller range counts as a single value."""


def plot(*parts: Markup, label: str, size: str = "") -> Markup:
    """A chart of these parts in drawing order; `label` describes it for screen readers."""
    return Markup('<svg class="plot {}" role="img" aria-label="{}">{}</svg>').format(
        size, label, Markup("").join(parts)
    )


def axes(x: Axis, y: Axis, *, x_title: str, y_percent: bool) -> Markup:
    """Grid lines at the ticks of y, and the labels of both axes."""
    parts = [
        Markup(
            '<line class="grid" x1="0" x2="100%" y1="{0}%" y2="{0}%"/>'
            '<text class="tick y" x="-8" y="{0}%">{1}</text>'
        ).format(_from_top(y, tick), _percent_tick(tick) if y_percent else f"{tick:g}")
        for tick in y.ticks
    ]
    parts += [
        Markup('<text class="tick x" x="{}%" y="100%" dy="18">{}</text>').format(x.share(tick), f"{tick:g}")
        for tick in x.ticks
    ]
    parts.append(Markup('<text class="axis" x="100%" y="100%" dy="36">{}</text>').format(x_title))
    return Markup("").join(parts)


def marks(points: Iterable[tuple[int, float, float]], x: Axis, y: Axis, *, kind: str, symbol: str) -> Markup:
    """A symbol at each point.

    Args:
        points: trial number, x and y of each; the number is an attribute that scripts read.
        x: horizontal axis.
        y: vertical axis.
        kind: class in the style sheet.
        symbol: id of a symbol that the page defines.
    """
    drawn = "".join(
        f'<use href="#{symbol}" x="{x.share(a)}%" y="{_from_top(y, b)}%" data-trial="{number}"/>'
        for number, a, b in points
    )
    return Markup('<g class="{}">').format(kind) + Markup(drawn) + Markup("</g>")  # noqa: S704 - numbers only


def line(points: Sequence[Point], x: Axis, y: Axis, *, kind: str) -> Markup:
    """A line through these points."""
    if not points:
        return Markup("")
    path = "L".join(f"{x.share(a)} {_from_top(y, b)}" for a, b in points)
    return _stretched(f"M{path}", kind)


def steps(points: Sequence[Point], x: Axis, y: Axis, *, kind: str) -> Markup:
    """A step line: each value holds until the next point."""
    if not points:
        return Markup("")
    first, *rest = points
    path = f"M{x.share(first[0])} {_from_top(y, first[1])}"
    path += "".join(f"H{x.share(a)}V{_from_top(y, b)}" for a, b in rest)
    return _stretched(path, kind)


def dots(points: Iterable[Point], x: Axis, y: Axis, *, kind: str) -> Markup:
    """A dot at each point as one path: smaller than `marks`, but scripts cannot tell the dots apart."""
    path = "".join(f"M{x.share(a)} {_from_top(y, b)}h0" for a, b in points)
    return _stretched(path, kind) if path else Markup("")


def level(value: float, y: Axis, *, kind: str, text: str = "") -> Markup:
    """A horizontal line at a value, with a text at its right end."""
    at = _from_top(y, value)
    drawn = Markup('<line class="{0}" x1="0" x2="100%" y1="{1}%" y2="{1}%"/>').format(kind, at)
    if text:
        drawn += Markup('<text class="{} word" x="100%" y="{}%" dy="-5">{}</text>').format(kind, at, text)
    return drawn


def label_at(share: float, text: str, *, line: int = 0) -> Markup:
    """A text under the plot, centred at `share` percent of its width, on the first (0) or second (1) line."""
    return Markup('<text class="tick x" x="{}%" y="100%" dy="{}">{}</text>').format(
        round(share, 2), 15 + 13 * line, text
    )


def bar(shares: Iterable[tuple[float, str]], *, label: str) -> Markup:
    """A stacked bar; each part has a share of the whole (0 to 1) and a class in the style sheet."""
    parts, left = [], 0.0
    for share, kind in shares:
        if share > 0:
            parts.append(
                f'<rect class="{escape(kind)}" x="{100 * left:.3f}%" width="{100 * share:.3f}%" height="100%"/>'
            )
        left += share
    return Markup('<svg class="bar" role="img" aria-label="{}">').format(label) + Markup(  # noqa: S704 - escaped
        "".join(parts) + "</svg>"
    )


def _stretched(path: str, kind: str) -> Markup:
    return Markup(
        '<svg class="stretched" viewBox="0 0 100 100" preserveAspectRatio="none" width="100%" height="100%">'
        '<path class="{}" vector-effect="non-scaling-stroke" d="{}"/></svg>'
    ).format(kind, path)


def _from_top(axis: Axis, value: float) -> float:
    return round(100 - axis.share(value), 2)


def _percent_tick(share: float) -> str:
    return f"{100 * share:.3g} %"
