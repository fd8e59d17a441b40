"""Score labels against truth: mIoU, a page to look at, and every image's figures.

    segmill evaluate --truth stores/camvid --pred stores/night --split test --out reports/night

Two busy cores: about 800 pairs of 480x360 a second, 95 of 2048x1024.
"""

from __future__ import annotations

import shlex
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
)
from jobs.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from pipeline.metrics.confusion import Counts
    from pipeline.runner import Runner
    from pipeline.scoring import Scores
    from pipeline.store import Store
    from pipeline.trees.sinks import Sink

APP = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
SECONDS_AN_IMAGE = 0.002


@APP.command()
def evaluate(
    truth: Annotated[str, typer.Option(help="The label store that is right.")],
    pred: Annotated[str, typer.Option(help="The label store to score.")],
    out: Annotated[str, typer.Option(help="Where the report goes: a directory or a URL.")],
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
        from pipeline.files import open_sink
        from pipeline.pseudo.view import View
        from pipeline.pseudo.viewed_store import open_viewed
        from pipeline.runner import choose
        from pipeline.store import Store

        condition = _condition(split or (), where)
        shown = open_viewed(pred, pred_version, View.parse(view) if view else None)
        stores = Store.open(truth, truth_version), shown
        chosen = choose(
            runner,
            seconds=min(s.count() for s in stores) * SECONDS_AN_IMAGE,
            address=address,
            workers=workers,
        )
        sink = open_sink(out)
        filters = (condition, pred_where)
        scores = _score(stores, chosen, sink, label_space, filters, images)
        arguments = {
            "truth": truth, "pred": pred, "label-space": label_space, "split": split,
            "where": where, "pred-where": pred_where, "view": view, "out": out,
        }  # fmt: skip
        _write(sink, scores, stores, _facts(scores, stores, arguments))
        _book(summary, scores, sink, stores)
        if not as_json:
            _print_table(scores)
        _tell_what_lacks(scores)


def _condition(splits: Sequence[str], where: str | None) -> str | None:
    """Return the SQL condition of both options."""
    from pipeline.errors import UnknownName
    from pipeline.record import SPLITS

    for name in splits:
        if name not in SPLITS:
            raise UnknownName("split", name, SPLITS)
    parts = [f"split IN ({', '.join(repr(s) for s in splits)})"] if splits else []
    return " AND ".join([*parts, *([f"({where})"] if where else [])]) or None


def _score(
    stores: tuple[Store, Store],
    runner: Runner,
    sink: Sink,
    label_space: str | None,
    filters: tuple[str | None, str | None],
    extremes: int,
) -> Scores:
    """Score, and write each image's figures as they come."""
    import pyarrow.parquet as pq

    from pipeline.metrics.pair_scores import IMAGE_SCHEMA
    from pipeline.scoring import score

    truth, pred = stores
    with (
        Progress("evaluate", truth.count()) as progress,
        sink.stream("per_image.parquet") as file,
        pq.ParquetWriter(file, IMAGE_SCHEMA, compression="zstd") as writer,
    ):

        def keep(batch: pa.RecordBatch) -> None:
            writer.write_batch(batch)
            progress.advance(batch.num_rows)

        return score(
            truth,
            pred,
            runner=runner,
            label_space=label_space,
            where=filters[0],
            pred_where=filters[1],
            extremes=extremes,
            on_images=keep,
        )


def _write(
    sink: Sink, scores: Scores, stores: tuple[Store, Store], facts: Mapping[str, str]
) -> None:
    """Write the page, the JSON and the matrix."""
    import json

    from pipeline.report.examples import examples
    from pipeline.report.score_page import score_page

    shown = [examples(*stores, images, scores.space) for images in (scores.worst, scores.best)]
    title = " against ".join(_name(store) for store in reversed(stores))
    page = score_page(scores, title=title, facts=facts, worst=shown[0], best=shown[1])
    report = {
        "inputs": scores.inputs,
        "done": scores.done,
        "skipped": scores.skipped,
        "failed": scores.failed,
        **scores.figures(),
        "facts": dict(facts),
        "worst": [image.row() for image in scores.worst],
        "best": [image.row() for image in scores.best],
        "failures": [failure.to_dict() for failure in scores.failures],
    }
    sink.write("confusion.csv", _csv(scores.matrix.counts, scores.class_names))
    sink.write("report.json", json.dumps(report, indent=1).encode() + b"\n")
    sink.write("index.html", page)


def _name(store: Store) -> str:
    return store.url.rstrip("/").rsplit("/", 1)[-1]


def _csv(counts: Counts, names: Sequence[str]) -> bytes:
    """Return the matrix with its headings; rows are truth, the last column is "no label"."""
    import csv
    import io

    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["truth / predicted", *names, "no label"])
    for name, row in zip(names, counts.tolist(), strict=True):
        table.writerow([name, *row])
    return text.getvalue().encode()


