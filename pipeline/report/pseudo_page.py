"""The page of a round of pseudo-labels: thresholds, expected quality, risk and coverage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pipeline.report import render

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.pseudo.round import Judged

_WIDTH, _HEIGHT = 560, 220
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
        most_risk=max((risk for _, risk in curve), default=0.0),
        ranked=judged.ranked[:_SHOWN],
        failed=judged.quality.failed,
        facts=list(calibration.facts.items()),
    )


def _curve(points: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Return the points of a polyline: coverage to the right, risk upwards, from 0 to its most."""
    most = max((risk for _, risk in points), default=0.0) or 1.0
    line = " ".join(f"{_WIDTH * x:.1f},{_HEIGHT * (1 - y / most):.1f}" for x, y in points)
    return {"points": line, "width": _WIDTH, "height": _HEIGHT}
