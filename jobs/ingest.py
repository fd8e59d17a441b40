"""Read a dataset into a label store.

    segmill ingest VOCdevkit stores/voc --format voc --split train --split val

100,000 masks of 500x375: about two minutes on two cores.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.console import (
    AddressOption,
    DebugOption,
    JsonOption,
    MaxErrorsOption,
    MetricsOption,
    RunnerOption,
    SourceArgument,
    SplitsOption,
    Summary,
    WorkersOption,
    command,
    note,
    tell_facts,
    watching,
)
from jobs.progress import Progress

if TYPE_CHECKING:
    from pipeline.record import Sample
    from pipeline.runner import Runner
    from pipeline.store import Store

APP = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
SECONDS_AN_IMAGE = 0.002
SHARD_SAMPLES = 256
SHARD_BYTES = 64 << 20
"""About the most that a shard's rows take, images aside; by the bytes themselves a worker cuts."""


@APP.command()
def ingest(
    src: SourceArgument,
    store: Annotated[str, typer.Argument(help="The label store to write to; made when absent.")],
    format_: Annotated[str, typer.Option("--format", help="The dataset's format: voc, camvid...")],
    split: SplitsOption = None,
    embed_images: Annotated[
        bool, typer.Option("--embed-images", help="Keep the images' bytes in the store, too.")
    ] = False,
    validate: Annotated[
        bool,
        typer.Option(
            "--validate",
            help="Check the rows that this run wrote; exit with 4 if some have errors.",
        ),
    ] = False,
    metrics: MetricsOption = None,
    max_errors: MaxErrorsOption = "0",
    runner: RunnerOption = "auto",
    address: AddressOption = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Read a dataset into a label store; what the store holds already is left alone."""
    with command("ingest", as_json=as_json, debug=debug, max_errors=max_errors) as summary:
        from connectors import connector
        from connectors.reading import ReaderFactory
        from pipeline.run import Run
        from pipeline.runner import choose
        from pipeline.runs.drive import execute
        from pipeline.store import Store
        from pipeline.trees.union import open_source

        reader, tree = connector(format_), open_source(src)
        target = Store.create(store, reader.label_spaces(tree))
        facts = {format_: reader.facts(tree)}
        tell_facts(summary, target.facts_replaced(facts))
        target = target.with_facts(facts)
        splits = tuple(split or ())
        identity = [format_, tree.url, *sorted(splits), f"embed={embed_images}"]
        listing = reader.list(tree, splits)
        if embed_images:
            # Rows with their images are other rows: a store without them is completed.
            listing = map(_embedded, listing)
        run = Run.begin(target, "ingest", kind="truth", identity=identity)

        def pick(count: int) -> Runner:
            work = count * SECONDS_AN_IMAGE
            return choose(runner, seconds=work, address=address, workers=workers)

        with Progress("ingest") as progress:
            report = execute(
                target,
                listing,
                ReaderFactory(format_, tree.url, embed_images),
                run=run,
                choose_runner=pick,
                shard_rows=max(1, min(SHARD_SAMPLES, SHARD_BYTES // reader.row_bytes)),
                watch=watching(progress, metrics, summary),
                on_listed=progress.listed,
            )
        summary.book(report)
        summary.paths["store"] = target.url
        if validate:
            held = target.latest()
            _validate(summary, held, pick(held.count()), [f.path for f in target.fragments()])
            if not as_json and summary.figures["validation"]["kinds"]:
                note(f"`segmill store validate {store} --out DIR` writes a page of the findings")
        if report.failed:
            note(f"{report.failed} inputs failed; `segmill store errors {store}` lists them")


def _embedded(sample: Sample) -> Sample:
    """Return the sample of a row with its image; a format may keep the image in every row."""
    from pipeline.record import EMBEDDED

    there = sample.digest.endswith(EMBEDDED)
    return sample if there else replace(sample, digest=sample.digest + EMBEDDED)


def _validate(summary: Summary, store: Store, runner: Runner, before: list[str]) -> None:
    """Check the rows that came, say what is wrong, and book it; errors close the gate."""
    from jobs import validation as job
    from pipeline.checks.rows import TOLERANCE

    came = frozenset(f.path for f in store.fragments()) - frozenset(before)
    found = job.validate_store(store, runner, images="none", tolerance=TOLERANCE, only=came)
    summary.figures["validation"] = found.figures()
    job.tell_findings(found)
    if found.failed:
        summary.gate = f"{found.failed} of the {found.inputs} rows written have errors"
