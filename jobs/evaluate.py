"""Score labels against truth, or against other labels: figures, a page to look at, gates.

    segmill evaluate --truth stores/camvid --pred stores/night --split test --out reports/night
    segmill evaluate --truth stores/camvid --pred stores/new --baseline stores/old \\
        --fail-if 'miou < baseline - 0.005' --out reports/new
    segmill evaluate --pred stores/night --baseline stores/night --baseline-version 7 --out churn

Two busy cores: about 800 pairs of 480x360 a second, 95 of 2048x1024.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.console import (
    AddressOption,
    DebugOption,
    JsonOption,
    MaxErrorsOption,
    RunnerOption,
    Summary,
    ViewOption,
    WorkersOption,
    command,
    note,
    tolerated,
)
from jobs.evaluate_asked import Asked, Stores, gates_said
from jobs.evaluate_report import made_by, print_table, tell_what_lacks, why_nothing
from jobs.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from pipeline.label_space import LabelSpace
    from pipeline.metrics.measure import Measure
    from pipeline.runner import Runner
    from pipeline.scoring import Scores
    from pipeline.store import Store
    from pipeline.trees.sinks import Sink

APP = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
SECONDS_AN_IMAGE = 0.001


@APP.command()
def evaluate(
    pred: Annotated[str, typer.Option(help="The label store to score.")],
    out: Annotated[str, typer.Option(help="Where the report goes: a directory or a URL.")],
    truth: Annotated[
        str | None,
        typer.Option(
            help="The label store that is right. Without it, the agreement of the predictions with "
            "--baseline is reported."
        ),
    ] = None,
    label_space: Annotated[
        str | None,
        typer.Option(help="The classes to score; default: the coarser of the two stores' own."),
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="Score these splits of the truth; default: all.")
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="Which rows of the truth: an SQL condition on its columns.")
    ] = None,
    pred_where: Annotated[
        str | None, typer.Option(help="Which predictions: an SQL condition on their columns.")
    ] = None,
    truth_version: Annotated[
        str | None, typer.Option(help="A version or a tag of the truth; default: the newest.")
    ] = None,
    pred_version: Annotated[
        str | None, typer.Option(help="A version or a tag of the predictions.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="An earlier label store to compare the predictions with.")
    ] = None,
    baseline_version: Annotated[
        str | None, typer.Option(help="A version or a tag of the baseline.")
    ] = None,
    baseline_where: Annotated[
        str | None, typer.Option(help="Which rows of the baseline: an SQL condition.")
    ] = None,
    measure: Annotated[
        list[str] | None,
        typer.Option(
            help="Scores that cost more than counting: boundary, calibration, cityscapes, objects, "
            "panoptic, or all that apply."
        ),
    ] = None,
    slice_by: Annotated[
        list[str] | None,
        typer.Option(
            "--slice",
            help="Score slices: a column, size, brightness, class:NAME, 'NAME: SQL condition', or "
            "a CSV file of images' attributes.",
        ),
    ] = None,
    bootstrap_by: Annotated[
        str | None,
        typer.Option(help="Resample groups of images: a column, or COLUMN:REGEX of its values."),
    ] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(help="Exit with code 4 if this holds, as 'miou < baseline - 0.005'."),
    ] = None,
    view: ViewOption = None,
    images: Annotated[
        int, typer.Option(min=0, max=200, help="Worst and best images to show, of each.")
    ] = 12,
    max_errors: MaxErrorsOption = "0",
    runner: RunnerOption = "auto",
    address: AddressOption = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Score one store's labels against another's, and write a report."""
    with command("evaluate", as_json=as_json, debug=debug, max_errors=max_errors) as summary:
        from pipeline.errors import SegmillError
        from pipeline.files import open_sink
        from pipeline.runner import choose

        stores = Stores.open(
            (truth, truth_version), (pred, pred_version), (baseline, baseline_version), view
        )
        asked = Asked.of(measure or (), slice_by or (), fail_if or (), stores, bootstrap_by)
        chosen = choose(
            runner,
            seconds=min(stores.truth.count(), stores.pred.count()) * SECONDS_AN_IMAGE,
            address=address,
            workers=workers,
        )
        sink = open_sink(out)
        rows = [where, baseline_where] if stores.agreement else [where]
        filters = (_condition(split or (), rows), pred_where, baseline_where)
        scores = _score(stores, asked, chosen, sink, label_space, filters, images)
        scores = _judged(scores, asked, stores, summary)
        arguments = {
            "truth": truth, "truth-version": truth_version, "pred": pred,
            "pred-version": pred_version, "baseline": baseline,
            "baseline-version": baseline_version, "label-space": label_space, "split": split,
            "where": where, "pred-where": pred_where, "baseline-where": baseline_where,
            "measure": measure, "slice": slice_by, "bootstrap-by": bootstrap_by, "fail-if": fail_if,
            "view": view, "out": out,
        }  # fmt: skip
        _write(sink, scores, stores, made_by(scores, stores.named(), arguments))
        _book(summary, scores, sink, stores.pred)
        if not as_json:
            print_table(scores)
        tell_what_lacks(scores, baseline=stores.baseline is not None)
        for name, why in scores.left_out.items():
            note(f"--measure all leaves out {name}: {why}")
        if not scores.done:
            if scores.failed <= tolerated(max_errors, scores.inputs):
                raise SegmillError(why_nothing(scores))
            note(why_nothing(scores))  # the exit code is that of the failures


