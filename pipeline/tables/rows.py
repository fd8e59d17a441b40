"""The rows of a store by name: a listing of some tens of bytes a row, and the way back to them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.runs.keys import spread

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from pipeline.store import Store


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
    """The rows of a store in a fixed order, without what they hold."""

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
        parts = [self.keys[c].to_pylist() for c in columns]
        rows = zip(*parts, strict=True)
        return np.fromiter((place_of("\0".join(row)) or 1 for row in rows), np.int64, self.rows)

    def key(self, row: int) -> RowKey:
        """Return a row's identity."""
        return self.named([row])[0]

    def named(self, rows: Sequence[int] | NDArray[np.int64]) -> list[RowKey]:
        """Return the identities of some rows."""
        part = self.keys.select(RowKey._fields).take(pa.array(rows, pa.int64()))
        return list(map(RowKey._make, zip(*(c.to_pylist() for c in part.columns), strict=True)))


def list_rows(store: Store, where: pc.Expression | str | None = None) -> Listing:
    """List a store's rows, sorted by image_id; only narrow columns are read.

    `where` is what `Store.scan` takes.
    """
    columns = ["image_id", "dataset", "image.path", *_TELLING]
    batches = []
    for batch in store.scan(columns, where, batch_rows=16384):
        paths = batch["image.path"].to_pylist()
        places = np.fromiter(map(place_of, paths), np.int64, batch.num_rows)
        batches.append(_narrow(batch, places, _labels(batch)))
    table = pa.Table.from_batches(batches, schema=_LISTED)
    table = table.unify_dictionaries().combine_chunks()
    plain = pa.table(
        [table[n].cast(_PLAIN.get(n, table[n].type)) for n in _ORDER], names=list(_ORDER)
    )
    order = pc.sort_indices(plain, [(name, "ascending") for name in _ORDER])
    return Listing(table.take(order))


_CODED: Final = pa.dictionary(pa.int32(), pa.string())
_LISTED: Final = pa.schema(
    [
        ("image_id", pa.string()),
        ("dataset", _CODED),
        ("split", _CODED),
        ("label_space", _CODED),
        ("place", pa.int64()),
        ("label", pa.int64()),
    ]
)
_TELLING: Final = (
    "split", "fingerprint", "label_space", "provenance.model", "provenance.model_digest",
    "provenance.run",
)  # fmt: skip
"""The columns that tell rows of one image apart."""


_ORDER: Final = ("image_id", "dataset", "split", "place", "label")
_PLAIN: Final = {"dataset": pa.string(), "split": pa.string()}  # Arrow sorts no coded column


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


def _narrow(
    batch: pa.RecordBatch, places: NDArray[np.int64], labels: NDArray[np.int64]
) -> pa.RecordBatch:
    coded = [
        pc.fill_null(batch[name].cast(pa.string()), "").dictionary_encode()
        for name in ("dataset", "split", "label_space")
    ]
    ids = batch["image_id"].cast(pa.string())
    hashes = pa.array(places), pa.array(labels)
    return pa.RecordBatch.from_arrays([ids, *coded, *hashes], schema=_LISTED)


def rows_of(
    store: Store, keys: Iterable[RowKey], columns: Sequence[str]
) -> Iterator[tuple[RowKey, tuple[Any, ...]]]:
    """Read the rows of some keys, in any order: key and the columns, in Arrow's Python form.

    The keys should lie near each other: the store is read from the least image_id to the greatest.
    """
    wanted = set(keys)
    ids = sorted({key.image_id for key in wanted})
    if not ids:
        return
    name = pc.field("image_id")
    where = (name >= ids[0]) & (name <= ids[-1]) & name.isin(ids)
    identity = ("image_id", "dataset", "image.path")
    needed = dict.fromkeys((*identity, *_TELLING, *columns))
    for batch in store.scan(list(needed), where):
        held = {name: batch[name].to_pylist() for name in {*identity, *columns}}
        named = zip(*(held[name] for name in identity), _labels(batch).tolist(), strict=True)
        rows = zip(*(held[name] for name in columns), strict=True)
        for (image_id, dataset, path, label), row in zip(named, rows, strict=True):
            place = place_of(path)
            for key in (RowKey(image_id, dataset or "", place, n) for n in (label, 0)):
                if key in wanted:
                    yield key, row
