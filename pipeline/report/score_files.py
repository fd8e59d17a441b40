"""The files of an evaluation's report: the page, its figures as JSON, the matrix as CSV."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

from pipeline.report.examples import confused_examples, examples
from pipeline.report.score_markdown import markdown
from pipeline.report.score_page import score_page

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.metrics.confusion import Counts
    from pipeline.scoring import Scores
    from pipeline.store import Store
    from pipeline.trees.sinks import Sink

FILES = {
    "report": "index.html",
    "json": "report.json",
    "per_image": "per_image.parquet",
    "confusion": "confusion.csv",
    "summary": "summary.md",
}
"""What lies in a report, by the names that the summary gives them."""


def write_report(
    sink: Sink, scores: Scores, stores: tuple[Store, Store], title: str, facts: Mapping[str, str]
) -> None:
    """Write the page, the JSON and the matrix; `facts` say how the report was made."""
    shown = [examples(*stores, images, scores.space) for images in (scores.worst, scores.best)]
    confused = confused_examples(*stores, scores.matrix.counts, scores.confused, scores.space)
    report = report_of(scores, facts)
    page = score_page(
        scores,
        title=title,
        facts=facts,
        worst=shown[0],
        best=shown[1],
        figures=report,
        confused=confused,
    )
    sink.write(FILES["confusion"], matrix_csv(scores.matrix.counts, scores.class_names))
    sink.write(FILES["json"], json.dumps(report, indent=1).encode() + b"\n")
    sink.write(FILES["summary"], markdown(report, title).encode())
    sink.write(FILES["report"], page)


def report_of(scores: Scores, facts: Mapping[str, str]) -> dict[str, Any]:
    """Return what `report.json` holds: the sum, all figures, the extremes and the failures."""
    return {
        "inputs": scores.inputs,
        "done": scores.done,
        "skipped": scores.skipped,
        "failed": scores.failed,
        **scores.figures(),
        "facts": dict(facts),
        "worst": [image.row() for image in scores.worst],
        "best": [image.row() for image in scores.best],
        "failures": [failure.to_dict() for failure in scores.failures],
        "baseline_failures": [failure.to_dict() for failure in scores.incomparable_failures],
    }


def matrix_csv(counts: Counts, names: Sequence[str]) -> bytes:
    """Return the matrix with its headings; rows are truth, the last column is "no label"."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["truth / predicted", *names, "no label"])
    for name, row in zip(names, counts.tolist(), strict=True):
        table.writerow([name, *row])
    return text.getvalue().encode()