def _condition(splits: Sequence[str], where: Sequence[str | None]) -> str | None:
    """Return the SQL condition that all the options make together."""
    from pipeline.errors import UnknownName
    from pipeline.record import SPLITS

    for name in splits:
        if name not in SPLITS:
            raise UnknownName("split", name, SPLITS)
    parts = [f"split IN ({', '.join(repr(s) for s in splits)})"] if splits else []
    return " AND ".join([*parts, *(f"({one})" for one in where if one)]) or None


def _score(
    stores: Stores,
    asked: Asked,
    runner: Runner,
    sink: Sink,
    label_space: str | None,
    filters: tuple[str | None, str | None, str | None],
    extremes: int,
) -> Scores:
    """Score, and write each image's figures as they come."""
    import pyarrow.parquet as pq

    from pipeline.metrics.block import image_schema
    from pipeline.scoring import score

    with (
        Progress("evaluate", stores.truth.count()) as progress,
        sink.stream("per_image.parquet") as file,
        ExitStack() as opened,
    ):
        writer: pq.ParquetWriter

        def begin(space: LabelSpace, measures: Sequence[Measure]) -> None:
            nonlocal writer
            asked.check_classes(space)
            schema = image_schema([c for m in measures for c in m.image_columns])
            writer = opened.enter_context(pq.ParquetWriter(file, schema, compression="zstd"))

        def keep(batch: pa.RecordBatch) -> None:
            writer.write_batch(batch)
            progress.advance(batch.num_rows)

        return score(
            stores.truth,
            stores.pred,
            runner=runner,
            label_space=label_space,
            where=filters[0],
            pred_where=filters[1],
            baseline=stores.baseline,
            baseline_where=filters[2],
            agreement=stores.agreement,
            on_space=begin,
            measures=asked.measures,
            optional=asked.optional,
            tally_measures=asked.tallies,
            extremes=extremes,
            on_images=keep,
        )


def _judged(scores: Scores, asked: Asked, stores: Stores, summary: Summary) -> Scores:
    """Return the scores with what the baseline is and what the gates say."""
    measured = dict(scores.measured)
    if stores.baseline is not None:
        lacking = scores.done - scores.compared - scores.incomparable
        measured["baseline"] = {
            "store": stores.baseline.url,
            "version": stores.baseline.version,
            "lacking": lacking,
            "broken": scores.incomparable,
            **measured["baseline"],
        }
    if asked.gates:
        measured["gates"] = asked.check(replace(scores, measured=measured))
        summary.gate = gates_said(measured["gates"])
    return replace(scores, measured=measured)


def _write(sink: Sink, scores: Scores, stores: Stores, facts: Mapping[str, str]) -> None:
    from pipeline.report.score_files import write_report

    sides = stores.truth, stores.pred
    title = " against ".join(_name(store) for store in reversed(sides))
    write_report(sink, scores, sides, title, facts)


def _name(store: Store) -> str:
    return store.url.rstrip("/").rsplit("/", 1)[-1]


def _book(summary: Summary, scores: Scores, sink: Sink, pred: Store) -> None:
    from pipeline.report.score_files import FILES

    summary.inputs, summary.done = scores.inputs, scores.done
    summary.skipped, summary.failed = scores.skipped, scores.failed
    summary.version = pred.version
    summary.figures |= scores.figures()
    summary.paths |= {name: sink.url_of(file) for name, file in FILES.items()}
