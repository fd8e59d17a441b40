"""Which rows of a store an epoch shows, and in which order: by numbers alone, nothing is read.

The rows are cut into parts that are read together. An epoch draws the order of the parts and of the
rows in each; every rank takes an even cut of that; a window of some parts is mixed once more. The
same seed and epoch give the same order, whoever asks and however many processes read.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.tables.fragment import ROW_GROUP_BYTES
from pipeline.tables.rows import KEY_COLUMNS, row_keys

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow.compute as pc
    from numpy.typing import NDArray

    from pipeline.store import Store
    from pipeline.tables.fragment import Fragment

    Numbers = NDArray[np.int32]

WINDOW_BYTES: Final = 4 * ROW_GROUP_BYTES
"""What is mixed at once: four row groups from anywhere in the store."""
_SCAN_ROWS: Final = 16384
_PARTS, _ROWS, _WINDOW = range(3)
"""What sets the random numbers apart."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Rows of one fragment by their numbers in it, ascending, and about their bytes."""

    fragment: Fragment
    rows: Numbers
    size: int


@dataclass(frozen=True, slots=True)
class Draw:
    """What an epoch's order depends on.

    `even` gives all ranks the same number of rows: up to `world` - 1, others in each epoch, are
    left out.
    """

    seed: int = 0
    epoch: int = 0
    rank: int = 0
    world: int = 1
    shuffle: bool = True
    even: bool = False

    def share(self, total: int) -> tuple[int, int]:
        """Return the rank's first position among the epoch's rows, and the end of its share."""
        if self.even:
            each = total // self.world
            return self.rank * each, (self.rank + 1) * each
        return total * self.rank // self.world, total * (self.rank + 1) // self.world

    def rng(self, *purpose: int) -> np.random.Generator:
        """Return random numbers for one purpose."""
        return np.random.default_rng((self.seed, self.epoch, *purpose))


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Rows that are read and mixed together: row i is number `rows[i]` of `pieces[source[i]]`.

    `start` is the position of the first one in the rank's share.
    """

    start: int
    pieces: tuple[Fragment, ...]
    source: Numbers
    rows: Numbers

    def read(
        self, store: Store, wanted: Sequence[int] | NDArray[np.int64], columns: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Return columns of the rows at some places of the window, in Arrow's Python form."""
        out: dict[int, dict[str, Any]] = {}
        places = np.asarray(wanted, np.int64)
        for piece in np.unique(self.source[places]):
            mine = places[self.source[places] == piece]
            mine = mine[np.argsort(self.rows[mine])]
            numbers = self.rows[mine]
            span = int(numbers[0]), int(numbers[-1]) + 1
            for first, table in store.slices(self.pieces[piece], columns, *span):
                low, high = np.searchsorted(numbers, [first, first + table.num_rows])
                found = table.take(numbers[low:high] - first).to_pylist()
                out |= dict(zip(mine[low:high].tolist(), found, strict=True))
        return [out[place] for place in places.tolist()]


def parts_of(
    store: Store, where: pc.Expression | str | None = None, *, masked: bool = True
) -> list[Part]:
    """Return the rows that meet a condition, and have a mask if asked, cut to be read together.

    Only narrow columns are read, and none at all where every row counts. Four bytes a row.
    """
    out: list[Part] = []
    for fragment, rows in _selected(store, where, masked=masked):
        each = max(1, fragment.size // max(1, fragment.rows))
        most = max(1, ROW_GROUP_BYTES // each)
        for at in range(0, len(rows), most):
            cut = rows[at : at + most]
            out.append(Part(fragment, cut, each * len(cut)))
    return out


def _selected(
    store: Store, where: pc.Expression | str | None, *, masked: bool
) -> Iterator[tuple[Fragment, Numbers]]:
    fragments = store.fragments()
    if where is None and not masked:
        yield from ((f, np.arange(f.rows, dtype=np.int32)) for f in fragments)
        return
    asked = None if where is None else _keys(store, where)
    names = ([] if asked is None else list(KEY_COLUMNS)) + (["classes.id"] if masked else [])
    by_path = {f.path: f for f in fragments}
    batches = store.scan_fragments(names, _SCAN_ROWS)
    for path, group in groupby(batches, lambda pair: pair[0]):
        kept = []
        for _, batch in group:
            keep = np.ones(batch.num_rows, np.bool_)
            if masked:  # a row without a mask has no counts of classes
                keep &= batch["classes.id"].is_valid().to_numpy(zero_copy_only=False)
            if asked is not None:
                keep &= _among(row_keys(batch), asked)
            kept.append(keep)
        yield by_path[path], np.flatnonzero(np.concatenate(kept)).astype(np.int32)


def _keys(store: Store, where: pc.Expression | str) -> NDArray[np.uint64]:
    """Return the keys of the rows that meet a condition, sorted; the engine tells no row numbers.

    Eight bytes a row, while the rows are chosen.
    """
    found = [row_keys(batch) for batch in store.scan(list(KEY_COLUMNS), where, _SCAN_ROWS)]
    keys = np.concatenate([np.empty(0, np.uint64), *found])
    keys.sort()
    return keys


def _among(keys: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Tell which keys are among sorted ones; NumPy's own `isin` sorts these again each time."""
    if not len(known):
        return np.zeros(len(keys), np.bool_)
    places = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    found: NDArray[np.bool_] = known[places] == keys
    return found


def windows(parts: Sequence[Part], draw: Draw, most: int) -> Iterator[Window]:
    """Yield a rank's share of an epoch, some `most` bytes of rows at a time."""
    low, high = draw.share(sum(len(part.rows) for part in parts))
    order = draw.rng(_PARTS).permutation(len(parts)) if draw.shuffle else range(len(parts))
    held: list[tuple[Fragment, Numbers]] = []
    at = start = size = 0
    for number in map(int, order):
        part = parts[number]
        first, last = max(low - at, 0), min(high - at, len(part.rows))
        at += len(part.rows)
        if first >= last:
            continue
        mixed = draw.rng(_ROWS, number).permutation(part.rows) if draw.shuffle else part.rows
        held.append((part.fragment, mixed[first:last]))
        size += part.size * (last - first) // len(part.rows)
        if size >= most:
            yield _window(start, held, draw)
            start += sum(len(rows) for _, rows in held)
            held, size = [], 0
    if held:
        yield _window(start, held, draw)


def _window(start: int, held: list[tuple[Fragment, Numbers]], draw: Draw) -> Window:
    lengths = [len(rows) for _, rows in held]
    source = np.repeat(np.arange(len(held), dtype=np.int32), lengths)
    rows = np.concatenate([rows for _, rows in held])
    if draw.shuffle:
        mixed = draw.rng(_WINDOW, draw.rank, start).permutation(len(rows))
        source, rows = source[mixed], rows[mixed]
    return Window(start, tuple(fragment for fragment, _ in held), source, rows)
