"""Inputs that failed: one row each in the errors table beside the labels."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import WriteFailed
from pipeline.record import Sample
from pipeline.tables.location import writing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    import pyarrow as pa

    from pipeline.record import Record
    from pipeline.trees.sinks import Sink

_FOLDER: Final = "_errors"
_RETRIES: Final = 8
_WAITS: Final = (0.5, 2.0, 8.0)
"""Seconds before a commit that got no answer is made again."""


@cache
def _schema() -> pa.Schema:
    import pyarrow as pa

    texts = ("path", "image_id", "dataset", "split", "stage", "error", "message", "run")
    return pa.schema(
        [*((name, pa.string()) for name in texts), ("at", pa.timestamp("us", tz="UTC"))]
    )


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one input has no label: the stage, the error's class, and a message with the mend."""

    path: str
    image_id: str
    dataset: str
    split: str
    stage: str
    error: str
    message: str

    @classmethod
    def of(cls, sample: Sample, stage: str, error: BaseException) -> Failure:
        """Return the failure of one sample."""
        return cls(
            path=sample.path,
            image_id=sample.image_id,
            dataset=sample.dataset,
            split=sample.split,
            stage=stage,
            error=type(error).__name__,
            message=" ".join(str(error).split()) or type(error).__name__,
        )

    @classmethod
    def of_row(cls, row: Record, stage: str, error: BaseException) -> Failure:
        """Return the failure of a store's row."""
        path = row.image.path or ""
        named = Sample(row.image_id, path, row.fingerprint, dataset=row.dataset, split=row.split)
        return cls.of(named, stage, error)

    def to_dict(self) -> dict[str, Any]:
        """Return the failure as plain data."""
        return asdict(self)


def to_table(failures: Iterable[Failure], run: str, at: datetime) -> pa.Table:
    """Return the failures of a run as rows of the errors table, in a fixed order."""
    import pyarrow as pa

    rows = sorted((f.to_dict() for f in failures), key=lambda r: (r["image_id"], r["path"]))
    return pa.Table.from_pylist([row | {"run": run, "at": at} for row in rows], schema=_schema())


def append_failures(
    store: str, options: Mapping[str, str], sink: Sink, rows: pa.Table, name: str
) -> None:
    """Add rows to a store's errors table as one file; the same name twice is added once.

    Raises:
        WriteFailed: the file system refuses it again and again.
    """
    for wait in (*_WAITS, None):
        try:
            return _append(store, options, sink, rows, name)
        except WriteFailed:
            if wait is None:
                raise
            time.sleep(wait)


def _append(store: str, options: Mapping[str, str], sink: Sink, rows: pa.Table, name: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from deltalake import CommitProperties, DeltaTable, Schema
    from deltalake.transaction import AddAction

    if not rows.num_rows:
        return
    url = f"{store}/{_FOLDER}"
    if not DeltaTable.is_deltatable(url, dict(options) or None):
        with writing(url):
            DeltaTable.create(
                url,
                Schema.from_arrow(_schema()),
                mode="ignore",
                storage_options=dict(options) or None,
            )
    table, path = DeltaTable(url, storage_options=dict(options) or None), f"data/{name}.parquet"
    if any(uri.endswith(f"/{path}") for uri in table.file_uris()):
        return
    buffer = pa.BufferOutputStream()
    pq.write_table(rows, buffer, compression="zstd")
    data = buffer.getvalue()
    sink.write(f"{_FOLDER}/{path}", memoryview(data))
    stats = json.dumps({"numRecords": rows.num_rows})
    with writing(url):
        table.create_write_transaction(
            [AddAction(path, data.size, {}, int(time.time() * 1000), True, stats)],
            mode="append",
            schema=table.schema(),
            commit_properties=CommitProperties(max_commit_retries=_RETRIES),
        )


def read_failures(store: str, options: Mapping[str, str]) -> pa.Table:
    """Return a store's errors table; empty when nothing ever failed."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from deltalake import DeltaTable

    from pipeline.files import open_tree

    url = f"{store}/{_FOLDER}"
    if not DeltaTable.is_deltatable(url, dict(options) or None):
        return _schema().empty_table()
    table, tree = DeltaTable(url, storage_options=dict(options) or None), open_tree(url, **options)
    names = pa.table(table.get_add_actions(flatten=True))["path"].to_pylist()
    parts = [pq.read_table(pa.BufferReader(tree.read(name))) for name in sorted(names)]
    return pa.concat_tables([_schema().empty_table(), *(part.cast(_schema()) for part in parts)])
