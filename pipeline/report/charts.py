"""Small plots as inline SVG, coloured by the page's style sheet: curves, reliability, whiskers.

Each is an image with a text of its own for those who do not see it; points have titles. Texts from
data are escaped. A value of None has no dot; a curve goes on behind it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

_WIDTH: Final = 440
_HEIGHT: Final = 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 12, 42
_STEPS: Final = (1, 2, 2.5, 5, 10)
_DOTS: Final = 60
"""Points of a curve that are dots, too; more than this are a line alone."""
_LABELS: Final = 6
_FLAT: Final = 0.01
"""A curve that moves by less than this share of itself is shown as flat, which it is."""
_ROW: Final = 24
_NAME: Final = 150


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers that cover a range, at most `most` + 1 of them.

    >>> ticks(0, 1)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    >>> ticks(-0.031, 0.054)
    [-0.04, -0.02, 0.0, 0.02, 0.04, 0.06]
    """
    span = max(high - low, 1e-9)
    power = 10 ** math.floor(math.log10(span / most))
    step = next(s * power for s in _STEPS if s * power * most >= span * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, max(last, first + 1) + 1)]


@dataclass(frozen=True, slots=True)
class _Axes:
    """Where values lie in the picture."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at_x(self, value: float) -> float:
        low, high = self.x
        return round(_LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT), 1)

    def at_y(self, value: float) -> float:
        low, high = self.y
        return round(_TOP + (high - value) / (high - low) * (_HEIGHT - _TOP - _BOTTOM), 1)


def _text(x: float, y: float, text: str, anchor: str = "middle", kind: str = "") -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}" class="{}">{}</text>').format(
        x, y, anchor, kind, text
    )


def _number(value: float, share: bool) -> str:
    return f"{100 * value:.4g}" if share else f"{value:.4g}"


def _per_cent(share: float) -> str:
    return _number(share, share=True)


def _frame(
    axes: _Axes,
    across: Iterable[tuple[float, str]],
    up: Iterable[tuple[float, str]],
    names: tuple[str, str],
) -> list[Markup]:
    """Draw the grid, what stands at its lines, and what the axes are."""
    parts = []
    for value, text in up:
        y = axes.at_y(value)
        parts.append(
            Markup(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        )
        parts.append(_text(_LEFT - 6, y + 4, text, "end"))
    below = _HEIGHT - _BOTTOM + 16
    for value, text in across:
        x = axes.at_x(value)
        # At the right edge a long name would be cut off.
        late = x + 3.5 * len(text) > _WIDTH
        parts.append(_text(_WIDTH if late else x, below, text, "end" if late else "middle"))
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(_text(middle, _HEIGHT - 6, names[0], kind="axis"))
    if not names[1]:
        return parts
    y = (_TOP + _HEIGHT - _BOTTOM) / 2
    turned = Markup('<g transform="rotate(-90 9 {})">{}</g>').format(
        y, _text(9, y + 3, names[1], kind="axis")
    )
    return [*parts, turned]


def _svg(parts: Iterable[Markup], says: str, height: float = _HEIGHT) -> Markup:
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(_WIDTH, height, says, Markup("").join(parts))


@dataclass(frozen=True, slots=True)
class Look:
    """How the lines of `curves` are drawn, beyond their values."""

    text: Callable[[float], str] = _per_cent
    """Writes a value; shares are in per cent."""
    unit: str = " %"
    labels: Sequence[str] | None = None
    """What stands for each x, where that is no number: a night's name."""
    bands: Mapping[str, Sequence[Sequence[float] | None]] = field(default_factory=dict)
    """By a line's name the interval [low, high] around each of its values."""
    marked: Mapping[float, str] = field(default_factory=dict)
    """Points to make out, by their x, and what to say of them."""


