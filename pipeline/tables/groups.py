"""Reading a store's row groups one by one; the last few are kept for whoever reads on.

Jobs that read chunks of rows, in the order of their ids, find many chunks in one row group: it is
read once, not once a chunk. A scan would open the files and read the whole group for each.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.record import SCHEMA
from pipeline.tables.scan import leaf, present

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pipeline.store import Store
    from pipeline.tables.fragment import Fragment

_GROUPS: Final = 3  # of 64 MiB at most: those that two chunks lie in, and one more
_FILES: Final = 16
_ID: Final = "image_id"
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class RowGroups:
    """A store's rows by id. Threads of a process may share it; pickled, it starts anew."""

    store: Store
    _files: _Last = field(default_factory=lambda: _Last(_FILES), repr=False)
    _tables: _Last = field(default_factory=lambda: _Last(_GROUPS), repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)

    def __reduce__(self) -> tuple[type[RowGroups], tuple[Store]]:
        return RowGroups, (self.store,)

    def rows(self, ids: Sequence[str], names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield columns of the rows with one of these ids (sorted), as the store shows them.

        A column may be a field of one (`image.path`).

        Raises:
            StoreError: a file of the snapshot is gone.
        """
        wanted = pa.array(ids, pa.string())
        read = tuple(self.store.needed(names))
        for fragment in self.store.fragments():
            if fragment.min_id <= ids[-1] and ids[0] <= (fragment.max_id or ids[0]):
                for number in self._numbers(fragment, ids[0], ids[-1]):
                    table = self._table(fragment, number, read)
                    found = table.filter(pc.is_in(table[_ID].cast(pa.string()), wanted))
                    yield from (self.store.shown(b, names) for b in found.to_batches())

    def _numbers(self, fragment: Fragment, low: str, high: str) -> list[int]:
        """Return which row groups of a fragment may hold ids between two."""
        with self._lock:
            ranges = self._file(fragment).ranges
        return [
            number
            for number, (least, most) in enumerate(ranges)
            if least is None or (least <= high and low <= most)
        ]

    def _table(self, fragment: Fragment, number: int, names: tuple[str, ...]) -> pa.Table:
        """Read a row group; of several threads that want it, one does."""
        with self._lock:
            return self._tables.get(
                (fragment.path, number, names),
                lambda: self._file(fragment).read(number, names),
            )

    def _file(self, fragment: Fragment) -> _File:
        return self._files.get(fragment.path, lambda: _File.open(self.store, fragment))


class _Last:
    """What was made last, by key."""

    def __init__(self, most: int) -> None:
        self._most, self._held = most, OrderedDict[Any, Any]()

    def get(self, key: Any, make: Callable[[], T]) -> T:
        if key not in self._held:
            while len(self._held) >= self._most:  # before more is made: memory is bounded
                self._held.popitem(last=False)
            self._held[key] = make()
        self._held.move_to_end(key)
        found: T = self._held[key]
        return found


@dataclass(frozen=True, slots=True, eq=False)
class _File:
    """An open fragment, and the least and the greatest id of each of its row groups."""

    parquet: Any
    store: Store
    ranges: list[tuple[Any, Any]]

    @classmethod
    def open(cls, store: Store, fragment: Fragment) -> _File:
        import pyarrow.parquet as pq

        parquet = pq.ParquetFile(store.open_fragment(fragment), pre_buffer=True)
        told = parquet.metadata
        leaves = [told.schema.column(k).path for k in range(told.num_columns)]
        place = leaves.index(_ID)
        columns = [told.row_group(k).column(place) for k in range(told.num_row_groups)]
        ranges = [
            (c.statistics.min, c.statistics.max)
            if c.is_stats_set and c.statistics.has_min_max
            else (None, None)
            for c in columns
        ]
        return cls(parquet, store, ranges)

    def read(self, number: int, names: Sequence[str]) -> pa.Table:
        """Read columns, and fields of columns under their dotted names."""
        with present(self.store.url):
            group = self.parquet.read_row_group(
                number, columns=[leaf(n) for n in names], use_threads=False
            )
        return pa.table({name: _column(group, name) for name in names})


def _column(group: pa.Table, name: str) -> pa.ChunkedArray:
    column, _, inner = name.partition(".")
    if column not in group.column_names:  # written before the schema had it
        kind = SCHEMA.field(column).type
        return pa.nulls(group.num_rows, kind.field(inner).type if inner else kind)
    array = group[column]
    return pc.struct_field(array, inner) if inner and pa.types.is_struct(array.type) else array
