"""Samples in Arrow columns: what a listing of millions streams in, a batch at a time.

A Python object a sample costs microseconds and some hundred bytes; a row of a batch a tenth of
that. `Sample` stays the interface for all who look at one image.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
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
MOST_BYTES: Final = 8 << 20
"""About the most that a batch takes where payloads are long: a COCO image's holds its polygons."""


def to_batch(samples: Sequence[Sample]) -> pa.RecordBatch:
    """Return samples as a batch of `SCHEMA`."""
    return _packed(samples, [_noted(s) for s in samples])


def _noted(sample: Sample) -> str | None:
    return None if sample.payload is None else json.dumps(sample.payload)


def _packed(samples: Sequence[Sample], payloads: list[str | None]) -> pa.RecordBatch:
    columns: dict[str, list[Any]] = {
        name: [getattr(s, name) for s in samples] for name in SCHEMA.names[:-1]
    }
    columns["payload"] = payloads
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
    while held := _some(feed, rows):
        yield _packed(*held)
        rows = min(MOST_ROWS // 4, 2 * rows)  # the first few are there before the last is listed


def _some(feed: Iterator[Sample], rows: int) -> tuple[list[Sample], list[str | None]] | None:
    """Take up to `rows` samples, or `MOST_BYTES` of payloads; None when there is none."""
    samples: list[Sample] = []
    payloads: list[str | None] = []
    size = 0
    for sample in islice(feed, rows):
        payloads.append(_noted(sample))
        size += len(payloads[-1] or "")
        # Kept as text, once: the objects of a payload take several times as much.
        samples.append(sample if sample.payload is None else replace(sample, payload=None))
        if size >= MOST_BYTES:
            break
    return (samples, payloads) if samples else None


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield the items in order; a thread makes the next one while this one is worked on."""
    feed, end = iter(items), object()
    with ThreadPoolExecutor(1) as thread:
        coming: Future[Any] = thread.submit(next, feed, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, feed, end)
            yield item


def cut(
    batches: Iterable[pa.RecordBatch], rows: int, cell: int | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the same rows in batches of `rows`, the last of what is left.

    Batches above `MOST_BYTES` have fewer rows, a multiple of `cell`.
    """
    held: list[pa.RecordBatch] = []
    count = size = 0
    for batch in batches:
        held.append(batch)
        count += batch.num_rows
        size += batch.nbytes
        step = rows if size <= MOST_BYTES else min(rows, count // (cell or rows) * (cell or rows))
        if not step or count < step:
            continue
        whole = joined(held)
        for start in range(0, count - step + 1, step):
            yield whole.slice(start, step)
        count %= step
        held = [compact(whole.slice(whole.num_rows - count))] if count else []
        size = sum(b.nbytes for b in held)
    if count:
        yield joined(held)


def compact(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a slice of a batch with dictionaries of its own.

    A slice keeps the whole batch's: of texts that all differ, each would hold and write them all.
    """
    for place, column in enumerate(batch.columns):
        if pa.types.is_dictionary(column.type) and len(column.dictionary) > len(column):
            own = column.dictionary.take(column.indices).dictionary_encode()
            batch = batch.set_column(place, batch.schema.field(place), own)
    return batch


def joined(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Return the rows of some batches as one."""
    if len(batches) == 1:
        return batches[0]
    table = pa.Table.from_batches(batches).unify_dictionaries().combine_chunks()
    if not table.num_rows:
        return batches[0].slice(0, 0)
    [whole] = table.to_batches()  # several, were their text more than an array holds: 2 GiB
    return whole
