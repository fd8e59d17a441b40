"""The sections of an evaluation's page that follow from figures which only some reports have.

Each function takes the figures as `report.json` holds them and returns what its part of the
template shows, or None where the figures are not there. Figures of None are a dash.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pipeline.report import charts, percent, points

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from markupsafe import Markup

_CLASSES_DRAWN: Final = 40
_MOVED: Final = 12
_SLICES: Final = 100


@dataclass(frozen=True, slots=True)
class Words:
    """What the two sides are called: labels against truth, or labels against labels."""

    agreement: bool
    truth: str
    predicted: str
    miou: str

    @classmethod
    def of(cls, figures: Mapping[str, Any]) -> Words:
        """Return the words for a report's figures."""
        if figures.get("compares") == "labels with labels":
            return cls(True, "earlier labels", "new labels", "mean IoU of the two")
        return cls(False, "truth", "prediction", "mIoU")


def number(value: float | int | None) -> str:
    """Return a figure of a gate.

    >>> number(0.41812), number(12000), number(None)
    ('0.4181', '12,000', '–')
    """
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def span(interval: Sequence[float] | None, shown: Callable[[float], str] = percent) -> str:
    """Return an interval for people.

    >>> span([0.401, 0.4321]), span([-0.01, 0.02], points), span(None)
    ('40.1 – 43.2', '−1.0 to +2.0', '')
    """
    if interval is None:
        return ""
    between = " to " if shown is points else " – "
    return between.join(shown(v) for v in interval)


def verdict(figures: Mapping[str, Any], words: Words) -> list[dict[str, str]]:
    """Return the page's first line in parts: how good, against what, and whether gates hold."""
    parts = []
    if words.agreement and "agreement" in figures:
        parts.append({"kind": "", "text": f"{percent(figures['agreement'])} % of pixels agree"})
    interval = (figures.get("intervals") or {}).get("miou")
    said = f"{words.miou} {percent(figures.get('miou'))} %"
    level = (figures.get("intervals") or {}).get("level", 0.95)
    parts.append(
        {
            "kind": "",
            "text": said + (f" ({100 * level:.0f} %: {span(interval)})" if interval else ""),
        }
    )
    compared = (figures.get("baseline") or {}).get("miou")
    if compared and compared["difference"] is not None:
        parts.append(_against(compared, figures["baseline"]))
    gates = figures.get("gates") or []
    failed = sum(bool(g["fails"]) for g in gates)
    if gates:
        text = f"{failed} of {len(gates)} gates failed" if failed else f"{_all(len(gates))} passed"
        parts.append({"kind": "bad" if failed else "good", "text": text})
    return parts


def _all(gates: int) -> str:
    return "the gate" if gates == 1 else f"all {gates} gates"


def _against(compared: Mapping[str, Any], baseline: Mapping[str, Any]) -> dict[str, str]:
    interval = compared["interval"]
    text = f"{points(compared['difference'])} points against {last(baseline.get('store'))}"
    if interval is None:
        return {"kind": "", "text": text}
    kind = "good" if interval[0] > 0 else "bad" if interval[1] < 0 else ""
    doubt = "" if kind else ", which may be chance"
    return {"kind": kind, "text": f"{text} ({span(interval, points)}{doubt})"}


def last(url: str | None) -> str:
    """Return the last part of a store's URL."""
    return (url or "the baseline").rstrip("/").rsplit("/", 1)[-1]


def tiles(figures: Mapping[str, Any], words: Words) -> list[dict[str, str]]:
    """Return the headline figures that the report has, in per cent, with their intervals."""
    names = [
        ("pixel_accuracy", "pixel accuracy"),
        ("mean_accuracy", "mean class accuracy"),
        ("fwiou", "frequency-weighted IoU"),
        ("mean_dice", "mean Dice (F1)"),
        ("kappa", "Cohen’s kappa × 100"),
        ("coverage", "of pixels given a label"),
    ]
    if words.agreement:
        names = [("agreement", "of pixels agree")]
    intervals = figures.get("intervals") or {}
    return [
        {"value": percent(figures[key]), "name": name, "interval": span(intervals.get(key))}
        for key, name in names
        if key in figures
    ]


