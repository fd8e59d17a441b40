"""The summary of an evaluation as Markdown, for a pull request: a screen of text, no pictures.

segmill evaluate ... --out report && gh pr comment --body-file report/summary.md
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from pipeline.report import count, percent, points
from pipeline.report import score_sections as sections
from pipeline.report.score_sections import Words, span

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SPECIAL: Final = re.compile(r"([\\`*_{}\[\]()#+!|~@$<>&-])")
_BREAKS: Final = re.compile(r"[\s\x00-\x1f\x7f]+")
_CLASSES: Final = 200
_SLICES: Final = 10
_FOLDED: Final = 30
"""Tables of more classes than that are folded away."""
_LONGEST: Final = 60_000
"""Characters; GitHub takes 65,536 in a comment."""


def markdown(figures: Mapping[str, Any], title: str) -> str:
    """Return a report's figures (`report.json`) as GitHub's Markdown; names are escaped.

    Parts that the figures do not hold are left out.
    """
    words = Words.of(figures)
    parts = [
        [f"## {escape(title)}", "", f"**{escape(_verdict(figures, words))}**"],
        _gates(figures),
        _headline(figures, words),
        _classes(figures, words),
        _churn(figures),
        _slices(figures),
        _moved(figures),
    ]
    text = "\n\n".join("\n".join(part) for part in parts if part)
    if len(text) > _LONGEST:
        cut = text.rindex("\n", 0, _LONGEST)
        text = text[:cut] + "\n\n… cut; the rest is in `report.json`."
    return text + "\n"


def escape(text: object) -> str:
    """Return any text as Markdown that shows it as it is, on one line, and mentions nobody.

    >>> escape("a|b <i>_x_ @all")
    'a\\\\|b &lt;i&gt;\\\\_x\\\\_ &#64;all'
    """
    line = _BREAKS.sub(" ", str(text)).strip()
    # Entities, not backslashes, for what HTML or a mention would still see.
    entities = {"<": "&lt;", ">": "&gt;", "&": "&amp;", "@": "&#64;", "#": "&#35;"}
    return _SPECIAL.sub(lambda m: entities.get(m[1]) or _shown(m[1]), line)


def _shown(character: str) -> str:
    return character if character in "()-+" else f"\\{character}"


def _verdict(figures: Mapping[str, Any], words: Words) -> str:
    return " · ".join(part["text"] for part in sections.verdict(figures, words))


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table; the first column is left-aligned, the others right. Cells are escaped."""
    rule = [":--", *["--:"] * (len(headings) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (headings, rule, *rows)]


def _gates(figures: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            "❌ failed" if gate["fails"] else "✅ passed",
            escape(gate["gate"]) + (f" ({escape(gate['why'])})" if gate["why"] else ""),
            gate["value"],
            gate["limit"],
        ]
        for gate in sections.gates(figures)
    ]
    return _table(["gate", "fails if", "value", "limit"], rows) if rows else []


def _headline(figures: Mapping[str, Any], words: Words) -> list[str]:
    """Return the headline's table: each score with its interval and its difference."""
    compared = figures.get("baseline") or {}
    intervals = figures.get("intervals") or {}
    names = {
        "miou": words.miou,
        "pixel_accuracy": "pixel accuracy",
        "mean_accuracy": "mean class accuracy",
        "fwiou": "frequency-weighted IoU",
        "mean_dice": "mean Dice",
        "agreement": "pixels that agree",
    }
    rows = []
    for key, name in names.items():
        if key in figures:
            difference = compared.get(key) or {}
            cells = [name, percent(figures[key]), span(intervals.get(key)) or "–"]
            if compared.get("miou"):
                cells += [points(difference.get("difference")), _between(difference)]
            rows.append(cells)
    rows += _further(figures, len(rows[0]) if rows else 3)
    headings = ["%", "", f"{100 * intervals.get('level', 0.95):.0f} % interval"]
    if compared.get("miou"):
        headings += [f"against {escape(sections.last(compared.get('store')))}", "interval"]
    return _table(headings, rows)


def _between(difference: Mapping[str, Any]) -> str:
    return span(difference.get("interval"), points) or "–"


def _further(figures: Mapping[str, Any], width: int) -> list[list[str]]:
    """Return rows of the measures that were asked for."""
    wanted = (
        ("boundary", "boundary_iou", "boundary IoU"),
        ("boundary", "boundary_f1", "boundary F1"),
        ("calibration", "ece", "calibration error (ECE)"),
        ("panoptic", "pq", "PQ"),
        ("objects", "ap", "AP of objects"),
        ("cityscapes", "mean_iiou_classes", "iIoU"),
    )
    return [
        [name, percent(figures[section][key]), *["–"] * (width - 2)]
        for section, key, name in wanted
        if (figures.get(section) or {}).get(key) is not None
    ]


def _classes(figures: Mapping[str, Any], words: Words) -> list[str]:
    """Return the classes, the worst IoU first; those that occur nowhere are left out."""
    compared = (figures.get("baseline") or {}).get("classes") or {}
    intervals = (figures.get("intervals") or {}).get("classes") or {}
    found = [(n, c) for n, c in (figures.get("classes") or {}).items() if c["iou"] is not None]
    found.sort(key=lambda item: (item[1]["iou"], item[0]))
    columns = [] if words.agreement else ["recall", "precision"]
    rows = []
    for name, each in found[:_CLASSES]:
        interval = (intervals.get(name) or {}).get("iou")
        cells = [escape(name), percent(each["iou"]), span(interval) or "–"]
        cells += [percent(each.get(c)) for c in columns]
        if compared:
            difference = compared.get(name) or {}
            cells += [points(difference.get("difference")), _between(difference)]
        rows.append(cells)
    headings = ["class, worst first", "IoU %", "interval", *(f"{c} %" for c in columns)]
    table = _table([*headings, *(["difference", "interval"] if compared else [])], rows)
    if len(rows) <= _FOLDED:
        return table if rows else []
    return ["<details><summary>Classes</summary>", "", *table, "", "</details>"]


def _churn(figures: Mapping[str, Any]) -> list[str]:
    rows = [
        [escape(r["name"]), percent(r["kept"]), percent(r["gained"]), percent(r["lost"])]
        for r in sections.churn(figures.get("churn"))[:_FOLDED]
    ]
    return (
        _table(["class, most changed first", "kept %", "gained %", "lost %"], rows) if rows else []
    )


def _slices(figures: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            f"{escape(s['by'])}: {escape(s['value'])}",
            count(s["images"]),
            percent(s["miou"]),
            span(s.get("miou_interval")) or "–",
            points(s.get("difference")),
            escape(s.get("worst_class") or "–"),
        ]
        for s in (figures.get("slices") or [])[:_SLICES]
    ]
    headings = ["slice, worst first", "images", "mIoU %", "interval", "to the whole", "worst class"]
    return _table(headings, rows) if rows else []


def _moved(figures: Mapping[str, Any]) -> list[str]:
    found = figures.get("baseline") or {}
    if found.get("better") is None:
        return []
    said = (
        f"Images: {count(found['better'])} better, {count(found['same'])} the same, "
        f"{count(found['worse'])} worse"
    )
    worst = (found.get("most_worse") or [])[:3]
    named = ", ".join(f"{escape(m['image_id'])} ({points(m['difference'])})" for m in worst)
    return [f"{said}. Most worse: {named}." if named else f"{said}."]
