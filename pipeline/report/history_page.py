"""The page of all nights: figures over the nights, and a table that leads to each night's page.

sink.write("index.html", history_page(nights.newest()))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from pipeline.report import count, percent, render
from pipeline.report.charts import Look, curves, legend
from pipeline.report.night_page import PAGE, VERDICTS, span

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from markupsafe import Markup

    from pipeline.refresh.record import Night

    Values = Sequence[float | None]

_PLOTTED: Final = 180
"""Nights in the plots, the last ones; the table has all."""
_MADE_OUT: Final = {"rejected": "rejected", "failed": "failed"}


def history_page(
    nights: Sequence[Night], *, title: str = "refresh", page: str = "nights/{night}/" + PAGE
) -> bytes:
    """Return the page as one HTML file that needs nothing else; nights may come in any order.

    `page` is where a night's page lies from here.
    """
    ordered = sorted(nights, key=lambda n: n.id)
    force = _in_force(ordered)
    return render(
        "history_page.html",
        title=title,
        nights=[_row(n, page, n is (force[-1] if force else None)) for n in ordered[::-1]],
        tiles=_tiles(ordered, force[-1] if force else None),
        charts=_charts(ordered[-_PLOTTED:], force[-_PLOTTED:]),
        plotted=min(len(ordered), _PLOTTED),
    )


def _in_force(ordered: Sequence[Night]) -> list[Night | None]:
    """Return, for each night, the one whose labels were in force after it; None before any.

    A night that was taken back counts as never published.
    """
    found: list[Night | None] = []
    for night in ordered:
        stands = night.published is not None and night.rolled_back is None
        found.append(night if stands else found[-1] if found else None)
    return found


def _score(night: Night | None, name: str = "miou") -> Any:
    return None if night is None or night.challenger is None else night.challenger.scores.get(name)


def _drift(night: Night, part: str, name: str) -> float | None:
    value = ((night.drift or {}).get(part) or {}).get(name)
    return None if value is None else float(value)


def _seconds(night: Night) -> float | None:
    return None if night.ended is None else (night.ended - night.began).total_seconds()


def _tiles(ordered: Sequence[Night], force: Night | None) -> list[dict[str, str]]:
    published = [n for n in ordered if n.published is not None]
    rejected = sum(n.status == "rejected" for n in ordered)
    back = sum(n.rolled_back is not None for n in ordered)
    tiles = [
        {"value": force.id if force else "none", "name": "night whose labels are in force"},
        {"value": percent(_score(force)), "unit": "%", "name": "mIoU of its model, held out"},
        {"value": count(len(ordered)), "name": "nights",
         "small": f"{len(published)} published, {rejected} rejected, {back} rolled back"},
    ]  # fmt: skip
    if force is not None and force.published is not None:
        tiles.append({"value": count(force.published.rows), "name": "pseudo-labelled images"})
    return [{"unit": "", "small": "", **t} for t in tiles]


def _row(night: Night, page: str, in_force: bool) -> dict[str, Any]:
    name, kind = VERDICTS[night.status]
    interval = _score(night, "miou_interval")
    took = _seconds(night)
    back = night.rolled_back
    return {
        "id": night.id,
        "page": page.format(night=quote(night.id, safe="")),
        "name": name,
        "kind": kind,
        "in_force": in_force,
        "miou": _score(night),
        "interval": "" if not interval or None in interval else "{} to {}".format(
            *map(percent, interval)
        ),
        "new": count(night.images.new + night.images.changed),
        "churn": _drift(night, "changes", "churn"),
        "ignored": _drift(night, "after", "ignored_share"),
        "took": "–" if took is None else span(took),
        "version": "–" if night.published is None else night.published.version,
        "reasons": night.reasons,
        "back": None if back is None else back.to or "before the first night",
    }  # fmt: skip


# --- plots ----------------------------------------------------------------------------------------


def _charts(nights: Sequence[Night], force: Sequence[Night | None]) -> list[dict[str, Any]]:
    whole = Look("{:,.0f}".format, "")
    scores = {
        "tonight’s model": [_score(n) for n in nights],
        "in force": [_score(n) for n in force],
    }
    bands: dict[str, Any] = {"tonight’s model": [_score(n, "miou_interval") for n in nights]}
    images: dict[str, Values] = {
        "labelled": [n.published.rows if n.published else None for n in nights],
        "new or changed": [n.images.new + n.images.changed for n in nights],
    }
    plots = (
        _plot("mIoU on held-out truth, %", nights, scores, Look(bands=bands)),
        _plot("images", nights, images, whole),
        _plot("churn: pixels with another label, %", nights,
              {"churn": _of(nights, "changes", "churn")}, Look()),
        _plot("pixels without a label, %", nights,
              {"ignored": _of(nights, "after", "ignored_share")}, Look()),
        _plot("entropy of the class shares, % of its most", nights,
              {"entropy": _of(nights, "after", "entropy")}, Look()),
        _plot("mean confidence, %", nights,
              {"confidence": _of(nights, "after", "mean_confidence")}, Look()),
        _plot("minutes a night", nights, {"minutes": _each(nights, _minutes)},
              Look("{:.3g}".format, "")),
    )  # fmt: skip
    return [p for p in plots if p is not None]


def _of(nights: Sequence[Night], part: str, name: str) -> Values:
    return [_drift(n, part, name) for n in nights]


def _each(nights: Sequence[Night], value: Callable[[Night], float | None]) -> Values:
    return [value(n) for n in nights]


def _minutes(night: Night) -> float | None:
    seconds = _seconds(night)
    return None if seconds is None else seconds / 60


def _plot(
    name: str, nights: Sequence[Night], lines: Mapping[str, Values], look: Look
) -> dict[str, Any] | None:
    """Draw lines over the nights; those that were turned down are made out."""
    if not any(v is not None for values in lines.values() for v in values):
        return None
    marked = {
        float(k): _MADE_OUT.get(n.status, "rolled back")
        for k, n in enumerate(nights)
        if n.status in _MADE_OUT or n.rolled_back is not None
    }
    bands = {
        line: [b if b and None not in b else None for b in held]
        for line, held in look.bands.items()
    }
    look = Look(look.text, look.unit, [n.id[5:] for n in nights], bands, marked)
    says = f"{name}, over {len(nights)} nights, {nights[0].id} to {nights[-1].id}"
    svg = curves(list(range(len(nights))), lines, x_name="night", y_name="", says=says, look=look)
    key: Markup | str = legend(lines) if len(lines) > 1 else ""
    return {"name": name, "svg": svg, "legend": key}
