"""HTML pages that work from disk, offline: one template, one style, no framework."""

from __future__ import annotations

from functools import cache
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "points": points, "way": way, "count": count}
    return environment


def render(template: str, **values: Any) -> bytes:
    """Return a page of this folder's template; every value is escaped."""
    return _environment().get_template(template).render(**values).encode()


def percent(share: float | None) -> str:
    """Return a share for people.

    >>> percent(0.69412), percent(None), percent(float("nan"))
    ('69.4', '–', '–')
    """
    return "–" if share is None or isnan(share) else f"{100 * share:.1f}"


def points(share: float | None) -> str:
    """Return a difference of shares in points of a per cent, with its sign.

    >>> points(0.0123), points(-0.5), points(None), points(0.0)
    ('+1.2', '−50.0', '–', '0.0')
    """
    if share is None:
        return "–"
    said = f"{100 * share:+.1f}"
    return "0.0" if said in ("+0.0", "-0.0") else said.replace("-", "−")


def way(share: float | None) -> str:
    """Return whether a difference that `points` shows is "better", "worse" or neither.

    >>> way(0.01), way(-0.01), way(0.0004), way(None)
    ('better', 'worse', '', '')
    """
    shown = points(share)
    return "better" if shown.startswith("+") else "worse" if shown.startswith("−") else ""


def count(number: int) -> str:
    """Return a count for people.

    >>> count(1234567)
    '1,234,567'
    """
    return f"{number:,}"
