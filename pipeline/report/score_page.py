"""The page of an evaluation: headline, classes, confusions, worst and best images, its making."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.report import count, render

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.label_space import LabelSpace
    from pipeline.metrics.confusion import Counts
    from pipeline.report.examples import Example
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
) -> bytes:
    """Return the page as one HTML file that needs nothing else; `facts` say how it was made."""
    shown = _Shown.of(scores.space)
    return render(
        "score_page.html",
        title=title,
        scores=scores,
        tally=scores.tally,
        notes=_notes(scores),
        classes=_class_rows(scores, shown),
        histogram=_histogram(scores.histogram),
        errors=_errors(scores, shown),
        confusions=_confusions(scores.matrix.counts, shown),
        matrix=_matrix(scores.matrix.counts, shown),
        worst=worst,
        best=best,
        failures=scores.failures[:_FAILURES],
        facts=list(facts.items()),
    )


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


def _class_rows(scores: Scores, shown: _Shown) -> list[dict[str, Any]]:
    tally = scores.tally
    share = tally.truth / max(1, tally.pixels)
    columns = zip(
        *(map(_known, a.tolist()) for a in (tally.iou, tally.recall, tally.precision, share)),
        strict=True,
    )
    return [
        shown.column(k)
        | dict(zip(("iou", "recall", "precision", "share"), row, strict=True))
        | {"taken_for": _taken_for(scores.matrix.counts, k, shown)}
        for k, row in enumerate(columns)
    ]


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


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


def _matrix(counts: Counts, shown: _Shown) -> dict[str, Any]:
    """Return the non-zero cells for the page's script; of very many the largest."""
    rows, columns = np.nonzero(counts)
    left_out = max(0, len(rows) - _CELLS)
    if left_out:
        largest = np.sort(np.argsort(-counts[rows, columns], kind="stable")[:_CELLS])
        rows, columns = rows[largest], columns[largest]
    cells = np.stack([rows, columns, counts[rows, columns]], axis=1).tolist()
    return {"data": {"names": shown.names, "cells": cells}, "left_out": left_out}


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


def _notes(scores: Scores) -> list[str]:
    """Return what a reader must know before believing the numbers."""
    notes = []
    if scores.unpredicted:
        notes.append(f"Images of the truth without a prediction: {count(scores.unpredicted)}.")
    if scores.unlabelled:
        notes.append(f"Rows of truth without a mask: {count(scores.unlabelled)}.")
    if scores.failed:
        notes.append(f"Images that could not be scored: {count(scores.failed)}, listed below.")
    if scores.tally.coverage < 0.9995:
        share = 1 - scores.tally.coverage
        notes.append(f"{100 * share:.1f} % of the scored pixels got no label and count as wrong.")
    sides = (("truth", scores.truth_loss), ("the predictions", scores.predicted_loss))
    for which, loss in sides:
        if loss is not None and loss.any:
            lines = "; ".join(line.strip() for line in loss.lines()[:6])
            notes.append(f"Taking {which} to {scores.space.name} lost detail: {lines}.")
    return notes
