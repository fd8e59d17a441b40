"""Sorted keys of any number: in memory while they are few, else in temporary files.

A pile collects rows of 64-bit numbers and gives them back sorted, in parts of which each fits into
memory; an index answers which rows have a key. What is in files is mapped, not held: the system
keeps what it has memory for. They lie in TMPDIR, take 64 bytes a key, and have no name there: they
go with the process, however it ends.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from itertools import pairwise
from typing import IO, TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Numbers = NDArray[np.uint64]

HELD_ROWS: Final = 1 << 22
"""Rows that a pile holds in memory: 128 MiB of keys with their labels and homes."""
_PARTS: Final = 256
_EDGES: Final = np.arange(1, _PARTS, dtype=np.uint64) << np.uint64(56)


@dataclass(slots=True)
class _Chunk:
    """Sorted rows in the file: where they begin, and where in them each part does."""

    start: int
    edges: tuple[int, ...]


@dataclass(slots=True)
class KeyPile:
    """Rows of `columns` uint64 numbers, of which the first, evenly spread, is sorted by."""

    columns: int
    rows: int = 0
    _held: list[Numbers] = field(default_factory=list)
    _held_rows: int = 0
    _chunks: list[_Chunk] = field(default_factory=list)
    _file: IO[bytes] | None = None

    @property
    def spilled(self) -> bool:
        """Whether rows are in a file."""
        return self._file is not None

    def add(self, *columns: Numbers) -> None:
        """Take more rows, by column."""
        self._held.append(np.stack(columns, axis=1))
        self.rows += len(columns[0])
        self._held_rows += len(columns[0])
        if self._held_rows >= HELD_ROWS:
            self._spill()

    def parts(self) -> Iterator[Numbers]:
        """Yield the rows, uint64 [n, columns], sorted within a part and from part to part."""
        if self._file is None:
            yield self._sorted()
            return
        if self._held_rows:
            self._spill()
        for number in range(_PARTS):
            pieces = [self._read(chunk, number) for chunk in self._chunks]
            yield _in_order(np.concatenate(pieces))

    def _sorted(self) -> Numbers:
        rows = np.concatenate([np.empty((0, self.columns), np.uint64), *self._held])
        self._held = [rows]
        return _in_order(rows)

    def _spill(self) -> None:
        rows = self._sorted()
        self._held, self._held_rows = [], 0
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="segmill-keys-")  # noqa: SIM115 - as long as the pile
        edges = (0, *np.searchsorted(rows[:, 0], _EDGES).tolist(), len(rows))
        self._chunks.append(_Chunk(self._file.seek(0, 2), edges))
        self._file.write(rows.data)

    def _read(self, chunk: _Chunk, part: int) -> Numbers:
        assert self._file is not None
        size = 8 * self.columns
        low, high = chunk.edges[part : part + 2]
        self._file.seek(chunk.start + low * size)
        data = self._file.read((high - low) * size)
        return np.frombuffer(data, np.uint64).reshape(-1, self.columns)


def _in_order(rows: Numbers) -> Numbers:
    return np.asarray(rows[np.argsort(rows[:, 0])])


@dataclass(frozen=True, slots=True)
class Index:
    """Rows sorted by key: uint64 [n] each; `home` numbers the fragment that holds the row."""

    high: Numbers
    low: Numbers
    label: Numbers
    home: Numbers

    @classmethod
    def of(cls, pile: KeyPile) -> Index:
        """Sort a pile of (high, low, label, home)."""
        columns: Numbers = np.empty((4, 0 if pile.spilled else pile.rows), np.uint64)
        if pile.spilled:
            file = tempfile.TemporaryFile(prefix="segmill-index-")  # noqa: SIM115 - mapped
            columns = np.memmap(file, np.uint64, "w+", shape=(4, pile.rows))
        at = 0
        for part in pile.parts():
            columns[:, at : at + len(part)] = part.T
            at += len(part)
        return cls(*columns)

    def hits(self, high: Numbers, low: Numbers) -> Iterator[tuple[NDArray[np.intp], ...]]:
        """Yield pairs (number of the key asked for, number of a row that has it)."""
        asked = np.argsort(high)
        at = np.searchsorted(self.high, high[asked])
        while asked.size:
            there = at < self.high.size
            asked, at = asked[there], at[there]
            near = self.high[at] == high[asked]
            asked, at = asked[near], at[near]
            equal = self.low[at] == low[asked]
            if equal.any():
                yield asked[equal], at[equal]
            at = at + 1


def joined(parts: Sequence[Index], alive: NDArray[np.bool_]) -> Index:
    """Return the rows of several indexes whose home is alive as one."""
    pile = KeyPile(4)
    for part in parts:
        edges = [*range(0, part.high.size, HELD_ROWS // 4), part.high.size]
        for low, high in pairwise(edges):
            kept = alive[part.home[low:high]]
            pile.add(*(c[low:high][kept] for c in (part.high, part.low, part.label, part.home)))
    return Index.of(pile)
