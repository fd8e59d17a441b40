"""The page of an evaluation: headline, classes, confusions, worst and best images, its making.

What only some reports have - intervals, a baseline, boundaries, gates - comes from the figures, and
has a section only if it is among them (`pipeline.report.score_sections`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.metrics.shares import known
from pipeline.report import count, render, score_sections
from pipeline.report.score_sections import Words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.label_space import LabelSpace
    from pipeline.metrics.confusion import Counts
    from pipeline.report.examples import ConfusedPair, Example
    from pipeline.scoring import Scores

_CONFUSIONS: Final = 10
_TAKEN_FOR: Final = 2
_ERRORS: Final = 8
_CELLS: Final = 50_000  # cells of the matrix in the page: a megabyte of numbers
_FAILURES: Final = 100
_NO_LABEL: Final = "no label"


def score_page(
    scores: Scores,
    *,
    title: str,
    facts: Mapping[str, str],
    worst: Sequence[Example] = (),
    best: Sequence[Example] = (),
    figures: Mapping[str, Any] | None = None,
    confused: Sequence[ConfusedPair] = (),
) -> bytes:
    """Return the page as one HTML file that needs nothing else; `facts` say how it was made.

    `figures` is what `report.json` holds (default: the scores' own); `worst`, `best` and `confused`
    are shown with their pictures.
    """
    shown = _Shown.of(scores.space)
    told = scores.figures() if figures is None else figures
    words = Words.of(told)
    sections = {
        "verdict": score_sections.verdict(told, words),
        "tiles": score_sections.tiles(told, words),
        "gates": score_sections.gates(told),
        "slices": score_sections.slices(told),
        "baseline": score_sections.baseline(told),
        "churn": score_sections.churn(told.get("churn")),
        "boundary": score_sections.boundary(told),
        "calibration": score_sections.calibration(told),
        "further": score_sections.further(told),
    }
    return render(
        "score_page.html",
        title=title,
        scores=scores,
        tally=scores.tally,
        words=words,
        notes=_notes(scores, words) + _noted(told),
        classes=_class_rows(scores, shown, told),
        interval=score_sections.span((told.get("intervals") or {}).get("miou")),
        colours=dict(zip(shown.names, shown.colours, strict=True)),
        level=f"{100 * (told.get('intervals') or {}).get('level', 0.95):.0f} %",
        histogram=_histogram(scores.histogram),
        errors=_errors(scores, shown),
        confusions=_confusions(scores.matrix.counts, shown),
        confused=[_confused(pair, scores.matrix.counts, shown) for pair in confused],
        matrix=_matrix(scores.matrix.counts, shown, words),
        worst=worst,
        best=best,
        failures=scores.failures[:_FAILURES],
        facts=[*facts.items(), *_left_out(told)],
        **sections,
    )


def _left_out(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the measures that were not taken, and why: no alarm, nobody asked for them by name."""
    return [(f"not measured: {n}", why) for n, why in (figures.get("left_out") or {}).items()]


def _noted(figures: Mapping[str, Any]) -> list[str]:
    """Return what the measures say of themselves."""
    note = (figures.get("intervals") or {}).get("note")
    return [str(note)] if note else []


@dataclass(frozen=True, slots=True)
class _Shown:
    """Names and CSS colours of the matrix's columns: the classes, then "no label"."""

    names: tuple[str, ...]
    colours: tuple[str, ...]

    @classmethod
    def of(cls, space: LabelSpace) -> _Shown:
        classes = [space.by_id[i] for i in space.train_ids]
        colours = ["#{:02x}{:02x}{:02x}".format(*c.colour) for c in classes]
        return cls((*(c.name for c in classes), _NO_LABEL), (*colours, "transparent"))

    def column(self, position: int) -> dict[str, str]:
        return {"name": self.names[position], "colour": self.colours[position]}


def _class_rows(scores: Scores, shown: _Shown, figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    tally = scores.tally
    share = tally.truth / max(1, tally.pixels)
    columns = zip(
        *(map(known, a.tolist()) for a in (tally.iou, tally.recall, tally.precision, share)),
        strict=True,
    )
    intervals = (figures.get("intervals") or {}).get("classes") or {}
    compared = (figures.get("baseline") or {}).get("classes") or {}
    return [
        shown.column(k)
        | dict(zip(("iou", "recall", "precision", "share"), row, strict=True))
        | {
            "interval": (intervals.get(shown.names[k]) or {}).get("iou"),
            "difference": (compared.get(shown.names[k]) or {}).get("difference"),
            "sure": score_sections.sure((compared.get(shown.names[k]) or {}).get("interval")),
            "taken_for": _taken_for(scores.matrix.counts, k, shown),
        }
        for k, row in enumerate(columns)
    ]


def _taken_for(counts: Counts, k: int, shown: _Shown) -> list[dict[str, Any]]:
    """Return what the class is most often mistaken for, where that is a per cent or more."""
    row = counts[k].copy()
    total = int(row.sum())
    row[k] = 0
    order = np.argsort(-row, kind="stable")[:_TAKEN_FOR].tolist()
    return [
        {"name": shown.names[j], "share": int(row[j]) / total}
        for j in order
        if row[j] and row[j] >= 0.01 * total
    ]


def _errors(scores: Scores, shown: _Shown) -> list[dict[str, Any]]:
    """Return the classes with the most pixels missed or wrongly claimed."""
    tally = scores.tally
    wrong = tally.union - tally.intersection
    order = [k for k in np.argsort(-wrong, kind="stable").tolist() if wrong[k]][:_ERRORS]
    total, most = int(wrong.sum()), int(wrong.max(initial=0))
    return [
        shown.column(k) | {"share": int(wrong[k]) / total, "relative": int(wrong[k]) / most}
        for k in order
    ]


def _confusions(counts: Counts, shown: _Shown) -> list[dict[str, Any]]:
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]
    truth, predicted = np.unravel_index(order, wrong.shape)
    return [
        {
            "truth": shown.column(i),
            "predicted": shown.column(j),
            "of_truth": wrong[i, j] / counts[i].sum(),
            "of_errors": wrong[i, j] / wrong.sum(),
        }
        for i, j in zip(truth.tolist(), predicted.tolist(), strict=True)
        if wrong[i, j]
    ]


def _confused(pair: ConfusedPair, counts: Counts, shown: _Shown) -> dict[str, Any]:
    pixels = int(counts[pair.truth, pair.predicted])
    return {
        "truth": shown.column(pair.truth),
        "predicted": shown.column(pair.predicted),
        "of_truth": pixels / max(1, int(counts[pair.truth].sum())),
        "examples": [{"example": e, "share": e.pixels / max(1, pixels)} for e in pair.examples],
    }


def _matrix(counts: Counts, shown: _Shown, words: Words) -> dict[str, Any]:
    """Return the non-zero cells for the page's script; of very many the largest."""
    rows, columns = np.nonzero(counts)
    left_out = max(0, len(rows) - _CELLS)
    if left_out:
        largest = np.sort(np.argsort(-counts[rows, columns], kind="stable")[:_CELLS])
        rows, columns = rows[largest], columns[largest]
    cells = np.stack([rows, columns, counts[rows, columns]], axis=1).tolist()
    sides = {"truth": words.truth, "predicted": "new labels" if words.agreement else "predicted"}
    return {"data": {"names": shown.names, "cells": cells, **sides}, "left_out": left_out}


def _histogram(bins: Sequence[int]) -> dict[str, Any]:
    total, highest, width = sum(bins), max(max(bins), 1), 100 // len(bins)
    bars = []
    for k, images in enumerate(bins):
        height = round(108 * images / highest, 1)
        title = f"{width * k}–{width * (k + 1)} %: {count(images)} images"
        bars.append({"x": 11 + 19 * k, "y": 122 - height, "height": height, "title": title})
    if not total:
        return {"bars": bars, "summary": "no image was scored"}
    middle = int(np.searchsorted(np.cumsum(bins), (total + 1) // 2))
    summary = f"the median image lies between {width * middle} and {width * (middle + 1)} %"
    return {"bars": bars, "summary": summary}


def _notes(scores: Scores, words: Words) -> list[str]:
    """Return what a reader must know before believing the numbers."""
    notes = []
    if scores.unpredicted:
        notes.append(
            f"Images of the {words.truth} without a {_one(words)}: {count(scores.unpredicted)}."
        )
    if scores.unlabelled:
        notes.append(f"Rows of {words.truth} without a mask: {count(scores.unlabelled)}.")
    if scores.failed:
        notes.append(
            f"Images that could not be {_done(words)}: {count(scores.failed)}, listed below."
        )
    if scores.tally.coverage < 0.9995 and not words.agreement:
        share = 1 - scores.tally.coverage
        notes.append(f"{100 * share:.1f} % of the scored pixels got no label and count as wrong.")
    sides = ((words.truth, scores.truth_loss), (f"the {words.predicted}", scores.predicted_loss))
    for which, loss in sides:
        if loss is not None and loss.any:
            lines = "; ".join(line.strip() for line in loss.lines()[:6])
            notes.append(f"Taking {which} to {scores.space.name} lost detail: {lines}.")
    return notes


def _one(words: Words) -> str:
    return "new label map" if words.agreement else "prediction"


def _done(words: Words) -> str:
    return "compared" if words.agreement else "scored"
