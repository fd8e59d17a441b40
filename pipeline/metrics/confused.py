"""The images in which one class was most often taken for another: a few for each pair of classes.

A page shows them beside the confusion matrix. They are gathered from pairs that were counted
already, so that an image costs some microseconds and no pass over its pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.metrics.confusion import Counts, Index
    from pipeline.metrics.pairing import Pair

EACH: Final = 3
"""Images that are kept of a pair of classes."""
MOST: Final = 2048
"""Entries that are kept of all pairs of classes together; those of the most pixels."""


class Confusion(NamedTuple):
    """Pixels of one image whose truth is one class and whose prediction is another."""

    truth: int
    """The position of the class among those that are scored."""
    predicted: int
    pixels: int
    pair: Pair


@dataclass(slots=True)
class Confused:
    """The entries of the most pixels, at most `EACH` of a pair of classes and `MOST` in all.

    Parts merge to exactly what the whole would hold, in any order: an entry that is among the first
    of all is among the first of its part. Entries of equal pixels rank by class, then by image.
    """

    each: int = EACH
    most: int = MOST
    entries: list[Confusion] = field(default_factory=list)

    def update(
        self, pairs: Sequence[Pair], image: Index, row: Index, column: Index, counts: Counts
    ) -> None:
        """Add counted pixels of some images: four arrays of one length.

        `image` is a place in `pairs`, `row` and `column` are class positions of truth and
        prediction, negative for none; each (image, row, column) may occur several times.
        """
        wrong = (row >= 0) & (column >= 0) & (row != column) & (counts > 0)
        image, row, column, counts = image[wrong], row[wrong], column[wrong], counts[wrong]
        if not len(image):
            return
        classes = 1 + int(max(row.max(), column.max()))
        codes, where = np.unique((row * classes + column) * len(pairs) + image, return_inverse=True)
        pixels = np.bincount(where, counts).astype(np.int64)
        kinds, images = np.divmod(codes, len(pairs))
        kept = self._first(kinds, pixels, images, pairs)
        found = zip(
            *(a[kept].tolist() for a in (kinds // classes, kinds % classes, pixels, images)),
            strict=True,
        )
        self._keep([Confusion(i, j, n, pairs[k]) for i, j, n, k in found])

    def _first(self, kinds: Index, pixels: Counts, images: Index, pairs: Sequence[Pair]) -> Index:
        """Return the places of the entries that may stay: the first of their kind."""
        order = np.lexsort((-pixels, kinds))
        starts, within = _runs(kinds[order])
        # Sorting images by name is dear: only those need it that may be among the first.
        last = np.minimum(starts + self.each, np.append(starts[1:], len(order))) - 1
        least = np.repeat(pixels[order[last]], np.diff(np.append(starts, len(order))))
        order = order[(within < self.each) | (pixels[order] == least)]
        held = np.unique(images[order]).tolist()
        rank = np.empty(len(pairs), np.int64)
        rank[sorted(held, key=lambda k: pairs[k])] = np.arange(len(held))
        order = order[np.lexsort((rank[images[order]], -pixels[order], kinds[order]))]
        kept: Index = order[_runs(kinds[order])[1] < self.each]
        return kept

    def merge(self, other: Self) -> None:
        """Add what another worker found."""
        self._keep(other.entries)

    def _keep(self, more: Sequence[Confusion]) -> None:
        held: dict[tuple[int, int], int] = {}
        kept = []
        for entry in sorted([*self.entries, *more], key=lambda e: (-e.pixels, e)):
            kind = entry.truth, entry.predicted
            held[kind] = held.get(kind, 0) + 1
            if held[kind] <= self.each:
                kept.append(entry)
            if len(kept) == self.most:
                break
        self.entries = kept

    def of(self, truth: int, predicted: int) -> list[Confusion]:
        """Return the entries of a pair of classes, most pixels first."""
        return [e for e in self.entries if (e.truth, e.predicted) == (truth, predicted)]


def _runs(kinds: Index) -> tuple[Index, Index]:
    """Return where each run of equal kinds begins, and each entry's place in its run."""
    starts = np.flatnonzero(np.diff(kinds, prepend=-1))
    lengths = np.diff(starts, append=len(kinds))
    return starts, np.arange(len(kinds)) - np.repeat(starts, lengths)
