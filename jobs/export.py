"""Write a label store out as a dataset.

segmill export stores/voc out/camvid --format camvid-11 --where "split = 'val'"
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.console import (
    AddressOption,
    DebugOption,
    JsonOption,
    MaxErrorsOption,
    Progress,
    RunnerOption,
    WorkersOption,
    command,
)
from jobs.convert import book

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.errors import InputError
    from pipeline.fragment import Fragment
    from pipeline.record import Record, Sample
    from pipeline.store import Store

APP = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
SECONDS_AN_IMAGE = 0.002
CHUNK_ROWS = 256


@dataclass(frozen=True, slots=True)
class RowRange:
    """A run of rows of one fragment."""

    fragment: Fragment
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class RowReader:
    """Reads ranges of a store's rows; picklable. `keys` are the rows to keep, None for all."""

    store: Store
    keys: frozenset[bytes] | None

    def __call__(self) -> Callable[[RowRange], Iterator[tuple[Sample, Record | InputError]]]:
        """Return the reading function, in the process that will use it."""
        return self._read

    def _read(self, rows: RowRange) -> Iterator[tuple[Sample, Record | InputError]]:
        from pipeline.ledger import row_key
        from pipeline.record import Sample

        for record in self.store.rows(rows.fragment, rows.start, rows.stop):
            path = record.image.path or ""
            if self.keys is not None and row_key(record.dataset, path) not in self.keys:
                continue
            yield (
                Sample(
                    record.image_id,
                    path,
                    record.fingerprint,
                    dataset=record.dataset,
                    split=record.split,
                ),
                record,
            )


def _matching(store: Store, where: str | None) -> frozenset[bytes] | None:
    """Return the keys of the rows that meet the condition, 16 bytes each."""
    from pipeline.ledger import row_key

    if where is None:
        return None
    batches = store.scan(["dataset", "image.path"], where, batch_rows=65536)
    return frozenset(
        row_key(dataset, path or "")
        for batch in batches
        for dataset, path in zip(*(c.to_pylist() for c in batch.columns), strict=True)
    )


@APP.command()
def export(
    store: Annotated[str, typer.Argument(help="The label store.")],
    dst: Annotated[str, typer.Argument(help="Where the dataset goes: a directory or a URL.")],
    format_: Annotated[str, typer.Option("--format", help="The format to write.")],
    version: Annotated[
        str | None, typer.Option(help="A version or a tag of the store; default: the newest.")
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="An SQL condition on the columns: \"split = 'val'\".")
    ] = None,
    label_space: Annotated[
        str,
        typer.Option(help="native: the classes that the format's tools expect; keep; or a name."),
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
    """Write a label store's rows as a dataset, and say what that loses."""
    with command("export", as_json=as_json, debug=debug, max_errors=max_errors) as summary:
        from connectors import connector
        from connectors.writing import WriterFactory, write_dataset
        from jobs.apart import check_store_apart
        from pipeline.relabel import Relabeller, target_space
        from pipeline.runner import Resources, choose
        from pipeline.store import Store

        held = Store.open(store, version)
        check_store_apart(held, dst)
        keys, used = _matching(held, where), held.used_spaces(where)
        space = target_space(label_space, connector(format_).native, used)
        factory: WriterFactory[RowRange] = WriterFactory(
            format_, dst, Relabeller.to(space, used), RowReader(held, keys)
        )
        inputs = held.count() if keys is None else len(keys)
        chosen = choose(
            runner,
            seconds=inputs * SECONDS_AN_IMAGE,
            resources=Resources(),
            address=address,
            workers=workers,
        )
        with Progress("export", inputs) as progress:
            total = write_dataset(
                factory, _ranges(held), chosen, lambda d: progress.reach(d), held.facts
            )
        summary.inputs, summary.version = inputs, held.version
        book(summary, total, dst, strict=strict)
        summary.figures["label_space"] = space.name


def _ranges(store: Store) -> Iterator[RowRange]:
    """Yield the store's rows in ranges, fragments in the order of their first image_id."""
    for fragment in store.fragments():
        for start in range(0, fragment.rows, CHUNK_ROWS):
            yield RowRange(fragment, start, min(start + CHUNK_ROWS, fragment.rows))
