"""Contour pixels of label maps, and which of them have one of the same class near by.

Classes are bits of a word, so that one map of words holds the contours of up to 64 classes and is
spread for all of them at once; a disk is a stack of rows, each spread to the disk's width there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pipeline.metrics.confusion import Index, LabelMap

    Words: TypeAlias = NDArray[np.unsignedinteger[Any]]

_WORDS: Final = (np.uint8, np.uint16, np.uint32, np.uint64)


@dataclass(frozen=True, slots=True, eq=False)
class Contour:
    """Contour pixels: their places in the flattened map, ascending, and their labels."""

    places: Index
    labels: LabelMap

    @classmethod
    def of(cls, labels: LabelMap, edge: NDArray[np.bool_], classes: int) -> Self:
        """Return the pixels of a class (labels below `classes`) that lie on an edge."""
        places = np.flatnonzero(edge & (labels < classes))
        return cls(places, labels.ravel()[places])


def matched(
    contour: Contour, other: Contour, shape: tuple[int, ...], tolerance: float
) -> NDArray[np.bool_]:
    """Return for each pixel whether the other contour has one of its class within `tolerance`.

    Distance is straight (Euclidean), between centres of pixels; `tolerance` itself is near enough.
    """
    hit = np.zeros(len(contour.places), np.bool_)
    shared = np.intersect1d(_values(contour.labels), _values(other.labels))
    for start in range(0, len(shared), 64):
        group = shared[start : start + 64]
        word = next(w for w in _WORDS if len(group) <= 8 * np.dtype(w).itemsize)
        bits: Words = np.zeros(1 + int(shared[-1]), word)
        bits[group] = np.left_shift(word(1), np.arange(len(group), dtype=word))
        mine, theirs = _members(contour, bits), _members(other, bits)
        hit[mine] = _near(
            (contour.places[mine], bits[contour.labels[mine]]),
            (other.places[theirs], bits[other.labels[theirs]]),
            shape,
            math.floor(tolerance * tolerance),
        )
    return hit


def _values(labels: LabelMap) -> Index:
    return np.flatnonzero(np.bincount(labels))


def _members(contour: Contour, bits: Words) -> Index:
    """Return which pixels of the contour are of a class that has a bit."""
    known = contour.labels < len(bits)
    labels = np.where(known, contour.labels, 0)
    return np.flatnonzero(known & (bits[labels] != 0))


def _near(
    wanted: tuple[Index, Words],
    given: tuple[Index, Words],
    shape: tuple[int, ...],
    square: int,
) -> NDArray[np.bool_]:
    """Return which wanted bits are given within a distance whose square is at most `square`."""
    height, width = shape
    # Farther than the image is wide or high there is nothing.
    reach = min(math.isqrt(square), height - 1)
    grid: Words = np.zeros((height + 2 * reach, width), given[1].dtype)
    words = grid.reshape(-1)
    words[given[0] + reach * width] = given[1]
    places, bits = wanted[0] + reach * width, wanted[1]
    open_ = np.flatnonzero((words[places] & bits) == 0)
    places, bits = places[open_], bits[open_]
    for step in _rows(grid, square, reach):
        seen = (words[places + step * width] | words[places - step * width]) & bits
        left = np.flatnonzero(seen == 0)
        open_, places, bits = open_[left], places[left], bits[left]
    hit = np.ones(len(wanted[0]), np.bool_)
    hit[open_] = False
    return hit


def _rows(grid: Words, square: int, reach: int) -> Iterator[int]:
    """Yield a disk's rows from the outermost in, with the grid spread to the row's width."""
    spread, most = 0, grid.shape[1] - 1
    for step in range(reach, -1, -1):
        target = min(math.isqrt(square - step * step), most)
        while spread < target:
            # No gaps: each place is spread over 2 * spread + 1 pixels already.
            by = min(target - spread, 2 * spread + 1)
            grid[:, by:] |= grid[:, :-by]
            grid[:, :-by] |= grid[:, by:]
            spread += by
        yield step
