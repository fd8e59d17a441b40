"""The scores of a block of images, each beside its sum: counted once, computed for all at a time.

Pairs of ids are counted image by image (`count_pairs`); everything after that - tallies, mIoU of
each image, keys - is done on the block's few thousand pairs together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from pipeline.metrics.shares import ratio
from pipeline.runs.keys import spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.label_space import LabelSpace
    from pipeline.metrics.confusion import Counts, Index
    from pipeline.metrics.pairing import Pair

IMAGE_SCHEMA: Final = pa.schema(
    [
        ("image_id", pa.string()),
        ("dataset", pa.string()),
        ("split", pa.string()),
        ("pixels", pa.int64()),
        ("void", pa.int64()),
        ("correct", pa.int64()),
        ("pixel_accuracy", pa.float64()),
        ("miou", pa.float64()),
        ("coverage", pa.float64()),
        ("classes", pa.int32()),
        ("worst_class", pa.string()),
    ]
)
"""A row of `per_image.parquet`; `miou` is the mean over the classes in this image's truth or
prediction, `worst_class` the one with the most wrong pixels. Shares of nothing are nan."""


@dataclass(slots=True)
class Counted:
    """The counted pairs of some images, one list entry an image: class positions and pixels."""

    rows: list[Index] = field(default_factory=list)
    columns: list[Index] = field(default_factory=list)
    counts: list[Counts] = field(default_factory=list)
    entries: int = 0
    """How many pairs of classes they hold together."""

    def add(self, rows: Index, columns: Index, counts: Counts) -> None:
        """Add an image."""
        self.rows.append(rows)
        self.columns.append(columns)
        self.counts.append(counts)
        self.entries += len(counts)

    def flat(self) -> FlatPairs:
        """Return all pairs in one row, each with the number of its image."""
        lengths = [len(c) for c in self.counts]
        none = np.empty(0, np.int64)
        return FlatPairs(
            len(lengths),
            np.repeat(np.arange(len(lengths)), lengths),
            *(np.concatenate([none, *part]) for part in (self.rows, self.columns, self.counts)),
        )


@dataclass(frozen=True, slots=True, eq=False)
class FlatPairs:
    """The pairs of several images: four arrays of one length; negative positions are no class."""

    images: int
    image: Index
    row: Index
    column: Index
    counts: Counts

    def tallies(self, classes: int) -> Counts:
        """Return the tally of each image: int64 [n, 3, C], pixels of void truth left out."""
        scored = self.row >= 0
        return np.stack(
            [
                self._sums(self.row, scored & (self.row == self.column), classes),
                self._sums(self.row, scored, classes),
                self._sums(self.column, scored & (self.column >= 0), classes),
            ],
            axis=1,
        )

    def changes(self, classes: int) -> Counts:
        """Return the pixels of each class in both, only in the second, only in the first map.

        int64 [n, 3, C + 1]; the last column is "no label".
        """
        row = np.where(self.row < 0, classes, self.row)
        column = np.where(self.column < 0, classes, self.column)
        same = row == column
        kept = self._sums(row, same, classes + 1)
        gained, lost = (self._sums(p, ~same, classes + 1) for p in (column, row))
        return np.stack([kept, gained, lost], axis=1)

    def totals(self) -> Counts:
        """Return the pixels of each image, [n]."""
        return np.bincount(self.image, self.counts, self.images).astype(np.int64)

    def _sums(self, position: Index, where: NDArray[np.bool_], classes: int) -> Counts:
        """Sum counts by image and class: [n, C]."""
        codes = self.image[where] * classes + position[where]
        # float64 adds counts exactly up to 2**53 pixels.
        sums = np.bincount(codes, self.counts[where], self.images * classes)
        return sums.astype(np.int64).reshape(self.images, classes)


def image_rows(
    pairs: Sequence[Pair],
    tallies: Counts,
    totals: Counts,
    space: LabelSpace,
    further: Sequence[pa.Field] = (),
    figures: Sequence[dict[str, Any]] = (),
) -> pa.RecordBatch:
    """Return the images' rows of `IMAGE_SCHEMA`, and the measures' further columns."""
    right, truth, predicted = tallies[:, 0], tallies[:, 1], tallies[:, 2]
    union = truth + predicted - right
    wrong = union - right
    present = union > 0
    pixels, correct, classes = truth.sum(1), right.sum(1), present.sum(1)
    iou = np.divide(right, union, out=np.zeros(union.shape), where=present)
    names = pa.array([*space.class_names, ""])
    worst = np.where(wrong.any(1), np.argmax(wrong, 1), len(names) - 1)
    columns = [
        pa.array([p.truth.image_id for p in pairs], pa.string()),
        pa.array([p.truth.dataset for p in pairs], pa.string()),
        pa.array([p.split for p in pairs], pa.string()),
        pixels,
        totals - pixels,
        correct,
        ratio(correct, pixels),
        ratio(iou.sum(1), classes),
        ratio(predicted.sum(1), pixels),
        classes.astype(np.int32),
        names.take(pa.array(worst)),
        *(pa.array([f.get(c.name) for f in figures], c.type) for c in further),
    ]
    return pa.RecordBatch.from_arrays(list(map(pa.array, columns)), schema=image_schema(further))


def image_schema(further: Sequence[pa.Field]) -> pa.Schema:
    """Return the schema of the images' rows with the measures' columns."""
    return pa.schema([*IMAGE_SCHEMA, *further])


def image_keys(pairs: Sequence[Pair]) -> NDArray[np.uint64]:
    """Return 64 bits for each image, evenly spread: of its dataset, split and image_id alone."""
    texts = ["\0".join((p.truth.dataset, p.split, p.truth.image_id)) for p in pairs]
    return spread(pa.array(texts, pa.string()), "resampling")