def curves(
    x: Sequence[float],
    lines: Mapping[str, Sequence[float | None]],
    *,
    x_name: str,
    y_name: str,
    says: str,
    x_share: bool = False,
    look: Look | None = None,
) -> Markup:
    """Draw up to four lines over `x`, which rises; y values are shares unless `look` says else."""
    look = look or Look()
    bands = [b for name in lines for b in look.bands.get(name, ()) if b is not None]
    known = [v for values in (*lines.values(), *bands) for v in values if v is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    if high - low < _FLAT * max(abs(high), _FLAT):
        below = low - _FLAT * abs(low)
        low, high = below, high + _FLAT * (abs(high) or 1)
    up = ticks(low, high)
    last = max(x)
    across = _places(x, look.labels, x_share)
    left = min(across[0][0], min(x))
    axes = _Axes((left, last if last > left else left + 1), (up[0], up[-1]))
    parts = _frame(axes, across, [(v, look.text(v)) for v in up], (x_name, y_name))
    parts += [_band(axes, x, look.bands[n], k) for k, n in enumerate(lines) if n in look.bands]
    names = look.labels or [_number(v, x_share) for v in x]
    for number, (name, values) in enumerate(lines.items()):
        points = [(a, b, t) for a, b, t in zip(x, values, names, strict=True) if b is not None]
        parts += _line(axes, points, name, number, look)
    return _svg(parts, says)


def _places(
    x: Sequence[float], labels: Sequence[str] | None, share: bool
) -> list[tuple[float, str]]:
    """Return what stands below the plot, and where."""
    if labels is not None:
        step = math.ceil(len(x) / _LABELS)
        return list(zip(x, labels, strict=True))[(len(x) - 1) % step :: step]
    across = ticks(min(x), max(x))
    held = [v for v in across if v <= max(x)] if len(x) > 1 else across
    return [(v, _number(v, share)) for v in held]


def _band(
    axes: _Axes, x: Sequence[float], bands: Sequence[Sequence[float] | None], number: int
) -> Markup:
    held = [(a, b[0], b[1]) for a, b in zip(x, bands, strict=True) if b is not None]
    below = [f"{axes.at_x(a)},{axes.at_y(low)}" for a, low, _ in held]
    above = [f"{axes.at_x(a)},{axes.at_y(high)}" for a, _, high in held]
    path = " ".join([*below, *reversed(above)])
    return Markup('<polygon class="band l{}" points="{}"/>').format(number, path)


def _line(
    axes: _Axes, points: Sequence[tuple[float, float, str]], name: str, number: int, look: Look
) -> list[Markup]:
    path = " ".join(f"{axes.at_x(a)},{axes.at_y(b)}" for a, b, _ in points)
    parts = [Markup(f'<polyline class="line l{number}" points="{path}"/>')]
    for a, b, label in points:
        why = look.marked.get(a)
        if why is None and len(points) > _DOTS:
            continue
        said = f"{name} at {label}: {look.text(b)}{look.unit}" + (f", {why}" if why else "")
        kind = f"dot l{number}" if why is None else f"dot l{number} marked"
        parts.append(
            Markup('<circle class="{}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>').format(
                kind, axes.at_x(a), axes.at_y(b), 3 if why is None else 4.5, said
            )
        )
    return parts


def reliability(bins: Sequence[Mapping[str, float | None]], says: str) -> Markup:
    """Draw accuracy over confidence: a bar a bin, the diagonal, and the pixels' share below.

    A bin has `low`, `high`, `pixels`, `confidence`, `accuracy`.
    """
    axes = _Axes((0, 1), (0, 1))
    marks = ticks(0, 1)
    said = [(v, _number(v, share=True)) for v in marks]
    parts = _frame(axes, said, said, ("confidence, %", "right, %"))
    most = max((b["pixels"] or 0 for b in bins), default=0) or 1
    total = sum(b["pixels"] or 0 for b in bins) or 1
    for each in bins:
        if not each["pixels"] or each["accuracy"] is None or each["confidence"] is None:
            continue
        parts += _bin(axes, each, (each["pixels"] / most, each["pixels"] / total))
    ends = (axes.at_x(0), axes.at_y(0), axes.at_x(1), axes.at_y(1))
    parts.append(Markup('<line class="ideal" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(*ends))
    return _svg(parts, says)


def _bin(
    axes: _Axes, each: Mapping[str, float | None], shares: tuple[float, float]
) -> list[Markup]:
    low, high = each["low"] or 0.0, each["high"] or 0.0
    right, sure = each["accuracy"] or 0.0, each["confidence"] or 0.0
    x, width = axes.at_x(low) + 1, axes.at_x(high) - axes.at_x(low) - 2
    top, gap = axes.at_y(right), sorted((axes.at_y(right), axes.at_y(sure)))
    title = (
        f"confidence {100 * sure:.1f} %, right {100 * right:.1f} %, "
        f"{100 * shares[1]:.1f} % of the pixels"
    )
    width = max(width, 1)
    return [
        Markup('<rect class="fill" x="{:.1f}" y="{}" width="{:.1f}" height="{:.1f}" '
               'style="opacity:{:.2f}"><title>{}</title></rect>').format(
            x, top, width, axes.at_y(0) - top, 0.35 + 0.65 * math.sqrt(shares[0]), title
        ),
        Markup('<rect class="gap" x="{:.1f}" y="{}" width="{:.1f}" height="{:.1f}"/>').format(
            x, gap[0], width, gap[1] - gap[0]
        ),
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Whisker:
    """A row of a dot-and-whisker plot: a value with its interval, None where there is none."""

    name: str
    value: float | None
    interval: Sequence[float] | None
    strong: bool = False


def whiskers(rows: Sequence[Whisker], *, name: str, says: str) -> Markup:
    """Draw rows of dots with intervals around a line at zero; values are shares, in points."""
    known = [v for r in rows for v in (r.value, *(r.interval or ())) if v is not None]
    marks = ticks(min([*known, -0.001]), max([*known, 0.001]), 5)
    low, high = marks[0], marks[-1]
    height = _ROW * len(rows) + 46

    def at(value: float) -> float:
        return round(_NAME + 10 + (value - low) / (high - low) * (_WIDTH - _NAME - 34), 1)

    parts = []
    for value in marks:
        kind = "zero" if abs(value) < 1e-12 else "grid"
        parts.append(
            Markup('<line class="{}" x1="{}" x2="{}" y1="6" y2="{}"/>').format(
                kind, at(value), at(value), height - 36
            )
        )
        said = "0" if kind == "zero" else f"{100 * value:+.4g}"
        parts.append(_text(at(value), height - 22, said))
    parts.append(_text(at((low + high) / 2), height - 5, name, kind="axis"))
    for number, row in enumerate(rows):
        parts += _whisker(row, 6 + _ROW * (number + 0.5), at)
    return _svg(parts, says, height)


def _whisker(row: Whisker, y: float, at: Callable[[float], float]) -> list[Markup]:
    kind = "name strong" if row.strong else "name"
    short = row.name if len(row.name) <= 22 else row.name[:21] + "…"
    parts = [_text(_NAME, y + 4, short, "end", kind)]
    if row.value is None:
        return [*parts, _text(at(0) + 6, y + 4, "–", "start")]
    way = "up" if row.value > 0 else "down"
    said = f"{row.name}: {100 * row.value:+.2f}"
    if row.interval is not None:
        first, last = row.interval
        sure = "sure" if first > 0 or last < 0 else "unsure"
        said += f", interval {100 * first:+.2f} to {100 * last:+.2f}"
        parts.append(
            Markup('<line class="whisker {} {}" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
                way, sure, at(first), at(last), y, y
            )
        )
    else:
        sure = "unsure"
    title = Markup("<title>{}</title>").format(said)
    dot = '<circle class="dot {} {}" cx="{}" cy="{}" r="{}">{}</circle>'
    return [*parts, Markup(dot).format(way, sure, at(row.value), y, 5 if row.strong else 4, title)]


def legend(names: Iterable[str]) -> Markup:
    """Return the key of `curves`' lines."""
    items = (
        Markup('<span><i class="key l{}"></i>{}</span>').format(k, escape(n))
        for k, n in enumerate(names)
    )
    return Markup('<p class="legend small">{}</p>').format(Markup("").join(items))
