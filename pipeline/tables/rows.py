"""The rows of a store by name: a listing of some tens of bytes a row, and the way back to them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.runs.keys import spread
from pipeline.tables.groups import RowGroups

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from pipeline.store import Store

_BLOCK: Final = 1 << 16


class RowKey(NamedTuple):
    """The identity of a row in its store; `place` is a hash of the image's path.

    `label` is a hash of what tells rows of one image apart: split, fingerprint, label space, and
    what made the label; 0 stands for any row of the image.
    """

    image_id: str
    dataset: str
    place: int
    label: int = 0


def place_of(path: str | None) -> int:
    """Return the hash of an image path by which rows are matched: 63 bits; 0 without a path."""
    if path is None:
        return 0
    digest = hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True, slots=True, eq=False)
class Listing:
    """The rows of a store in a fixed order, without what they hold.

    Memory: the image_id's bytes and 28 more a row; while it is made, twice that, as Arrow puts the
    ids together.
    """

    keys: pa.Table
    """Columns image_id, dataset, split, label_space, and `place` and `label` (int64)."""

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return int(self.keys.num_rows)

    def label_spaces(self) -> list[str]:
        """Return the names of the label spaces that the rows use."""
        return sorted(s for s in pc.unique(self.keys["label_space"]).to_pylist() if s)

    def places(self) -> NDArray[np.int64]:
        """Return the path hashes."""
        return np.asarray(self.keys["place"].to_numpy())

    def hashes(self, *columns: str) -> NDArray[np.int64]:
        """Return a hash of each row's columns, never 0."""
        found = np.empty(self.rows, np.int64)
        for start in range(0, self.rows, _BLOCK):
            block = self.keys.select(columns).slice(start, _BLOCK).combine_chunks()
            texts = pc.binary_join_element_wise(*(c.cast(pa.string()) for c in block.columns), "\0")
            numbers = spread(pa.concat_arrays(texts.chunks), "names").view(np.int64)
            found[start : start + _BLOCK] = np.where(numbers == 0, 1, numbers)
        return found

    def key(self, row: int) -> RowKey:
        """Return a row's identity."""
        return self.named([row])[0]

    def named(self, rows: Sequence[int] | NDArray[np.integer[Any]]) -> list[RowKey]:
        """Return the identities of some rows."""
        part = self.keys.select(RowKey._fields).take(pa.array(rows, pa.int64()))
        return list(map(RowKey._make, zip(*(c.to_pylist() for c in part.columns), strict=True)))


def list_rows(store: Store, where: pc.Expression | str | None = None) -> Listing:
    """List a store's rows, sorted by image_id; only narrow columns are read.

    `where` is what `Store.scan` takes.
    """
    columns = ["image_id", "dataset", "image.path", *_TELLING]
    ids: list[pa.Array] = []
    coded = {name: _Coded() for name in _CODED}
    numbers: dict[str, list[NDArray[np.int64]]] = {"place": [], "label": []}
    for batch in store.scan(columns, where, batch_rows=16384):
        # A copy: what was read would keep the whole batch in memory.
        ids.append(pa.concat_arrays([batch["image_id"].cast(pa.string()), _NO_TEXT]))
        for name, held in coded.items():
            held.add(batch[name])
        paths = batch["image.path"].to_pylist()
        numbers["place"].append(np.fromiter(map(place_of, paths), np.int64, batch.num_rows))
        numbers["label"].append(_labels(batch))
    listed = {"image_id": pa.chunked_array(ids, pa.string()).combine_chunks()}
    ids.clear()
    listed |= {name: held.column() for name, held in coded.items()}
    for name, parts in numbers.items():
        listed[name] = pa.array(np.concatenate([np.empty(0, np.int64), *parts]))
        parts.clear()
    table = pa.table(listed)
    return Listing(table if _ascending(table["image_id"]) else _sorted(table))


_NO_TEXT: Final = pa.array([], pa.string())
_CODED: Final = ("dataset", "split", "label_space")
_TELLING: Final = (
    "split", "fingerprint", "label_space", "provenance.model", "provenance.model_digest",
    "provenance.run",
)  # fmt: skip
"""The columns that tell rows of one image apart."""


_ORDER: Final = ("image_id", "dataset", "split", "place", "label")
_FEW: Final = 1 << 15


