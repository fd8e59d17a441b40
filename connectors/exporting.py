"""A label store's rows as a source of records: in ranges, each row group read once a process."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pipeline.record import COLUMNS, Sample, from_batch
from pipeline.runs.ledger import row_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa

    from pipeline.pseudo.view import View
    from pipeline.record import Record
    from pipeline.store import Store
    from pipeline.tables.fragment import Fragment

_LEAST_ROWS: Final = 256
_MOST_ROWS: Final = 1024
_RANGES: Final = 64
"""Ranges to cut a store into at least, so that many workers have something to do."""


@dataclass(frozen=True, slots=True)
class RowRange:
    """A run of rows of one fragment."""

    fragment: Fragment
    start: int
    stop: int

    def identity(self) -> bytes:
        """Return a hash of the rows' place: a fragment is written once."""
        place = f"{self.fragment.path}\0{self.start}\0{self.stop}"
        return hashlib.blake2b(place.encode(), digest_size=10).digest()

    def halves(self) -> list[RowRange]:
        """Return two smaller ranges, or this one when it holds a single row."""
        middle = (self.start + self.stop) // 2
        if middle == self.start:
            return [self]
        return [
            RowRange(self.fragment, self.start, middle),
            RowRange(self.fragment, middle, self.stop),
        ]


def ranges(store: Store) -> Iterator[RowRange]:
    """Yield the store's rows in ranges, fragments in the order of their first image_id."""
    size = min(max(store.count() // _RANGES, _LEAST_ROWS), _MOST_ROWS)
    for fragment in store.fragments():
        for start in range(0, fragment.rows, size):
            yield RowRange(fragment, start, min(start + size, fragment.rows))


def matching(store: Store, where: str | None) -> frozenset[bytes] | None:
    """Return the keys of the rows that meet the condition, 16 bytes each; None without one."""
    if where is None:
        return None
    batches = store.scan(["dataset", "image.path"], where, batch_rows=65536)
    return frozenset(
        row_key(dataset, path or "")
        for batch in batches
        for dataset, path in zip(*(c.to_pylist() for c in batch.columns), strict=True)
    )


@dataclass(frozen=True, slots=True)
class RowReader:
    """Reads ranges of a store's rows; picklable. `keys` are the rows to keep, None for all.

    With a view the rows' masks are what it shows.
    """

    store: Store
    keys: frozenset[bytes] | None
    view: View | None = None

    def __call__(self) -> Callable[[RowRange], Iterator[tuple[Sample, Record]]]:
        """Return the reading function, in the process that will use it."""
        return self._read

    def _read(self, rows: RowRange) -> Iterator[tuple[Sample, Record]]:
        for batch in _GROUPS.batches(self.store, rows):
            for record in from_batch(batch):
                path = record.image.path or ""
                if self.keys is None or row_key(record.dataset, path) in self.keys:
                    if self.view is not None:
                        seen = self.view.of(self.store.space(record.label_space))
                        record = seen.record(record)
                    yield _sample(record, path), record

    def samples(self, rows: RowRange) -> list[Sample]:
        """Return what a range would be read as."""
        return [sample for sample, _ in self._read(rows)]


def _sample(record: Record, path: str) -> Sample:
    return Sample(
        record.image_id, path, record.fingerprint, dataset=record.dataset, split=record.split
    )


class _Groups:
    """The row groups read last, for all threads of a process.

    Parquet has no way to a row but through its group (64 MB, some ten thousand small masks), and
    the threads work on neighbouring ranges.
    """

    _MOST: Final = 2

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[tuple[str, str, int], pa.Table] = OrderedDict()
        self._counts: OrderedDict[tuple[str, str], list[int]] = OrderedDict()

    def batches(self, store: Store, rows: RowRange) -> Iterator[pa.Table]:
        """Yield the rows of a range, a part for each row group."""
        at = 0
        for number, count in enumerate(self._rows(store, rows.fragment)):
            low, high = max(rows.start - at, 0), min(rows.stop - at, count)
            if low < high:
                yield self._group(store, rows.fragment, number).slice(low, high - low)
            at += count

    def _rows(self, store: Store, fragment: Fragment) -> list[int]:
        """Return how many rows each group has."""
        import pyarrow.parquet as pq

        key = store.url, fragment.path
        with self._lock:
            if key not in self._counts:
                with store.tree().open(fragment.path) as file:
                    said = pq.ParquetFile(file).metadata
                counts = [said.row_group(n).num_rows for n in range(said.num_row_groups)]
                self._counts[key] = counts
                if len(self._counts) > self._MOST:
                    self._counts.popitem(last=False)
            return self._counts[key]

    def _group(self, store: Store, fragment: Fragment, number: int) -> pa.Table:
        import pyarrow.parquet as pq

        key = store.url, fragment.path, number
        with self._lock:  # the others wait for the same group, most likely
            if key not in self._held:
                while len(self._held) >= self._MOST:
                    self._held.popitem(last=False)
                with store.tree().open(fragment.path) as file:
                    group = pq.ParquetFile(file).read_row_group(number, columns=list(COLUMNS))
                self._held[key] = group
            self._held.move_to_end(key)
            return self._held[key]


_GROUPS: Final = _Groups()
