"""Which rows of two stores are of the same image: a join that holds some tens of bytes a row.

Rows match by image path; a row whose path the other store does not hold matches by split and
image_id, and then by image_id alone (a bucket that was copied, a prediction made from a zip).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SegmillError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from pipeline.store import Store

_NONE: Final = -1


class RowKey(NamedTuple):
    """The identity of a row in its store; `place` is a hash of the image's path."""

    image_id: str
    dataset: str
    place: int


class Pair(NamedTuple):
    """A row of truth and the row of the same image among the predictions."""

    truth: RowKey
    predicted: RowKey
    split: str


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
    """Columns image_id, dataset, split, label_space, and `place` (int64)."""

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
        columns = (self.keys[c][row].as_py() for c in ("image_id", "dataset", "place"))
        return RowKey(*columns)


def list_rows(store: Store, where: pc.Expression | str | None = None) -> Listing:
    """List a store's rows, sorted by image_id; only narrow columns are read.

    `where` is what `Store.scan` takes.
    """
    columns = ["image_id", "dataset", "split", "label_space", "image.path"]
    batches = []
    for batch in store.scan(columns, where, batch_rows=16384):
        paths = batch["image.path"].to_pylist()
        places = np.fromiter(map(place_of, paths), np.int64, batch.num_rows)
        batches.append(_narrow(batch, places))
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
    ]
)


_ORDER: Final = ("image_id", "dataset", "split", "place")
_PLAIN: Final = {"dataset": pa.string(), "split": pa.string()}  # Arrow sorts no coded column


def _narrow(batch: pa.RecordBatch, places: NDArray[np.int64]) -> pa.RecordBatch:
    coded = [
        pc.fill_null(batch[name].cast(pa.string()), "").dictionary_encode()
        for name in ("dataset", "split", "label_space")
    ]
    ids = batch["image_id"].cast(pa.string())
    return pa.RecordBatch.from_arrays([ids, *coded, pa.array(places)], schema=_LISTED)


@dataclass(frozen=True, slots=True, eq=False)
class Pairing:
    """Rows of truth with their predictions, in the order of truth; and what is left over."""

    truth: Listing
    predicted: Listing
    partner: NDArray[np.int64]
    """For each row of truth the row of its prediction, or -1."""
    by_path: int
    by_id: int

    @property
    def pairs(self) -> int:
        """How many rows of truth have a prediction."""
        return self.by_path + self.by_id

    @property
    def unpredicted(self) -> int:
        """How many rows of truth have no prediction."""
        return self.truth.rows - self.pairs

    @property
    def unused(self) -> int:
        """How many predictions have no row of truth."""
        return self.predicted.rows - len(np.unique(self.partner[self.partner >= 0]))

    def __iter__(self) -> Iterator[Pair]:
        keys = self.truth.keys
        for row in np.flatnonzero(self.partner >= 0).tolist():
            other = self.predicted.key(int(self.partner[row]))
            yield Pair(self.truth.key(row), other, keys["split"][row].as_py())


def pair_rows(truth: Listing, predicted: Listing) -> Pairing:
    """Find the prediction of each row of truth.

    Raises:
        UsageError: a row of truth has more than one prediction.
        SegmillError: no row of truth has a prediction.
    """
    partner = np.full(truth.rows, _NONE, np.int64)
    by_path = _match(partner, truth, predicted, truth.places(), predicted.places())
    found = by_path
    for columns in (("split", "image_id"), ("image_id",)):
        if found < truth.rows and found < predicted.rows:
            hashes = (truth.hashes(*columns), predicted.hashes(*columns))
            found += _match(partner, truth, predicted, *hashes)
    if not found:
        raise SegmillError(_no_pair(truth, predicted))
    return Pairing(truth, predicted, partner, by_path, found - by_path)


def _match(
    partner: NDArray[np.int64],
    truth: Listing,
    predicted: Listing,
    mine: NDArray[np.int64],
    theirs: NDArray[np.int64],
) -> int:
    """Fill in partners of equal hash for rows without one; return how many were found."""
    free = np.ones(predicted.rows, np.bool_)
    free[partner[partner >= 0]] = False
    rows = np.flatnonzero(free & (theirs != 0))
    rows = rows[np.argsort(theirs[rows], kind="stable")]
    wanted = np.flatnonzero((partner == _NONE) & (mine != 0))
    first = np.searchsorted(theirs[rows], mine[wanted], side="left")
    last = np.searchsorted(theirs[rows], mine[wanted], side="right")
    if (last - first > 1).any():
        at = int(np.argmax(last - first > 1))
        names = [predicted.key(int(r)) for r in rows[first[at] : last[at]][:2]]
        raise UsageError(
            f"{truth.key(int(wanted[at])).image_id}: the image has {int((last - first)[at])} "
            f"predictions ({names[0].dataset}/{names[0].image_id}, "
            f"{names[1].dataset}/{names[1].image_id}); choose one set with --pred-where"
        )
    hit = last > first
    partner[wanted[hit]] = rows[first[hit]]
    return int(hit.sum())


def _no_pair(truth: Listing, predicted: Listing) -> str:
    if not truth.rows or not predicted.rows:
        which = "truth" if not truth.rows else "prediction"
        return f"no row of {which} is left to score; look at the stores and at the filter"
    return (
        f"no image of the truth ({truth.rows} rows, the first {truth.key(0).image_id!r}) is among "
        f"the predictions ({predicted.rows} rows, the first {predicted.key(0).image_id!r}): "
        f"neither paths nor ids agree"
    )


def rows_of(
    store: Store, keys: Iterable[RowKey], columns: Sequence[str]
) -> Iterator[tuple[RowKey, list[pa.Scalar]]]:
    """Read the rows of some keys, in any order: key and the columns, as Arrow scalars.

    The keys should lie near each other: the store is read from the least image_id to the greatest.
    """
    wanted = set(keys)
    ids = sorted({key.image_id for key in wanted})
    if not ids:
        return
    name = pc.field("image_id")
    where = (name >= ids[0]) & (name <= ids[-1]) & name.isin(ids)
    identity = ("image_id", "dataset", "image.path")
    for batch in store.scan([*identity, *(c for c in columns if c not in identity)], where):
        parts = (batch[name].to_pylist() for name in identity)
        for row, (image_id, dataset, path) in enumerate(zip(*parts, strict=True)):
            key = RowKey(image_id, dataset or "", place_of(path))
            if key in wanted:
                yield key, [batch[c][row] for c in columns]
