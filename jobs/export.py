"""Write a label store out as a dataset.

segmill export stores/voc out/camvid --format camvid-11 --where "split = 'val'"
"""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.console import (
    AddressOption,
    DebugOption,
    JsonOption,
    MaxErrorsOption,
    RunnerOption,
    StoreArgument,
    StrictOption,
    VersionOption,
    ViewOption,
    WhereOption,
    WorkersOption,
    command,
)
from jobs.outcome import book, stop_after
from jobs.progress import Progress

APP = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
SECONDS_AN_IMAGE = 0.002


@APP.command()
def export(
    store: StoreArgument,
    dst: Annotated[str, typer.Argument(help="Where the dataset goes: a directory or a URL.")],
    format_: Annotated[str, typer.Option("--format", help="The format to write.")],
    version: VersionOption = None,
    where: WhereOption = None,
    view: ViewOption = None,
    label_space: Annotated[
        str,
        typer.Option(help="native: the classes that the format's tools expect; keep; or a name."),
    ] = "native",
    strict: StrictOption = False,
    max_errors: MaxErrorsOption = "0",
    runner: RunnerOption = "auto",
    address: AddressOption = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Write a label store's rows as a dataset, and say what that loses."""
    with command("export", as_json=as_json, debug=debug, max_errors=max_errors) as summary:
        from connectors import connector
        from connectors.dataset import Source, write_dataset
        from connectors.exporting import RowRange, RowReader, matching, ranges
        from connectors.writing import WriterFactory
        from jobs.apart import check_store_apart
        from pipeline.labels.relabel import Relabeller, target_space
        from pipeline.pseudo.view import View
        from pipeline.pseudo.viewed_store import open_viewed
        from pipeline.runner import choose

        shown = View.parse(view) if view else None
        held = open_viewed(store, version, shown)
        check_store_apart(held, dst)
        keys, used = matching(held, where), held.used_spaces(where)
        space = target_space(label_space, connector(format_).native, used)
        rows = RowReader(held, keys, shown)
        factory: WriterFactory[RowRange] = WriterFactory(
            format_, dst, Relabeller.to(space, used), rows
        )
        inputs = held.count() if keys is None else len(keys)
        chosen = choose(runner, seconds=inputs * SECONDS_AN_IMAGE, address=address, workers=workers)
        source = Source(
            ("store", held.url, where or "", *([shown.identity()] if shown else [])),
            ranges(held),
            samples=rows.samples,
            check=lambda: held.tree().names(),
            facts=held.facts,
        )
        with Progress("export", inputs) as progress:
            total = write_dataset(
                factory, source, chosen, progress.reach, most_failures=stop_after(max_errors)
            )
        summary.inputs, summary.version = inputs, held.version
        book(summary, total, dst, strict=strict)
        summary.figures["label_space"] = space.name
