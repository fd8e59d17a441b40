"""Turn one dataset format into another: both at once, streaming, nothing left behind.

    segmill convert CamVid out/voc --from camvid-11 --to voc --label-space keep

100 images of 480x360: under two seconds, start included.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.console import (
    AddressOption,
    DebugOption,
    JsonOption,
    MaxErrorsOption,
    Progress,
    RunnerOption,
    Summary,
    WorkersOption,
    command,
    note,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from connectors.writing import Exported
    from pipeline.record import Sample

APP = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
CHUNK_SAMPLES = 64


@dataclass(slots=True)
class _Counted:
    """Counts the samples that pass."""

    samples: Iterable[Sample]
    count: int = 0

    def chunks(self, size: int) -> Iterator[tuple[Sample, ...]]:
        feed = iter(self.samples)
        while chunk := tuple(islice(feed, size)):
            self.count += len(chunk)
            yield chunk


@APP.command()
def convert(
    src: Annotated[
        str,
        typer.Argument(
            help="The dataset's root, a .zip or .tar of it, a URL, or several: a.zip,b.zip."
        ),
    ],
    dst: Annotated[str, typer.Argument(help="Where the new dataset goes: a directory or a URL.")],
    from_: Annotated[str, typer.Option("--from", help="The format of SRC.")],
    to: Annotated[str, typer.Option("--to", help="The format of DST.")],
    split: Annotated[list[str] | None, typer.Option(help="Splits to read; default: all.")] = None,
    label_space: Annotated[
        str,
        typer.Option(help="native: the classes that DST's tools expect; keep: SRC's; or a name."),
    ] = "native",
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with code 4 when anything is lost.")
    ] = False,
    max_errors: MaxErrorsOption = "0",
    runner: RunnerOption = "auto",
    address: AddressOption = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Turn one dataset format into another, and say what that loses."""
    with command("convert", as_json=as_json, debug=debug, max_errors=max_errors) as summary:
        from connectors import connector
        from connectors.reading import LaterFactory
        from connectors.writing import WriterFactory, write_dataset
        from jobs.apart import check_apart
        from pipeline.relabel import Relabeller, target_space
        from pipeline.runner import Resources, choose
        from pipeline.union import open_source

        check_apart(src, dst)
        reader, tree, writer = connector(from_), open_source(src), connector(to)
        spaces = reader.label_spaces(tree)
        space = target_space(label_space, writer.native, spaces)
        factory: WriterFactory[tuple[Sample, ...]] = WriterFactory(
            to, dst, Relabeller.to(space, spaces), LaterFactory(from_, tree.url)
        )
        listing = _Counted(reader.list(tree, tuple(split or ())))
        # The listing is a stream: its length is not known before its end.
        chosen = choose(runner, seconds=0, resources=Resources(), address=address, workers=workers)
        with Progress("convert") as progress:
            total = write_dataset(
                factory,
                listing.chunks(CHUNK_SAMPLES),
                chosen,
                lambda done: progress.reach(done),
                {from_: reader.facts(tree)},
            )
        summary.inputs = listing.count
        book(summary, total, dst, strict=strict)
        summary.figures["label_space"] = space.name


def book(summary: Summary, total: Exported, dst: str, *, strict: bool) -> None:
    """Book what writing a dataset came to: the sum, the loss, and the failures beside it."""
    import json

    from pipeline.files import open_sink

    summary.done, summary.failed = total.done, len(total.failures)
    sink = open_sink(dst)
    summary.paths["dataset"] = sink.url
    summary.figures["loss"] = total.loss.to_dict()
    for line in total.loss.lines():
        note(f"lost: {line}")
    if total.failures:
        rows = sorted(total.failures, key=lambda f: (f.image_id, f.path))
        text = "".join(json.dumps(f.to_dict()) + "\n" for f in rows)
        sink.write("segmill-errors.jsonl", text.encode())
        summary.paths["errors"] = sink.url_of("segmill-errors.jsonl")
        for failure in rows[:5]:
            note(failure.message)
    if strict and total.loss.any:
        summary.gate = "--strict: the conversion loses something, see above"
