"""The page of a validation: how many findings of each kind, examples, the balance of classes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from pipeline.checks.findings import KINDS, SEVERITIES
from pipeline.report import count, percent, render

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.checks.findings import Finding
    from pipeline.label_space import LabelSpace
    from pipeline.labels.class_counts import GroupCounts
    from pipeline.report.finding_pictures import Pictures
    from pipeline.validation import Validation

_LEAST: Final = 1e-5
"""The share of pixels at which a bar of the class balance begins."""
_SPLITS: Final = ("train", "val", "test", "unlabelled")


def validation_page(
    found: Validation,
    spaces: Mapping[str, LabelSpace],
    *,
    title: str,
    facts: Mapping[str, str],
    pictures: Mapping[Finding, Pictures],
) -> bytes:
    """Return the page as one HTML file that needs nothing else; `facts` say how it was made."""
    order = sorted(
        found.examples, key=lambda k: (SEVERITIES.index(KINDS[k].severity), list(KINDS).index(k))
    )
    kinds = [
        {
            "name": kind,
            "severity": KINDS[kind].severity,
            "title": KINDS[kind].title,
            "mend": KINDS[kind].mend,
            "count": found.counts[kind],
            "examples": [{"finding": f, "pictures": pictures.get(f)} for f in found.examples[kind]],
        }
        for kind in order
    ]
    return render(
        "validation_page.html",
        title=title,
        found=found,
        errors=found.of_severity("error"),
        warnings=found.of_severity("warning"),
        infos=found.of_severity("info"),
        kinds=kinds,
        balance=_balance(found, spaces),
        facts=list(facts.items()),
    )


def _balance(found: Validation, spaces: Mapping[str, LabelSpace]) -> list[dict[str, Any]]:
    """Return one table a label space: a class a row, a split a column."""
    by: dict[str, dict[str, GroupCounts]] = {}
    for (name, split), sums in found.classes.by("label_space", "split").items():
        by.setdefault(name, {})[split] = sums
    return [_table(spaces[name], splits) for name, splits in by.items() if name in spaces]


def _table(space: LabelSpace, splits: Mapping[str, GroupCounts]) -> dict[str, Any]:
    order = sorted(splits, key=lambda s: (_SPLITS.index(s) if s in _SPLITS else len(_SPLITS), s))
    totals = {s: sum(_at(splits[s].pixels, i) for i in space.train_ids) for s in order}
    everywhere = max(1, sum(totals.values()))
    rows: list[dict[str, Any]] = []
    for number in space.train_ids:
        c = space.by_id[number]
        pixels = sum(_at(splits[s].pixels, number) for s in order)
        rows.append(
            {
                "name": c.name,
                "colour": "#{:02x}{:02x}{:02x}".format(*c.colour),
                "pixels": pixels,
                "share": _share(pixels / everywhere),
                "images": sum(_at(splits[s].images, number) for s in order),
                "objects": sum(_at(splits[s].objects, number) for s in order),
                "cells": [
                    _cell(
                        s, _at(splits[s].pixels, number), totals[s], _at(splits[s].images, number)
                    )
                    for s in order
                ],
            }
        )
    rows.sort(key=lambda row: (-row["pixels"], -row["objects"]))
    return {
        "name": space.name,
        "splits": [{"name": s or "no split", "rows": splits[s].rows} for s in order],
        "rows": rows,
        "objects": any(row["objects"] for row in rows),
    }


def _at(values: Sequence[int] | Any, number: int) -> int:
    return int(values[number]) if number < len(values) else 0


def _cell(split: str, pixels: int, total: int, images: int) -> dict[str, Any]:
    share = pixels / total if total else 0.0
    length = (
        0.0 if not share else max(0.02, 1 - math.log10(max(share, _LEAST)) / math.log10(_LEAST))
    )
    title = f"{split}: {count(pixels)} pixels in {count(images)} images"
    return {
        "length": round(100 * length, 1),
        "share": _share(share),
        "title": title,
        "split": split,
    }


def _share(share: float) -> str:
    """Return a share of pixels in per cent, with the digits that rare classes need."""
    if not share:
        return "–"
    return percent(share) if share >= 0.01 else f"{100 * share:.3f}" if share >= 1e-5 else "<0.001"
