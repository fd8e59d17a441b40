"""From a listing to a plan: what of it the store lacks, cut into shards.

The listing comes in batches of Arrow columns. Each is asked of the ledger as a whole: an anti-join
by (dataset, path, fingerprint, digest) on 128-bit keys. Of a listed image 24 bytes stay, in a
temporary file when they are many: to find what the listing names again.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from pipeline.runs.index import KeyPile
from pipeline.runs.keys import as_bytes, batch_keys
from pipeline.runs.ledger import State
from pipeline.samples import batches_of, compact, cut, joined, one_ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import pyarrow as pa
    from numpy.typing import NDArray

    from pipeline.record import Sample
    from pipeline.runs.ledger import Ledger
    from pipeline.runs.orphans import Orphan, Orphans

    Listing = Iterable[Sample] | Iterable[pa.RecordBatch]

_BATCH_ROWS: Final = 32_768
_FIRST_ROWS: Final = 2


class Shards(Protocol):
    """What takes the shards: a plan."""

    def add(self, samples: pa.RecordBatch) -> None:
        """Take a batch of samples as one shard."""

    def flush(self) -> None:
        """Be done."""


class Planner:
    """Takes a listing in, and counts.

    A shard is named by what it holds. So that a run that is taken up makes the shards of the first
    attempt again, the listing is cut by position into cells of `shard_rows`; what the store lacks
    of a cell stays together, and neighbours that are small together make one shard. With `ramp` the
    first cells are small and stay apart, so that a job's first rows come early.
    """

    def __init__(
        self,
        ledger: Ledger | None,
        orphans: Orphans,
        plan: Shards,
        shard_rows: int,
        *,
        ramp: bool = False,
    ) -> None:
        self._ledger, self._orphans, self._plan = ledger, orphans, plan
        self._shard_rows = shard_rows
        self._ramp = np.array(_ramp(shard_rows) if ramp else [], np.int64)
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0
        self._rows = KeyPile(3)
        self.listed = self.todo = self.changed = self.repeated = 0
        self.adopted: list[Orphan] = []
        self.again: dict[bytes, bool] = {}
        """Rows that the listing names again: whether the first of them needs no work."""

    def read(self, listing: Listing, on_listed: Callable[[int, int], None]) -> None:
        """Plan a listing."""
        rows = max(1, _BATCH_ROWS // self._shard_rows) * self._shard_rows
        for batch in one_ahead(cut(batches_of(listing), rows, self._shard_rows)):
            self._take(batch)
            on_listed(self.listed, self.todo)
        self._flush()
        for orphan in self._orphans.found:
            if orphan.fits():
                self.adopted.append(orphan)
            elif orphan.covered:
                self._plan.add(joined(orphan.covered))
            orphan.covered.clear()
        self._plan.flush()
        self._count()

    def _take(self, batch: pa.RecordBatch) -> None:
        keys = batch_keys(batch)
        states = np.zeros(batch.num_rows, np.uint8)
        if self._ledger is not None:
            states = self._ledger.states(keys)
        missing = states != State.DONE
        at = np.arange(self.listed, self.listed + batch.num_rows, dtype=np.uint64)
        flags = missing.astype(np.uint64) + (states == State.CHANGED).astype(np.uint64)
        self._rows.add(keys.high, keys.low, (at << np.uint64(2)) | flags)
        left = np.flatnonzero(missing & ~self._orphans.take(batch, keys, states))
        cells = self._cells_of(left + self.listed)
        self.listed += batch.num_rows
        self.todo += int(missing.sum())
        if left.size:
            picked = batch if left.size == batch.num_rows else batch.take(left)
            for cell, piece in _cells(picked, cells):
                self._wait(piece)
                if cell < self._ramp.size:
                    self._flush()

    def _cells_of(self, places: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return the number of the cell that each place of the listing lies in, ascending."""
        small = np.searchsorted(self._ramp, places, side="right")
        return np.where(small < self._ramp.size, small, small + places // self._shard_rows)

    def _wait(self, piece: pa.RecordBatch) -> None:
        """Put what is left of a cell to what waits, as one shard if that is not too much."""
        if self._waiting_rows + piece.num_rows > self._shard_rows:
            self._flush()
        self._waiting.append(piece)
        self._waiting_rows += piece.num_rows

    def _flush(self) -> None:
        if self._waiting:
            self._plan.add(joined(self._waiting))
            self._waiting, self._waiting_rows = [], 0

    def _count(self) -> None:
        """Sum up: of a row that the listing names again, the first counts."""
        self.todo = self.changed = 0
        taken: set[bytes] | None = None
        for part in self._rows.parts():
            first, again = _firsts(part)
            flags = first[:, 2] & np.uint64(3)
            self.todo += int(np.count_nonzero(flags))
            self.changed += int(np.count_nonzero(flags == 2))
            self.repeated += len(part) - len(first)
            if again.any():
                rows = first[again]
                if taken is None:
                    taken = {k for o in self.adopted for k in as_bytes(o.keys.high, o.keys.low)}
                for key, flag in zip(as_bytes(rows[:, 0], rows[:, 1]), flags[again], strict=True):
                    self.again[key] = not flag or key in taken
        self.todo -= sum(o.fragment.rows for o in self.adopted)
        self.changed -= sum(o.changed for o in self.adopted)


def _ramp(rows: int) -> list[int]:
    """Return where the first cells end: each size twice, up to two whole cells.

    >>> _ramp(8), _ramp(2)
    ([2, 4, 8, 12, 16], [])
    """
    ends, size = [0], _FIRST_ROWS
    while size < rows:
        ends += [ends[-1] + size, ends[-1] + 2 * size]
        size *= 2
    return [*ends[1:], 2 * rows] if len(ends) > 1 else []


def _cells(batch: pa.RecordBatch, cells: NDArray[np.intp]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield the number and the rows of each cell; `cells` numbers that of each row, ascending."""
    edges = [0, *(np.flatnonzero(np.diff(cells)) + 1).tolist(), len(cells)]
    for start, end in pairwise(edges):
        yield int(cells[start]), compact(batch.slice(start, end - start))


def _firsts(rows: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Return the first row of each key, and of which there are more; rows are sorted by high."""
    if not np.any(rows[1:, 0] == rows[:-1, 0]):
        return rows, np.zeros(len(rows), bool)
    rows = rows[np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))]
    new = np.append(True, np.any(rows[1:, :2] != rows[:-1, :2], axis=1))
    starts = np.flatnonzero(new)
    return rows[starts], np.diff(np.append(starts, len(rows))) > 1
