"""Sums and rows that are the same in whatever order the parts of a data set come in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray


class ExactSums:
    """Sums of doubles that no order of adding changes: kept as whole numbers, rounded once.

    >>> sums = ExactSums(1)
    >>> for x in (0.1, 1e17, 0.2, -1e17):
    ...     sums.add(0, x)
    >>> sums.values().tolist()
    [0.30000000000000004]
    """

    __slots__ = ("_sums",)

    def __init__(self, size: int) -> None:
        self._sums: list[tuple[int, int]] = [(0, 0)] * size  # numerator, power of two below

    def add(self, place: int, value: float) -> None:
        """Add a finite number to one of the sums."""
        part, whole = value.as_integer_ratio()
        self._join(place, part, whole.bit_length() - 1)

    def _join(self, place: int, part: int, power: int) -> None:
        held, below = self._sums[place]
        if power > below:
            held, below = held << (power - below), power
        self._sums[place] = held + (part << (below - power)), below

    def merge(self, other: ExactSums) -> None:
        """Add what another has summed up."""
        for place, (part, power) in enumerate(other._sums):
            self._join(place, part, power)

    def values(self) -> NDArray[np.float64]:
        """Return the sums, each the double nearest to the true one."""
        return np.array([part / (1 << power) for part, power in self._sums], dtype=np.float64)


class RowStack:
    """Rows of one structured type, put together when they are asked for or sent away."""

    __slots__ = ("_kind", "_parts")

    def __init__(self, kind: np.dtype[Any], parts: Iterable[NDArray[Any]] = ()) -> None:
        self._kind, self._parts = kind, list(parts)

    def add(self, rows: NDArray[Any]) -> None:
        """Put rows at the end."""
        if len(rows):
            self._parts.append(rows)

    def whole(self) -> NDArray[Any]:
        """Return all rows."""
        if len(self._parts) != 1:
            self._parts = [np.concatenate([np.empty(0, self._kind), *self._parts])]
        return self._parts[0]

    def merge(self, other: RowStack) -> None:
        """Put another's rows at the end."""
        self.add(other.whole())

    def __reduce__(self) -> tuple[Any, ...]:
        return RowStack, (self._kind, [self.whole()])
