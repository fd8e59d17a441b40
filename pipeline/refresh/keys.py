"""Which images a store holds and a bucket lists: some tens of bytes each, millions at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.runs.keys import row_numbers, text_numbers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.store import Store

    Numbers = NDArray[np.uint64]
    Places = NDArray[np.int64]

_SCAN_ROWS: Final = 65536
COLUMNS: Final = (
    "dataset", "image.path", "fingerprint", "provenance.model_digest", "provenance.kind",
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """Numbers to look others up in: 64 bits, sorted, with 64 more that must agree as well.

    Two that agree in the first 64 alone may be missed, with a chance of 10^-5 among ten million:
    then an image is taken for changed, and labelled once more.
    """

    first: Numbers
    second: Numbers
    order: Places
    """The place of each before they were sorted."""

    @classmethod
    def of(cls, first: Numbers, second: Numbers) -> Column:
        """Sort numbers."""
        order = np.argsort(first, kind="stable")
        return cls(first[order], second[order], order)

    def find(self, first: Numbers, second: Numbers) -> Places:
        """Return the place of each pair, -1 where it is not there."""
        if not len(self.first):
            return np.full(len(first), -1, np.int64)
        at = np.minimum(np.searchsorted(self.first, first), len(self.first) - 1)
        there = (self.first[at] == first) & (self.second[at] == second)
        return np.where(there, self.order[at], -1)


@dataclass(slots=True, eq=False)
class Rows:
    """The rows of a store that a model labelled: who they are, and where they lie."""

    high: Numbers
    low: Numbers
    fingerprint: Numbers
    digest: Numbers
    """Of what labelled the row."""
    fragment: NDArray[np.int32]
    row: NDArray[np.int32]
    paths: list[str]
    """The fragments' paths."""
    truth: Numbers
    """Of the paths of images that people labelled."""
    by_row: Column = field(init=False)

    def __post_init__(self) -> None:
        self.by_row = Column.of(self.high, self.low)

    @classmethod
    def of(cls, store: Store | None) -> Rows:
        """Read the rows' names; no mask is read."""
        parts: list[list[Any]] = [[] for _ in range(6)]
        numbers: dict[str, int] = {}
        seen: dict[str, int] = {}
        truth = [np.zeros(0, np.uint64)]
        batches = () if store is None else store.scan_fragments(COLUMNS, _SCAN_ROWS)
        for path, batch in batches:
            number, first = numbers.setdefault(path, len(numbers)), seen.get(path, 0)
            seen[path] = first + batch.num_rows
            by_people = _is_truth(batch)
            found = read_keys(batch)
            places = np.arange(first, first + batch.num_rows, dtype=np.int32)
            home = np.full(batch.num_rows, number, np.int32)
            for part, values in zip(parts, (*found, home, places), strict=True):
                part.append(values[~by_people])
            truth.append(text_numbers(_text(batch["image.path"]))[by_people])
        names = [_joined(part, np.uint64) for part in parts[:4]]
        homes = [_joined(part, np.int32) for part in parts[4:]]
        return cls(
            names[0], names[1], names[2], names[3], homes[0], homes[1], list(numbers),
            np.concatenate(truth),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.high)


def _joined(parts: list[Any], kind: Any) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros(0, kind)


def _is_truth(batch: pa.RecordBatch) -> NDArray[np.bool_]:
    found = pc.equal(_text(batch["provenance.kind"]), "truth")
    return np.asarray(found.to_numpy(zero_copy_only=False), np.bool_)


def read_keys(batch: pa.RecordBatch) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """Return both numbers of each row, its fingerprint's and its labeller's, of `COLUMNS`."""
    dataset, path, fingerprint, digest = (_text(batch[name]) for name in COLUMNS[:4])
    return *row_numbers(dataset, path), text_numbers(fingerprint), text_numbers(digest)


def _text(column: pa.Array) -> pa.Array:
    return pc.fill_null(column.cast(pa.string()), "")


def number_of(text: str) -> np.uint64:
    """Return the number of one text, as the columns have it."""
    return np.uint64(text_numbers(pa.array([text], pa.string()))[0])


def truth_paths(store: Store) -> Numbers:
    """Return numbers of the images' paths in a store of truth, sorted."""
    found = [np.zeros(0, np.uint64)]
    for _, batch in store.scan_fragments(["image.path"], _SCAN_ROWS):
        paths = _text(batch["image.path"])
        found.append(text_numbers(paths.filter(pc.not_equal(paths, ""))))
    return np.unique(np.concatenate(found))


@dataclass(frozen=True, slots=True, eq=False)
class Listed:
    """The images of a listing; the same image may be there twice."""

    high: Numbers
    low: Numbers
    fingerprint: Numbers

    @classmethod
    def of(cls, batch: pa.RecordBatch) -> Listed:
        """Name the images of a batch of samples (`pipeline.samples`)."""
        high, low = row_numbers(batch["dataset"], batch["path"])
        return cls(high, low, text_numbers(batch["fingerprint"]))

    @classmethod
    def joined(cls, parts: list[Listed]) -> Listed:
        """Return the images of some listings as one."""
        none = np.zeros(0, np.uint64)
        columns = ([getattr(p, n) for p in parts] for n in cls.__slots__)
        return cls(*(np.concatenate([none, *column]) for column in columns))
