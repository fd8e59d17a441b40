"""Reading a Delta table of records: lazily, by batches, conditions and columns pushed down."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pyarrow as pa

from pipeline.errors import StoreError, UsageError
from pipeline.record import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import pyarrow.compute as pc
    from deltalake import DeltaTable
    from pyarrow.dataset import Dataset
    from pyarrow.fs import FileSystem
    from pyarrow.lib import NativeFile

    from pipeline.tables.fragment import Fragment

T = TypeVar("T")
_WIDE: Final = frozenset(
    {"image", "mask", "confidence", "depth", "instances", "extra"}
    | {f"{blob}.bytes" for blob in ("image", "mask", "confidence", "depth")}
    | {"instances.rle", "instances.extra"}
)
"""Columns that take kilobytes a row and more."""


def expressions(names: Iterable[str]) -> dict[str, pc.Expression]:
    """Return what reads columns, and fields of columns under their dotted names."""
    import pyarrow.compute as pc

    return {name: pc.field(*name.split(".")) for name in names}


@contextmanager
def present(url: str) -> Iterator[None]:
    """Say what happened where a file of the snapshot is gone.

    Raises:
        StoreError: it is.
    """
    try:
        yield
    except FileNotFoundError as error:
        if isinstance(error, StoreError):
            raise
        raise _gone(url, str(error)) from None


def _gone(url: str, said: str) -> StoreError:
    return StoreError(
        f"{url}: a file of this version is gone. Where a vacuum removed it meanwhile, run this "
        f"again on the newest version, and tag versions that jobs read for long: vacuum keeps "
        f"those. Where it was lost, put it back or go back to a version that lacks it (`segmill "
        f"store history`, `store restore`) ({' '.join(said.split())[:_TOLD]})"
    )


def guarded(url: str, batches: Iterator[T]) -> Iterator[T]:
    """Yield what is read of a store; see `present`."""
    with present(url):
        yield from batches


def open_file(url: str, options: Mapping[str, str], fragment: Fragment) -> NativeFile:
    """Open a fragment for Arrow's readers."""
    return _file_system(url, options, [fragment]).open_input_file(fragment.path)


def open_dataset(url: str, options: Mapping[str, str], fragments: Sequence[Fragment]) -> Dataset:
    """Return the fragments as an Arrow dataset that leaves out those whose ids don't fit a filter.

    Delta's own `to_pyarrow_dataset` takes a millisecond a fragment, and makes filters on columns
    without statistics in the log false for every row.
    """
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    files = _file_system(url, options, fragments)
    scan = ds.ParquetFragmentScanOptions(pre_buffer=True)
    kind = ds.ParquetFileFormat(default_fragment_scan_options=scan)
    key = pc.field("image_id")
    parts = [
        kind.make_fragment(f.path, files, (key >= f.min_id) & (key <= f.max_id)) for f in fragments
    ]
    return ds.FileSystemDataset(parts, SCHEMA.remove_metadata(), kind, files)


def _file_system(url: str, options: Mapping[str, str], fragments: Sequence[Fragment]) -> FileSystem:
    """Return what Arrow reads a table's files by.

    Local files by Arrow's own code: its read-ahead threads that call into Python abort the process
    when they outlive the interpreter.
    """
    from pyarrow import fs

    if "://" not in url:
        return fs.SubTreeFileSystem(url, fs.LocalFileSystem())
    from deltalake.fs import DeltaStorageHandler

    sizes = {f.path: f.size for f in fragments}
    return fs.PyFileSystem(DeltaStorageHandler(url, dict(options) or None, sizes))


def scan_table(
    dataset: Dataset,
    columns: Mapping[str, pc.Expression],
    where: pc.Expression | None,
    batch_rows: int,
) -> Iterator[pa.RecordBatch]:
    """Read columns of the rows that meet an Arrow expression."""
    import pyarrow.dataset as ds

    # The defaults read sixteen batches of four files ahead: gigabytes where rows hold masks.
    scanner = ds.Scanner.from_dataset(
        dataset,
        columns=dict(columns),
        filter=where,
        batch_size=batch_rows,
        batch_readahead=2,
        fragment_readahead=1,
    )
    for batch in scanner.to_batches():
        if batch.num_rows:
            yield batch


