"""Regions of a map of numbers: areas, boxes and run lengths of all of them from one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.instances import _box, _pack

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Runs = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Regions:
    """A map [H, W] of whole numbers cut into one region for each number, in one pass.

    `numbers` are those that occur, ascending; a region is known by its place among them. Unlike a
    comparison for each number, this costs the same for two regions as for two hundred.
    """

    height: int
    width: int
    numbers: NDArray[Any]
    areas: Runs
    _edges: Runs  # first pixel of each run, column-major, and the end of the last
    _places: Runs  # the region of each run
    _order: Runs  # the runs sorted by region
    _firsts: Runs  # where each region's runs begin in `_order`

    @classmethod
    def of(cls, numbers: NDArray[np.integer[Any]]) -> Regions:
        """Cut a map of numbers."""
        flat = np.ascontiguousarray(numbers.T).ravel()
        edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        edges = np.concatenate(([0], edges, [len(flat)]))
        found, places = np.unique(flat[edges[:-1]], return_inverse=True)
        places = places.reshape(-1)
        areas = np.zeros(len(found), dtype=np.int64)
        np.add.at(areas, places, np.diff(edges))
        order = np.argsort(places, kind="stable")
        firsts = np.searchsorted(places[order], np.arange(len(found) + 1))
        height, width = numbers.shape
        return cls(height, width, found, areas, edges, places, order, firsts)

    def _runs(self, place: int) -> Runs:
        mine = self._order[self._firsts[place] : self._firsts[place + 1]]
        edges = np.stack((self._edges[mine], self._edges[mine + 1]), axis=1).ravel()
        runs: Runs = np.diff(edges, prepend=0, append=self._edges[-1])
        return runs[:-1] if runs[-1] == 0 else runs

    def bbox(self, place: int) -> tuple[float, float, float, float]:
        """Return a region's box (x, y, w, h) in pixels."""
        return _box(self._runs(place), self.height)

    def rle(self, place: int) -> str:
        """Return a region's compressed run lengths."""
        return _pack(self._runs(place))

    def paint(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the map [H, W] in which every region has its value in `values`, by place."""
        flat = np.repeat(values[self._places], np.diff(self._edges))
        return np.ascontiguousarray(flat.reshape(self.width, self.height).T)
