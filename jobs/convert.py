"""Turn one dataset format into another: both at once, streaming, nothing left behind.

    segmill convert CamVid out/voc --from camvid-11 --to voc --label-space keep

100 images of 480x360: under two seconds, start included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from jobs.console import (
    AddressOption,
    DebugOption,
    JsonOption,
    MaxErrorsOption,
    RunnerOption,
    SourceArgument,
    SplitsOption,
    StrictOption,
    WorkersOption,
    command,
)
from jobs.outcome import book, stop_after
from jobs.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from connectors.dataset import Samples

APP = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
CHUNK_SAMPLES = 64
FAR_CHUNK_SAMPLES = 256
"""From and to buckets: at the end of a chunk, fewer and fewer requests are on the way."""


@APP.command()
def convert(
    src: SourceArgument,
    dst: Annotated[str, typer.Argument(help="Where the new dataset goes: a directory or a URL.")],
    from_: Annotated[str, typer.Option("--from", help="The format of SRC.")],
    to: Annotated[str, typer.Option("--to", help="The format of DST.")],
    split: SplitsOption = None,
    label_space: Annotated[
        str,
        typer.Option(help="native: the classes that DST's tools expect; keep: SRC's; or a name."),
    ] = "native",
    strict: StrictOption = False,
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
        from connectors.dataset import Samples, Source, write_dataset
        from connectors.reading import LaterFactory
        from connectors.writing import WriterFactory
        from jobs.apart import check_apart
        from pipeline.labels.relabel import Relabeller, target_space
        from pipeline.runner import choose
        from pipeline.trees.ahead import is_far, listed_ahead
        from pipeline.trees.union import open_source

        check_apart(src, dst)
        reader, tree, writer = connector(from_), open_source(src), connector(to)
        spaces, splits = reader.label_spaces(tree), tuple(split or ())
        space = target_space(label_space, writer.native, spaces)
        factory: WriterFactory[Samples] = WriterFactory(
            to, dst, Relabeller.to(space, spaces), LaterFactory(from_, tree.url)
        )

        far = is_far(tree.url) or is_far(dst)

        def pieces() -> Iterator[Samples]:
            size = FAR_CHUNK_SAMPLES if far else CHUNK_SAMPLES
            cut = Samples.cut(reader.list(tree, splits), size)
            for piece in listed_ahead(cut, far=tree.far):
                summary.inputs += len(piece)
                yield piece

        # The listing is a stream: its length is not known before its end.
        chosen = choose(runner, seconds=0, address=address, workers=workers)
        with Progress("convert") as progress:
            total = write_dataset(
                factory,
                Source(
                    (from_, tree.url, *splits),
                    pieces(),
                    samples=lambda piece: piece,
                    check=lambda: open_source(tree.url).names(),
                    facts={from_: reader.facts(tree)},
                ),
                chosen,
                progress.reach,
                most_failures=stop_after(max_errors),
            )
        book(summary, total, dst, strict=strict)
        summary.figures["label_space"] = space.name