def scan_by_fragment(
    url: str,
    options: Mapping[str, str],
    fragments: Sequence[Fragment],
    names: Sequence[str],
    batch_rows: int,
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Read columns with the path of the fragment that holds the rows.

    Of `image.path` only the paths are read: the dataset scanner would read the images beside them.
    A field of a list's items (`instances.category`) comes as the list, of items with that field.
    Where each request takes its time, and the columns are narrow, many fragments are read at once.
    """
    from pipeline.trees.ahead import Ahead, waiting

    files = _file_system(url, options, fragments)
    if "://" not in url or _WIDE & set(names):
        for fragment in fragments:
            with files.open_input_file(fragment.path) as file:
                for batch in _read_columns(file, names, batch_rows):
                    yield fragment.path, batch
        return

    def read(fragment: Fragment) -> list[pa.RecordBatch]:
        # Nearly all of it is waiting for answers: as many at once as there are threads, not cores.
        with waiting(), files.open_input_file(fragment.path) as file:
            return list(_read_columns(file, names, batch_rows))

    for fragment, batches in zip(fragments, Ahead().map(read, fragments, far=True), strict=True):
        for batch in batches:
            yield fragment.path, batch


def _read_columns(file: Any, names: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(file, pre_buffer=True)
    for batch in parquet.iter_batches(batch_rows, columns=[leaf(n) for n in names]):
        arrays = []
        for name in names:
            column, _, inner = name.partition(".")
            array = batch[column]
            field = inner and pa.types.is_struct(array.type)
            arrays.append(pc.struct_field(array, inner) if field else array)
        if batch.num_rows:
            yield pa.RecordBatch.from_arrays(arrays, names=list(names))


def leaf(name: str) -> str:
    """Return a column's path in the file, where a list's items lie two levels down."""
    column, _, inner = name.partition(".")
    nested = inner and pa.types.is_list(SCHEMA.field(column).type)
    return f"{column}.list.element.{inner}" if nested else name


_BY_CONDITION: Final = (
    "filter predicate",
    "CastError",
    "Cast error",
    "ivide by zero",
    "DivideByZero",
)
"""What the engine says of a condition that no row can be asked: it was sound to plan."""
_MISSING: Final = ("Object at location", "No such file or directory")
_TOLD: Final = 500


def scan_sql(
    table: DeltaTable, names: Sequence[str], where: str, batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Read columns of the rows that meet an SQL condition.

    Raises:
        UsageError: the condition is no SQL, or names what the table has not.
    """
    from deltalake import QueryBuilder

    # A field's name in brackets: the engine would take a dot for a table's name.
    asked = ", ".join(
        "{}['{}'] AS \"{}\"".format(*n.split("."), n) if "." in n else n for n in names
    )
    schema = pa.schema([_field(name) for name in names])
    try:
        query = f"SELECT {asked} FROM store WHERE {where}"
        found = QueryBuilder().register("store", table).execute(query)
        for batch in pa.RecordBatchReader.from_stream(found):
            # The engine answers in view types, which few readers know.
            plain = pa.Table.from_batches([batch]).cast(schema)
            yield from plain.to_batches(max_chunksize=batch_rows)
    except Exception as error:
        said = " ".join(str(error).split())
        if any(told in said for told in _MISSING):
            raise _gone(table.table_uri, said) from None
        if isinstance(error, pa.ArrowException) and not any(s in said for s in _BY_CONDITION):
            raise
        raise UsageError(f"--where {where!r}: {said[:_TOLD]}") from None


def _field(name: str) -> pa.Field:
    """Return a column of the schema, or a field of one under its dotted name."""
    column, _, inner = name.partition(".")
    field = SCHEMA.field(column)
    return pa.field(name, field.type.field(inner).type) if inner else field