def _facts(
    scores: Scores, stores: tuple[Store, Store], arguments: Mapping[str, str | list[str] | None]
) -> dict[str, str]:
    """Return how the report was made, for its readers."""
    from pipeline.release import release

    words = ["segmill", "evaluate"]
    for name, value in arguments.items():
        for each in value if isinstance(value, list) else [value]:
            words += [] if each is None else [f"--{name}", each]
    truth, pred = stores
    return {
        "command": shlex.join(words),
        "truth": f"{truth.url}, version {truth.version}",
        "predictions": f"{pred.url}, version {pred.version}",
        "made by": _models(pred),
        "label space": f"{scores.space.name}, {len(scores.class_names)} classes scored",
        "paired": f"{scores.by_path:,} images by path, {scores.by_id:,} by id; "
        f"{scores.unpredicted:,} without a prediction, {scores.unused:,} predictions left over",
        "segmill": release(),
    }


def _models(store: Store) -> str:
    """Return the models that made a store's labels."""
    found: set[tuple[str, str]] = set()
    columns = ["provenance.model", "provenance.model_digest"]
    for batch in store.scan(columns, batch_rows=65536):
        found.update(zip(*(c.to_pylist() for c in batch.columns), strict=True))
    named = sorted(f"{model or '?'} ({(digest or '?')[:12]})" for model, digest in found)
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return ", ".join(named[:3]) + more or "unknown"


def _book(summary: Summary, scores: Scores, sink: Sink, stores: tuple[Store, Store]) -> None:
    summary.inputs, summary.done = scores.inputs, scores.done
    summary.skipped, summary.failed = scores.skipped, scores.failed
    summary.version = stores[1].version
    summary.figures |= scores.figures()
    names = {"report": "index.html", "json": "report.json", "per_image": "per_image.parquet"}
    summary.paths |= {name: sink.url_of(file) for name, file in names.items()}
    summary.paths["confusion"] = sink.url_of("confusion.csv")


def _tell_what_lacks(scores: Scores) -> None:
    """Say what failed, and why there may be no score at all."""
    for failure in scores.failures[:5]:
        note(f"{failure.image_id}: {failure.message}")
    if not scores.done:
        note(
            f"no image was scored: {scores.unpredicted:,} have no prediction, "
            f"{scores.unlabelled:,} no mask in the truth, {scores.failed:,} failed"
        )


def _print_table(scores: Scores) -> None:
    """Print the classes' figures and the headline for people."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from pipeline.report import percent

    tally = scores.tally
    table = Table(box=SIMPLE, pad_edge=False)
    for heading in ("class", "IoU %", "accuracy %", "precision %", "of pixels %"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    share = (tally.truth / max(1, tally.pixels)).tolist()
    figures = zip(
        tally.iou.tolist(), tally.recall.tolist(), tally.precision.tolist(), share, strict=True
    )
    for name, row in zip(scores.class_names, figures, strict=True):
        table.add_row(Text(name), *(percent(value) for value in row))
    console = Console()
    console.print(table)
    headline = (
        f"mIoU {percent(tally.miou)} %   pixel accuracy {percent(tally.pixel_accuracy)} %   "
        f"mean accuracy {percent(tally.mean_accuracy)} %   fwIoU {percent(tally.fwiou)} %"
    )
    console.print(Text(headline, style="bold"), soft_wrap=True)