@dataclass(slots=True)
class _Coded:
    """A column of few texts: a number for each row."""

    known: dict[str, int] = field(default_factory=dict)
    codes: list[NDArray[Any]] = field(default_factory=list)

    def add(self, column: pa.Array) -> None:
        told = pc.fill_null(column.cast(pa.string()), "").dictionary_encode()
        texts = told.dictionary.to_pylist()
        own = np.array([self.known.setdefault(t, len(self.known)) for t in texts], np.int32)
        codes = own[told.indices.to_numpy()]
        few = len(self.known) < _FEW
        self.codes.append(codes.astype(np.int16) if few else codes)

    def column(self) -> pa.DictionaryArray:
        """Return the column; its numbers are in the order of the texts, so that they sort alike."""
        texts = sorted(self.known)
        width = np.int16 if len(texts) < _FEW else np.int32
        rank = np.empty(len(texts), width)
        rank[[self.known[t] for t in texts]] = np.arange(len(texts))
        codes = rank[np.concatenate([np.empty(0, np.int16), *self.codes])]
        self.codes.clear()
        return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(texts, pa.string()))


def _ascending(ids: pa.ChunkedArray) -> bool:
    """Return whether each id is greater than the one before it, as fragments in a row have them."""
    for start in range(0, len(ids) - 1, _BLOCK):
        size = min(_BLOCK, len(ids) - 1 - start)
        if not pc.all(pc.less(ids.slice(start, size), ids.slice(start + 1, size))).as_py():
            return False
    return True


def _sorted(table: pa.Table) -> pa.Table:
    plain = {name: _sortable(table[name]) for name in _ORDER}
    order = pc.sort_indices(pa.table(plain), [(name, "ascending") for name in _ORDER])
    return table.take(order)


def _sortable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column's numbers where it is coded, which Arrow does not sort."""
    if not pa.types.is_dictionary(column.type):
        return column
    return pa.chunked_array([c.indices for c in column.chunks], column.type.index_type)


KEY_COLUMNS: Final = ("image_id", "dataset", "image.path", *_TELLING)
"""The columns that tell a row of a store from every other one."""


def row_keys(batch: pa.RecordBatch) -> NDArray[np.uint64]:
    """Return 64 bits of each row by its `KEY_COLUMNS`: equal for the same row in any reading."""
    columns = [pc.fill_null(batch[name].cast(pa.string()), "") for name in KEY_COLUMNS]
    return np.asarray(spread(pc.binary_join_element_wise(*columns, "\0"), "a row"))


def _labels(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """Return `RowKey.label` of each row, never 0."""
    columns = [pc.fill_null(batch[name].cast(pa.string()), "") for name in _TELLING]
    texts = pc.binary_join_element_wise(*columns, "\0")
    return (spread(texts, "telling rows apart") | np.uint64(1)).view(np.int64)


def rows_of(
    store: Store,
    keys: Iterable[RowKey],
    columns: Sequence[str],
    groups: RowGroups | None = None,
) -> Iterator[tuple[RowKey, tuple[Any, ...]]]:
    """Read the rows of some keys, in any order: key and the columns, in Arrow's Python form.

    The keys should lie near each other: the store is read from the least image_id to the greatest.
    Whoever reads chunk after chunk passes the same `groups`, so that what two chunks lie in is read
    once.

    Raises:
        StoreError: a file of the snapshot is gone.
    """
    wanted = set(keys)
    ids = sorted({key.image_id for key in wanted})
    if not ids:
        return
    labels = {0} if all(key.label == 0 for key in wanted) else None
    identity = ("image_id", "dataset", "image.path")
    needed = tuple(dict.fromkeys((*identity, *_TELLING, *columns)))
    for batch in (groups or RowGroups(store)).rows(ids, needed):
        held = {name: batch[name].to_pylist() for name in {*identity, *columns}}
        named = zip(*(held[name] for name in identity), _labels(batch).tolist(), strict=True)
        rows = zip(*(held[name] for name in columns), strict=True)
        for (image_id, dataset, path, label), row in zip(named, rows, strict=True):
            place = place_of(path)
            for n in labels or (label, 0):
                key = RowKey(image_id, dataset or "", place, n)
                if key in wanted:
                    yield key, row
