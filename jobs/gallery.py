"""Write a page to look at a store's labels: image, mask, overlay, by class and confidence.

    segmill gallery stores/night --out pages/night --limit 2000 --sample

Two busy cores: about 70 images of 480x360 a second, confidence maps among them.
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
    VersionOption,
    WhereOption,
    WorkersOption,
    command,
    note,
)
from jobs.progress import Progress

APP = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
SECONDS_AN_IMAGE = 0.015


@APP.command()
def gallery(
    store: StoreArgument,
    out: Annotated[str, typer.Option(help="Where the page goes: a directory or a URL.")],
    limit: Annotated[int, typer.Option(min=1, help="Images to show.")] = 500,
    where: WhereOption = None,
    sample: Annotated[
        bool,
        typer.Option("--sample", help="Choose at random (the same each time), not the first."),
    ] = False,
    size: Annotated[
        int, typer.Option(min=64, max=4096, help="The longer side of a picture, in pixels.")
    ] = 480,
    version: VersionOption = None,
    max_errors: MaxErrorsOption = "0",
    runner: RunnerOption = "auto",
    address: AddressOption = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Write a page with the images of a store and their labels."""
    with command("gallery", as_json=as_json, debug=debug, max_errors=max_errors) as summary:
        from pipeline.files import open_sink
        from pipeline.report.gallery import write_gallery
        from pipeline.runner import choose
        from pipeline.store import Store

        held = Store.open(store, version)
        expected = min(limit, held.count())
        chosen = choose(
            runner, seconds=expected * SECONDS_AN_IMAGE, address=address, workers=workers
        )
        sink = open_sink(out)
        with Progress("gallery", expected) as progress:
            sums = write_gallery(
                held,
                sink,
                runner=chosen,
                title=held.url.rstrip("/").rsplit("/", 1)[-1],
                where=where,
                limit=limit,
                sample=sample,
                side=size,
                advance=progress.advance,
            )
        summary.inputs, summary.done, summary.failed = sums.inputs, sums.done, sums.failed
        summary.version = held.version
        summary.figures["rows"] = sums.rows
        summary.paths["page"] = sink.url_of("index.html")
        for message in sums.messages[:5]:
            note(f"  {message}")
