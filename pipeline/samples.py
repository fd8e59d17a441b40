"""Samples in Arrow columns: what a listing of millions streams in, a batch at a time.

A Python object a sample costs microseconds and some hundred bytes; a row of a batch a tenth of
that. `Sample` stays the interface for all who look at one image.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import pyarrow as pa

from pipeline.record import Sample

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from concurrent.futures import Future

T = TypeVar("T")
_CODED: Final = pa.dictionary(pa.int32(), pa.string())
SCHEMA: Final = pa.schema(
    [
        ("image_id", pa.string()),
        ("path", pa.string()),
        ("fingerprint", pa.string()),
        ("digest", _CODED),
        ("dataset", _CODED),
        ("split", _CODED),
        ("payload", _CODED),
    ]
)
"""The fields of `Sample`; `payload` as JSON, null without one."""
MOST_ROWS: Final = 65_536
"""Rows of a batch at most: some ten megabytes."""


def to_batch(samples: Sequence[Sample]) -> pa.RecordBatch:
    """Return samples as a batch of `SCHEMA`."""
    columns: dict[str, list[Any]] = {
        name: [getattr(s, name) for s in samples] for name in SCHEMA.names
    }
    columns["payload"] = [None if p is None else json.dumps(p) for p in columns["payload"]]
    arrays = [pa.array(columns[f.name], pa.string()).cast(f.type) for f in SCHEMA]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def of_batch(batch: pa.RecordBatch | pa.Table) -> list[Sample]:
    """Return the samples of a batch."""
    columns = {name: batch[name].to_pylist() for name in SCHEMA.names}
    known: dict[str | None, Any] = {None: None}
    for text in set(columns["payload"]) - {None}:
        known[text] = json.loads(text)
    columns["payload"] = [known[text] for text in columns["payload"]]
    return [Sample(*row) for row in zip(*(columns[n] for n in Sample.__slots__), strict=True)]


def with_digest(batch: pa.RecordBatch, digest: str) -> pa.RecordBatch:
    """Return the samples with what will label them."""
    return batch.set_column(
        SCHEMA.get_field_index("digest"), SCHEMA.field("digest"), coded(digest, batch.num_rows)
    )


def coded(values: str | pa.Array | None, rows: int) -> pa.Array:
    """Return a column of few different values, or of one, as `SCHEMA` has it."""
    if isinstance(values, pa.Array):
        return values if values.type == _CODED else values.cast(pa.string()).dictionary_encode()
    if values is None:
        return pa.nulls(rows, _CODED)
    codes = pa.array(np.zeros(rows, np.int32))
    return pa.DictionaryArray.from_arrays(codes, pa.array([values], pa.string()))


def batches_of(samples: Iterable[Sample] | Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield batches of what comes as samples, or as batches already."""
    feed: Iterator[Any] = iter(samples)
    first = next(feed, None)
    if first is None:
        return
    feed = chain([first], feed)
    if not isinstance(first, Sample):
        yield from feed
        return
    rows = 1
    while held := list(islice(feed, rows)):
        yield to_batch(held)
        rows = min(MOST_ROWS // 4, 2 * rows)  # the first few are there before the last is listed


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield the items in order; a thread makes the next one while this one is worked on."""
    feed, end = iter(items), object()
    with ThreadPoolExecutor(1) as thread:
        coming: Future[Any] = thread.submit(next, feed, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, feed, end)
            yield item


def cut(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the same rows in batches of `rows`, the last of what is left."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        held.append(batch)
        count += batch.num_rows
        if count < rows:
            continue
        whole = joined(held)
        for start in range(0, count - rows + 1, rows):
            yield whole.slice(start, rows)
        left = count % rows
        held, count = ([whole.slice(count - left)] if left else []), left
    if count:
        yield joined(held)


def joined(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Return the rows of some batches as one."""
    if len(batches) == 1:
        return batches[0]
    table = pa.Table.from_batches(batches).unify_dictionaries().combine_chunks()
    if not table.num_rows:
        return batches[0].slice(0, 0)
    [whole] = table.to_batches()  # several, were their text more than an array holds: 2 GiB
    return whole
