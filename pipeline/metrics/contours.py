"""Contour pixels of label maps, and which of them have one of the same class near by.

Classes are bits of a byte, so that one map of bytes holds the contours of eight classes and is
spread for all of them at once; a disk is a stack of rows, each spread to the disk's width there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pipeline.metrics.confusion import Index, LabelMap

    Bits: TypeAlias = NDArray[np.uint8]

_BITS: Final = 8  # wider words hold more classes, but their maps leave a core's cache
_BLOCK: Final = 1 << 18  # pixels of a map that is spread at a time, for the same reason


@dataclass(frozen=True, slots=True, eq=False)
class Contour:
    """Contour pixels: their places in the flattened map, ascending, and their labels."""

    places: Index
    labels: Index

    @classmethod
    def of(cls, labels: LabelMap, edge: NDArray[np.bool_], classes: int) -> Self:
        """Return the pixels of a class (labels below `classes`) that lie on an edge."""
        places = np.flatnonzero(edge & (labels < classes))
        return cls(places, labels.ravel()[places].astype(np.intp))


def matched(
    contour: Contour, other: Contour, shape: tuple[int, ...], tolerance: float
) -> NDArray[np.bool_]:
    """Return for each pixel whether the other contour has one of its class within `tolerance`.

    Distance is straight (Euclidean), between centres of pixels; `tolerance` itself is near enough.
    """
    hit = np.zeros(len(contour.places), np.bool_)
    counts = np.bincount(contour.labels), np.bincount(other.labels)
    classes = min(map(len, counts))
    shared = np.flatnonzero((counts[0][:classes] > 0) & (counts[1][:classes] > 0))
    square = math.floor(tolerance * tolerance)
    for start in range(0, len(shared), _BITS):
        group = shared[start : start + _BITS]
        bits = np.zeros(max(map(len, counts)), np.uint8)
        bits[group] = 1 << np.arange(len(group))
        wanted, given = bits[contour.labels], bits[other.labels]
        at, by = np.flatnonzero(wanted != 0), np.flatnonzero(given != 0)
        near = _spread_bits(other.places[by], given[by], contour.places[at], shape, square)
        hit[at] = (near & wanted[at]) != 0
    return hit


def _spread_bits(
    places: Index, bits: Bits, asked: Index, shape: tuple[int, ...], square: int
) -> Bits:
    """Return the bits that are given within a distance, whose square is `square`, of each place."""
    height, width = shape
    reach = min(math.isqrt(square), height - 1)  # farther than the image is high there is nothing
    rows = max(1, 4 * reach, _BLOCK // width)
    found = np.zeros(len(asked), np.uint8)
    for top in range(0, height, rows):
        first = (top - reach) * width
        mine = slice(*np.searchsorted(asked, (top * width, (top + rows) * width)))
        near = slice(*np.searchsorted(places, (first, (top + rows + reach) * width)))
        if mine.start == mine.stop or near.start == near.stop:
            continue
        grid = np.zeros((rows + 2 * reach, width), np.uint8)
        grid.reshape(-1)[places[near] - first] = bits[near]
        seen, at = found[mine], asked[mine] - first
        for step, spread in _rows(grid, square, reach):
            row = spread.reshape(-1)
            seen |= row.take(at + step * width)
            if step:
                seen |= row.take(at - step * width)
    return found


def _rows(grid: Bits, square: int, reach: int) -> Iterator[tuple[int, Bits]]:
    """Yield a disk's rows from the outermost in: how far off, and the grid spread to its width."""
    spread, most = 0, grid.shape[1] - 1
    half = np.empty_like(grid)
    for step in range(reach, -1, -1):
        target = min(math.isqrt(square - step * step), most)
        while spread < target:
            # No gaps: each bit is spread over spread + 1 pixels at least, at the image's border.
            by = min(target - spread, spread + 1)
            half[:, :by] = grid[:, :by]
            np.bitwise_or(grid[:, by:], grid[:, :-by], out=half[:, by:])
            grid[:, -by:] = half[:, -by:]
            np.bitwise_or(half[:, :-by], half[:, by:], out=grid[:, :-by])
            spread += by
        yield step, grid
