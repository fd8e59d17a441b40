"""Which rows of two stores are of the same image: a join that holds some tens of bytes a row.

Rows match by image path; a row whose path the other store does not hold matches by split and
image_id, and then by image_id alone (a bucket that was copied, a prediction made from a zip).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import SegmillError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.tables.rows import Listing, RowKey

Rows: TypeAlias = NDArray[np.int32] | NDArray[np.int64]
_NONE: Final = -1
_BLOCK: Final = 4096
_AT_ONCE: Final = 1 << 18  # rows of truth that are looked up together
_NAMES: Final = {"pred": "the predictions", "baseline": "the baseline"}


class Pair(NamedTuple):
    """A row of truth and the row of the same image among the predictions."""

    truth: RowKey
    predicted: RowKey
    split: str
    baseline: RowKey | None = None
    """The row of the image in the label set that the prediction is compared with."""


@dataclass(frozen=True, slots=True, eq=False)
class Pairing:
    """Rows of truth with their predictions, in the order of truth; and what is left over.

    Iterating gives the pairs, beside which `baseline` names rows of a third store.
    """

    truth: Listing
    predicted: Listing
    partner: Rows
    """For each row of truth the row of its prediction, or -1."""
    by_path: int
    by_id: int
    baseline: Pairing | None = None
    """The same rows of truth with those of the baseline."""

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
        return self.predicted.rows - int(_taken(self.predicted, self.partner).sum())

    def __iter__(self) -> Iterator[Pair]:
        for start in range(0, self.truth.rows, _BLOCK):
            rows = start + np.flatnonzero(self.partner[start : start + _BLOCK] >= 0)
            splits = self.truth.keys["split"].take(pa.array(rows)).to_pylist()
            sides = self.truth.named(rows), self.predicted.named(self.partner[rows])
            third = [None] * len(rows) if self.baseline is None else self.baseline._partners(rows)
            yield from map(Pair._make, zip(*sides, splits, third, strict=True))

    def _partners(self, rows: NDArray[np.intp]) -> list[RowKey | None]:
        """Return the partner of each of some rows of truth, None where it has none."""
        partner = self.partner[rows]
        named = iter(self.predicted.named(partner[partner >= 0]))
        return [next(named) if there else None for there in (partner >= 0).tolist()]


_IMAGE: Final = ("image_id", "dataset", "split", "place")
"""What names an image of truth; listings are sorted so."""


def pair_rows(truth: Listing, predicted: Listing, of: str = "pred") -> Pairing:
    """Find the prediction of each row of truth; `of` is the option that the second listing is of.

    Raises:
        UsageError: a row of truth has more than one prediction, or an image two rows of truth.
        SegmillError: no row of truth has a prediction.
    """
    _check_single(truth)
    most = max(truth.rows, predicted.rows)
    partner: Rows = np.full(truth.rows, _NONE, np.int64)
    if most < 1 << 31:
        partner = partner.astype(np.int32)
    by_path = _match(partner, truth, predicted, truth.places(), predicted.places(), of)
    found = by_path
    for columns in (("split", "image_id"), ("image_id",)):
        if found < truth.rows and found < predicted.rows:
            hashes = (truth.hashes(*columns), predicted.hashes(*columns))
            found += _match(partner, truth, predicted, *hashes, of)
    if not found:
        raise SegmillError(_no_pair(truth, predicted, of))
    return Pairing(truth, predicted, partner, by_path, found - by_path)


def _check_single(truth: Listing) -> None:
    """Refuse two rows of one image and split: which of them is right, nobody can tell."""
    ids = truth.keys["image_id"]
    same = pc.equal(ids.slice(1), ids.slice(0, max(0, truth.rows - 1))).to_numpy()
    first = np.flatnonzero(same)
    table = truth.keys.select(_IMAGE)
    sides = (table.take(pa.array(rows)).to_pylist() for rows in (first, first + 1))
    twice = [row for row, *both in zip(first.tolist(), *sides, strict=True) if both[0] == both[1]]
    if twice:
        key = truth.key(twice[0])
        raise UsageError(
            f"{key.image_id}: the image has two rows in the truth (dataset {key.dataset!r}, "
            f"{len(twice)} such rows in all); choose one set with --where"
        )


def _match(
    partner: Rows,
    truth: Listing,
    predicted: Listing,
    mine: NDArray[np.int64],
    theirs: NDArray[np.int64],
    of: str,
) -> int:
    """Fill in partners of equal hash for rows without one; return how many were found."""
    rows = np.flatnonzero(~_taken(predicted, partner) & (theirs != 0)).astype(partner.dtype)
    rows = rows[np.argsort(theirs[rows], kind="stable").astype(partner.dtype)]
    hashes, found = theirs[rows], 0
    for start in range(0, truth.rows, _AT_ONCE):
        block = slice(start, start + _AT_ONCE)
        wanted = start + np.flatnonzero((partner[block] == _NONE) & (mine[block] != 0))
        first = np.searchsorted(hashes, mine[wanted], side="left")
        last = np.searchsorted(hashes, mine[wanted], side="right")
        if (last - first > 1).any():
            at = int(np.argmax(last - first > 1))
            raise _doubled(truth.key(int(wanted[at])), predicted, rows[first[at] : last[at]], of)
        hit = last > first
        partner[wanted[hit]] = rows[first[hit]]
        found += int(hit.sum())
    return found


def _taken(predicted: Listing, partner: Rows) -> NDArray[np.bool_]:
    """Return which predictions have a row of truth."""
    taken = np.zeros(predicted.rows, np.bool_)
    for start in range(0, len(partner), _AT_ONCE):
        block = partner[start : start + _AT_ONCE]
        taken[block[block >= 0]] = True
    return taken


def _doubled(image: RowKey, predicted: Listing, rows: Rows, of: str) -> UsageError:
    names = [predicted.key(int(r)) for r in rows[:2]]
    return UsageError(
        f"{image.image_id}: the image has {len(rows)} rows among {_NAMES[of]} "
        f"({names[0].dataset}/{names[0].image_id}, {names[1].dataset}/{names[1].image_id}); "
        f"choose one set with --{of}-where"
    )


def _no_pair(truth: Listing, predicted: Listing, of: str) -> str:
    if not truth.rows or not predicted.rows:
        which = "the truth" if not truth.rows else _NAMES[of]
        return f"no row of {which} is left to score; look at the stores and at the filter"
    return (
        f"no image of the truth ({truth.rows} rows, the first {truth.key(0).image_id!r}) is among "
        f"{_NAMES[of]} ({predicted.rows} rows, the first {predicted.key(0).image_id!r}): "
        f"neither paths nor ids agree"
    )
