"""One line over the epochs as inline SVG, in the colours of the page; points have titles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from markupsafe import Markup

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_WIDTH, _HEIGHT = 440, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 14, 30
_STEPS: Final = (1, 2, 2.5, 5, 10)
_DOTS: Final = 60
"""More points than this are a line alone."""


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round numbers that cover a range, some `most` of them.

    >>> ticks(0.12, 0.48)
    [0.1, 0.2, 0.3, 0.4, 0.5]
    >>> ticks(3, 3)
    [3.0, 4.0]
    """
    span = (high - low) or 1.0
    power = 10 ** math.floor(math.log10(span / most))
    step = next(s * power for s in _STEPS if s * power * most >= span * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, max(last, first + 1) + 1)]


@dataclass(frozen=True, slots=True)
class Line:
    """What to draw: a value for each epoch that has one, and how to write it."""

    name: str
    points: Sequence[tuple[int, float]]
    text: Callable[[float], str] = "{:.3g}".format
    marked: int | None = None
    """An epoch to point out."""


def line_chart(line: Line) -> Markup:
    """Return the chart; points that are no finite numbers are left out."""
    points = [(x, y) for x, y in line.points if math.isfinite(y)]
    if not points:
        return Markup('<p class="muted small">{}: nothing yet</p>').format(line.name)
    marks = ticks(min(y for _, y in points), max(y for _, y in points))
    first, last = points[0][0], max(points[-1][0], points[0][0] + 1)

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (x - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)
        share = (marks[-1] - y) / (marks[-1] - marks[0])
        return round(across, 1), round(_TOP + share * (_HEIGHT - _TOP - _BOTTOM), 1)

    parts = [_grid(place(first, mark)[1], line.text(mark)) for mark in marks]
    ends = dict.fromkeys((points[0][0], points[-1][0]))
    parts += [_text(place(x, marks[0])[0], _HEIGHT - 10, str(x), "middle") for x in ends]
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 10, "epoch", "middle"))
    path = " ".join(f"{x},{y}" for x, y in (place(*p) for p in points))
    parts.append(Markup('<polyline class="curve" points="{}"/>').format(path))
    for x, y in points:
        if x == line.marked or len(points) <= _DOTS:
            kind, at = "dot best" if x == line.marked else "dot", place(x, y)
            parts.append(
                Markup(
                    '<circle class="{}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>'
                ).format(kind, *at, 5 if x == line.marked else 3, f"epoch {x}: {line.text(y)}")
            )
    says = f"{line.name} by epoch: {line.text(points[0][1])} first, {line.text(points[-1][1])} last"
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(_WIDTH, _HEIGHT, says, Markup("").join(parts))


def _grid(y: float, text: str) -> Markup:
    line = Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>')
    return line.format(_LEFT, _WIDTH - _RIGHT, y, y) + _text(_LEFT - 6, y + 4, text, "end")


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(x, y, anchor, text)