def gates(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the gates, failed ones first."""
    found = figures.get("gates") or []
    rows = [
        {
            "gate": g["gate"],
            "value": number(g["value"]),
            "limit": number(g["limit"]),
            "fails": bool(g["fails"]),
            "why": g.get("why") or "",
        }
        for g in found
    ]
    return sorted(rows, key=lambda g: not g["fails"])


def slices(figures: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the slices, the worst first."""
    found = figures.get("slices")
    if not found:
        return None
    overall = figures.get("miou")
    rows = [
        {
            **s,
            "interval": span(s.get("miou_interval")),
            "low": (s.get("miou_interval") or [None])[0],
            "high": (s.get("miou_interval") or [None, None])[1],
            "points": points(s.get("difference")),
            "note": s.get("note") or ("few images" if s.get("few") else ""),
        }
        for s in found[:_SLICES]
    ]
    return {"rows": rows, "left_out": max(0, len(found) - _SLICES), "overall": overall}


def baseline(figures: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the comparison: differences as a plot, images that moved, churn."""
    found = figures.get("baseline")
    if not found:
        return None
    return {
        "name": last(found.get("store")),
        "version": found.get("version"),
        "images": found["images"],
        "rows": _differences(found),
        "chart": _difference_chart(found),
        "moved": found.get("better") is not None,
        **{k: found.get(k) or 0 for k in ("better", "worse", "same")},
        "most_better": (found.get("most_better") or [])[:_MOVED],
        "most_worse": (found.get("most_worse") or [])[:_MOVED],
        "agreement": found.get("agreement"),
        "churn": churn(found.get("churn")),
        "level": f"{100 * found.get('level', 0.95):.0f} %",
        "note": found.get("note") or "",
    }


_HEADLINE: Final = {
    "miou": "mIoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean class accuracy",
    "fwiou": "frequency-weighted IoU",
}


def _differences(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = [(name, found[key], False) for key, name in _HEADLINE.items() if key in found]
    rows += [(name, each, True) for name, each in (found.get("classes") or {}).items()]
    return [
        {
            "name": name,
            "is_class": is_class,
            "this": each["this"],
            "baseline": each["baseline"],
            "difference": each["difference"],
            "points": points(each["difference"]),
            "sure": sure(each["interval"]),
            "interval": span(each["interval"], points),
            "p": _p(each.get("p_adjusted", each.get("p"))),
        }
        for name, each, is_class in rows
    ]


def sure(interval: Sequence[float] | None) -> bool:
    """Tell whether an interval of a difference leaves zero out.

    >>> sure([0.01, 0.02]), sure([-0.01, 0.02]), sure(None)
    (True, False, False)
    """
    return interval is not None and (interval[0] > 0 or interval[1] < 0)


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _difference_chart(found: Mapping[str, Any]) -> Markup | None:
    if "miou" not in found:
        return None
    drawn = [charts.Whisker("mIoU", found["miou"]["difference"], found["miou"]["interval"], True)]
    classes = sorted(
        (found.get("classes") or {}).items(), key=lambda item: -abs(item[1]["difference"] or 0)
    )[:_CLASSES_DRAWN]
    classes.sort(key=lambda item: -(item[1]["difference"] or 0))
    drawn += [charts.Whisker(n, c["difference"], c["interval"]) for n, c in classes]
    says = f"Differences of IoU by class; mIoU {points(found['miou']['difference'])} points"
    return charts.whiskers(drawn, name="difference of IoU, points", says=says)


def churn(found: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return the classes' pixels that stayed, came and went, the most changed first."""
    rows = []
    for name, each in (found or {}).items():
        either = each["kept"] + each["gained"] + each["lost"]
        if either:
            shares = {k: each[k] / either for k in ("kept", "gained", "lost")}
            before = each["kept"] + each["lost"]
            grown = (each["gained"] - each["lost"]) / before if before else None
            rows.append({"name": name, **shares, "grown": grown, "said": points(grown)})
    return sorted(rows, key=lambda r: r["kept"])


def boundary(figures: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the boundary scores: the trimap curve and the classes' table."""
    found = figures.get("boundary")
    if not found:
        return None
    trimap, chart, legend = found.get("trimap") or [], None, None
    if trimap:
        lines = {
            name: [t[key] for t in trimap]
            for key, name in (("miou", "mIoU"), ("accuracy", "pixel accuracy"))
        }
        chart = charts.curves(
            [t["pixels"] for t in trimap],
            lines,
            x_name="distance from the truth’s boundary, pixels",
            y_name="within it, %",
            says="mIoU and accuracy within a band around boundaries, by its width",
        )
        legend = charts.legend(lines)
    tolerance = found.get("tolerance_pixels")
    said = f"{tolerance:g} pixels" if tolerance else _diagonal(found.get("tolerance_share"))
    return {
        "tolerance": said,
        "band": _diagonal(found["band_share"]) if found.get("band_share") else "",
        "boundary_iou": found["boundary_iou"],
        "boundary_f1": found["boundary_f1"],
        "chart": chart,
        "legend": legend,
        "table": _table(
            found.get("classes"),
            {
                "boundary_iou": "Boundary IoU",
                "boundary_f1": "F1",
                "precision": "Precision",
                "recall": "Recall",
            },
        ),
    }


def _diagonal(share: float | None) -> str:
    return "a share of the diagonal" if share is None else f"{100 * share:g} % of the diagonal"


def calibration(figures: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the reliability diagram, the risk–coverage curve and the classes' errors."""
    found = figures.get("calibration")
    if not found:
        return None
    ece, risk = found.get("ece"), found.get("risk_coverage") or []
    sure, right = found.get("mean_confidence"), found.get("accuracy")
    over = None if sure is None or right is None else sure - right
    return {
        **{k: found.get(k) for k in ("ece", "mce", "mean_confidence", "accuracy", "pixels")},
        "over": points(over),
        "reliability": charts.reliability(
            found.get("bins") or [],
            f"Reliability diagram; the expected calibration error is {percent(ece)} points",
        ),
        "risk": _risk(risk) if len(risk) > 1 else None,
        "table": _table(
            found.get("classes"), {"ece": "ECE", "confidence": "Confidence", "accuracy": "Right"}
        ),
    }


def _risk(risk: Sequence[Mapping[str, float]]) -> Markup:
    return charts.curves(
        [r["coverage"] for r in risk],
        {"wrong pixels": [r["risk"] for r in risk]},
        x_name="most confident pixels that are kept, %",
        y_name="of them wrong, %",
        says="Share of wrong pixels among the most confident ones, by the share that is kept",
        x_share=True,
    )


def _table(
    rows: Mapping[str, Mapping[str, Any]] | None, columns: Mapping[str, str]
) -> dict[str, Any] | None:
    """Return a table of shares by class."""
    if not rows:
        return None
    return {
        "columns": list(columns.values()),
        "rows": [
            {"name": name, "values": [each.get(c) for c in columns]} for name, each in rows.items()
        ],
    }


def further(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the tables of the official evaluators' scores: panoptic, Cityscapes, COCO."""
    return [t for t in (_panoptic(figures), _objects(figures), *_cityscapes(figures)) if t]


def _panoptic(figures: Mapping[str, Any]) -> dict[str, Any] | None:
    found = figures.get("panoptic")
    if not found:
        return None
    parts = {"PQ": found.get("pq"), "SQ": found.get("sq"), "RQ": found.get("rq")}
    parts |= {
        f"PQ of {kind}": (found.get(kind) or {}).get("pq")
        for kind in ("things", "stuff")
        if found.get(kind)
    }
    columns = {"pq": "PQ", "sq": "SQ", "rq": "RQ"}
    lead = "Panoptic quality is segmentation quality × recognition quality."
    return _part("panoptic", "Panoptic quality", lead, parts, found.get("classes"), columns)


def _objects(figures: Mapping[str, Any]) -> dict[str, Any] | None:
    found = figures.get("objects")
    if not found:
        return None
    names = {
        "ap": "AP", "ap50": "AP at 50 %", "ap75": "AP at 75 %", "ap_small": "AP, small",
        "ap_medium": "AP, medium", "ap_large": "AP, large", "ar100": "AR, 100 objects",
    }  # fmt: skip
    parts = {name: found[key] for key, name in names.items() if key in found}
    lead = "Average precision of objects’ masks, as COCO computes it."
    return _part("objects", "Objects", lead, parts, found.get("classes"), {"ap": "AP"})


def _cityscapes(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = figures.get("cityscapes")
    if not found:
        return []
    names = {
        "mean_iou_categories": "IoU of categories", "mean_iiou_classes": "iIoU of classes",
        "mean_iiou_categories": "iIoU of categories",
    }  # fmt: skip
    parts = {name: found[key] for key, name in names.items() if key in found}
    instances = found.get("instances") or {}
    parts |= {n: instances[k] for k, n in (("ap", "AP"), ("ap50", "AP at 50 %")) if k in instances}
    rows = {
        name: {"iou": value, "iiou": (found.get("iiou_categories") or {}).get(name)}
        for name, value in (found.get("iou_categories") or {}).items()
    }
    lead = "Cityscapes’ own scores: iIoU weighs objects alike, whatever their size."
    columns = {"iou": "IoU", "iiou": "iIoU"}
    return [_part("cityscapes", "Cityscapes", lead, parts, rows, columns)]


def _part(
    key: str,
    title: str,
    lead: str,
    parts: Mapping[str, float | None],
    rows: Mapping[str, Mapping[str, Any]] | None,
    columns: Mapping[str, str],
) -> dict[str, Any]:
    figures = [{"name": n, "value": percent(v)} for n, v in parts.items()]
    table = _table(rows, columns)
    return {"id": key, "title": title, "lead": lead, "figures": figures, "table": table}
