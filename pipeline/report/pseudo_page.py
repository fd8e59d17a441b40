"""The page of a round of pseudo-labels: thresholds, expected quality, risk and coverage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from markupsafe import Markup

from pipeline.report import render
from pipeline.report.charts import curves

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.pseudo.round import Judged

_SHOWN: Final = 20
_WHY: Final = {
    "precision": "by precision",
    "starved": "by quota: the threshold keeps less",
    "unmet": "by quota: no threshold reaches the target",
    "few": "by quota: too little held-out truth",
    "unseen": "by quota: never predicted on held-out images",
}


def pseudo_page(judged: Judged, title: str = "pseudo-labels") -> bytes:
    """Return the page as one HTML file that needs nothing else."""
    figures, calibration = judged.figures(), judged.calibration
    expected = figures["expected"]
    colours = {c.name: "#{:02x}{:02x}{:02x}".format(*c.colour) for c in calibration.space.classes}
    rows = [
        {
            "name": rule.name,
            "colour": colours[rule.name],
            "why": _WHY[rule.why],
            "sure": None if rule.sure is None else f"{rule.sure / 255:.3f}",
            "keep": f"{rule.keep / 255:.3f}" if rule.keep <= 255 else "nothing",
            "precision": rule.precision,
            "lower": rule.lower,
            "images": rule.images,
            **expected["classes"][rule.name],
        }
        for rule in calibration.rules
    ]
    curve = judged.quality.risk_coverage(calibration)
    return render(
        "pseudo_page.html",
        title=title,
        expected=expected,
        figures=figures,
        rows=rows,
        curve=_curve(curve),
        ranked=judged.ranked[:_SHOWN],
        failed=judged.quality.failed,
        facts=list(calibration.facts.items()),
    )


def _curve(points: Sequence[tuple[float, float]]) -> Markup:
    """Draw the expected risk over the coverage."""
    if not points:
        return Markup('<p class="muted small">no pixel has a label</p>')
    x, y = zip(*points, strict=True)
    return curves(
        x,
        {"expected wrong": y},
        x_name="surest pixels that are kept, %",
        y_name="expected wrong, %",
        says="Expected share of wrong pixels among the surest ones, by the share that is kept",
        x_share=True,
    )
