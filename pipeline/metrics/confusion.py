"""The confusion matrix of a label map against its truth, and the scores that follow from it.

Pixels are counted once, by pair of ids (`count_pairs`); what an id means - a class, void, a class
of another label space - is a look-up on the few hundred pairs that occur, never on pixels.

Rows are truth, columns are predictions. Void truth is left out altogether. A prediction of void, or
of an id that the target label space has no class for, is a pixel that the labeller gave no label
though truth has one: it counts as an error in a last column of its own ("no label"), as
cityscapesScripts counts it, and `coverage` says how much of the truth was given a label at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final, TypeAlias, cast

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from pipeline.metrics import sums
from pipeline.metrics.histogram import EXACT, joint_histogram
from pipeline.metrics.shares import mean, ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

LabelMap: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]
Counts: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Index: TypeAlias = NDArray[np.int64]
"""The class position of each id; `VOID` where the id is no class, `UNDEFINED` where it is no id."""

VOID: Final = -1
UNDEFINED: Final = -2

_BLOCK: Final = 1 << 18  # pixels whose int64 pair codes (2 MiB) stay in a core's cache
_DENSE: Final = 1 << 20  # bins of a pair histogram; past it sorting the codes takes less memory


_FEW: Final = 1 << 16  # bins of a histogram that is cheaper than sorting some thousand codes
_MANY: Final = 0.25  # share of words of eight pixels with a change: there pixels are counted faster
_SMALL: Final = 64
_TOP_COUNT: Final = 1 << 31  # the compiled loop counts in 32 bits, with a byte a row


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """How often each pair of ids occurs: three arrays of one length, pairs in ascending order."""

    truth: Index
    predicted: Index
    counts: Counts


def count_pairs(truth: LabelMap, predicted: LabelMap) -> Pairs:
    """Count every pixel of two label maps [H, W] by (truth id, predicted id).

    The maps may be views with any strides. Runs of one pair are counted, which label maps have few
    of; maps that are mostly noise are counted pixel by pixel. 8-bit maps are counted by `_pairs.c`,
    or where that was not compiled by NumPy and OpenCV, as others are; all without the GIL.

    >>> pairs = count_pairs(np.array([[7, 7, 9]], np.uint8), np.array([[7, 9, 9]], np.uint8))
    >>> [x.tolist() for x in (pairs.truth, pairs.predicted, pairs.counts)]
    [[7, 7, 9], [7, 9, 9], [1, 1, 1]]

    Raises:
        ValueError: the shapes differ, or a map is neither uint8 nor uint16.
    """
    if truth.ndim != 2 or truth.shape != predicted.shape:
        raise ValueError(f"expected two maps of one size, got {truth.shape}, {predicted.shape}")
    if not {truth.dtype, predicted.dtype} <= {np.dtype(np.uint8), np.dtype(np.uint16)}:
        raise ValueError(f"expected uint8 or uint16, got {truth.dtype}, {predicted.dtype}")
    compiled = _pairs_compiled(truth, predicted) if truth.size else None
    if compiled is not None:
        return compiled
    by_runs = _pairs_of_runs(truth, predicted) if truth.size else None
    if by_runs is not None:
        return by_runs
    if truth.size and truth.dtype == predicted.dtype == np.uint8 and truth.shape[1] <= EXACT:
        return _pairs_8bit(truth, predicted)
    return _pairs_16bit(truth, predicted)


@cache
def compiled_counter() -> Callable[..., tuple[bytes, bytes]] | None:
    """Return the compiled loop over pixels; None where it was not compiled."""
    try:
        from pipeline.metrics._pairs import count
    except ImportError:
        return None
    return count


def _pairs_compiled(truth: LabelMap, predicted: LabelMap) -> Pairs | None:
    """Count 8-bit maps by the compiled loop; None for others, and where there is no such loop."""
    count = compiled_counter()
    if count is None or not truth.dtype == predicted.dtype == np.uint8 or truth.size >= _TOP_COUNT:
        return None
    told = count(*(m if m.strides[1] == 1 else m.copy("C") for m in (truth, predicted)))
    codes = np.frombuffer(told[0], np.uint16).astype(np.int64)
    return Pairs(codes >> 8, codes & 255, np.frombuffer(told[1], np.uint32).astype(np.int64))


def _pairs_of_runs(truth: LabelMap, predicted: LabelMap) -> Pairs | None:
    """Count runs of one pair; None where there are so many that pixels are counted faster."""
    gap = _row_gap(truth)
    if gap is None or gap != _row_gap(predicted):
        truth, predicted, gap = truth.copy("C"), predicted.copy("C"), 0
    rows = max(1, _BLOCK // truth.shape[1])
    runs = []
    for top in range(0, truth.shape[0], rows):
        found = _runs(truth[top : top + rows], predicted[top : top + rows], gap)
        if found is None:
            return None
        runs.append(found)
    if len(runs) == 1:
        return _sum_of_runs(*runs[0])
    first, second, lengths = zip(*runs, strict=True)
    return _sum_of_runs(np.concatenate(first), np.concatenate(second), np.concatenate(lengths))


def _runs(
    truth: LabelMap, predicted: LabelMap, gap: int
) -> tuple[LabelMap, LabelMap, Counts] | None:
    """Return each run's ids and length; None where there are very many."""
    width = truth.shape[1]
    first, second = _flat(truth, gap), _flat(predicted, gap)
    changes = np.not_equal(first[1:], first[:-1])
    changes |= np.not_equal(second[1:], second[:-1])
    last = _true_places(changes)
    if last is None:
        return None
    last = np.append(last, first.size - 1)
    lengths = np.diff(last, prepend=-1)
    mine, theirs = first[last], second[last]
    if gap:  # the bytes between rows were counted as pixels are
        between = slice(width, None, width + 1)
        mine = np.concatenate([mine, first[between]])
        theirs = np.concatenate([theirs, second[between]])
        lengths = np.concatenate([lengths, np.full(len(mine) - len(lengths), -1)])
    return mine, theirs, lengths


def _row_gap(labels: LabelMap) -> int | None:
    """Return how many pixels lie between a map's rows, 0 or 1; None for any other layout.

    One byte is what an inflated mask cell has there: counted along and taken off again, that is
    cheaper than a copy, or than work row by row.
    """
    height, width = labels.shape
    row, column = labels.strides
    if column != labels.itemsize or (height > 1 and row % column):
        return None
    gap = row // column - width if height > 1 else 0
    return gap if gap in (0, 1) else None


def _flat(labels: LabelMap, gap: int) -> LabelMap:
    """View all pixels, and those between rows, as one row."""
    height, width = labels.shape
    size = height * (width + gap) - gap
    strided = cast("Callable[..., LabelMap]", as_strided)  # its type forgets that of the pixels
    return strided(labels, (size,), (labels.itemsize,), writeable=False)


def _true_places(changes: NDArray[np.bool_]) -> Index | None:
    """Return where the flags are true; None where they are in more than a quarter of the words."""
    whole = changes.size >> 3
    # Eight flags at a time: most words of a label map have none.
    words = changes[: whole << 3].view(np.uint64)
    held = np.flatnonzero(words != 0)
    if len(held) > _MANY * whole + _SMALL:
        return None
    within = np.flatnonzero(words[held].view(np.bool_))
    places = (held << 3)[within >> 3]
    places += within & 7
    rest = np.flatnonzero(changes[whole << 3 :])
    return np.concatenate([places, rest + (whole << 3)]) if rest.size else places


def _sum_of_runs(truth: LabelMap, predicted: LabelMap, lengths: Counts) -> Pairs:
    """Add up the lengths of the runs of each pair."""
    width = int(predicted.max()) + 1
    codes = truth.astype(np.int64)
    codes *= width
    codes += predicted
    if (int(truth.max()) + 1) * width <= _FEW:
        # float64 adds counts exactly up to 2**53 pixels.
        total = np.bincount(codes, lengths)
        found = np.flatnonzero(total != 0)
        return Pairs(found // width, found % width, total[found].astype(np.int64))
    found, place = np.unique(codes, return_inverse=True)
    counts = np.bincount(place, lengths).astype(np.int64)
    there = counts != 0
    found = found[there]
    return Pairs(found // width, found % width, counts[there])


def _pairs_8bit(truth: LabelMap, predicted: LabelMap) -> Pairs:
    total = joint_histogram(truth, predicted, (256, 256)).ravel()
    codes = np.flatnonzero(total != 0)  # of booleans: ten times faster than of numbers
    return Pairs(codes >> 8, codes & 255, total[codes])


def _pairs_16bit(truth: LabelMap, predicted: LabelMap) -> Pairs:
    width = int(predicted.max(initial=0)) + 1
    bins = (int(truth.max(initial=0)) + 1) * width
    if bins > min(_DENSE, truth.size):  # measured: there sorting the pixels' codes is faster too
        codes, counts = np.unique(_codes(truth, predicted, width), return_counts=True)
        return Pairs(codes // width, codes % width, counts)
    total, rows = np.zeros(bins, np.int64), max(1, _BLOCK // max(1, truth.shape[1]))
    for top in range(0, truth.shape[0], rows):
        block = _codes(truth[top : top + rows], predicted[top : top + rows], width)
        total += np.bincount(block, minlength=bins)
    codes = np.flatnonzero(total != 0)
    return Pairs(codes // width, codes % width, total[codes])


def _codes(truth: LabelMap, predicted: LabelMap, width: int) -> Index:
    codes = truth.astype(np.int64)
    codes *= width
    codes += predicted
    return codes.ravel()


def class_index(classes: Iterable[int], void: Iterable[int] = ()) -> Index:
    """Return the position of each id among the classes: an array over all 16-bit ids.

    >>> class_index([4, 2], void=[0])[:6].tolist()
    [-1, -2, 1, -2, 0, -2]
    """
    index = np.full(1 << 16, UNDEFINED, np.int64)
    index[list(void)] = VOID
    ids = list(classes)
    index[ids] = np.arange(len(ids))
    return index


def confusion(
    truth: LabelMap, predicted: LabelMap, rows: Index, columns: Index, classes: int
) -> Counts:
    """Count pixels by (truth class, predicted class): int64 [C, C + 1], void truth left out.

    `rows` and `columns` give the class of each id of the two maps (`class_index`); the last column
    counts the pixels predicted as no class.

    >>> index = class_index([0, 1], void=[255])
    >>> truth = np.array([[0, 1, 255, 1]], np.uint8)
    >>> confusion(truth, np.array([[0, 0, 1, 255]], np.uint8), index, index, classes=2)
    array([[1, 0, 0],
           [1, 0, 1]])
    """
    matrix = ConfusionMatrix.empty(classes)
    matrix.update(count_pairs(truth, predicted), rows, columns)
    return matrix.counts


@dataclass(frozen=True, slots=True, eq=False)
class Tally:
    """Pixels of each class, [C]: right ones, those of truth, those of prediction (void left out).

    Enough for every score, at the cost of a row: for one image, where a matrix would be mostly
    zeros. Scores that divide by nothing are nan.
    """

    intersection: Counts
    truth: Counts
    predicted: Counts

    @property
    def counts(self) -> Counts:
        """The three in the order of `tally_measure`, [3, C]."""
        return np.stack([self.intersection, self.truth, self.predicted])

    @property
    def pixels(self) -> int:
        """How many pixels are scored: those whose truth is a class."""
        return int(self.truth.sum())

    @property
    def correct(self) -> int:
        """How many of them are right."""
        return int(self.intersection.sum())

    @property
    def union(self) -> Counts:
        """Pixels that are the class in truth, in the prediction, or both, [C]."""
        return self.truth + self.predicted - self.intersection

    @property
    def iou(self) -> Floats:
        """Intersection over union of each class, [C]."""
        return sums.iou(self.counts)

    @property
    def recall(self) -> Floats:
        """Share of each class's truth that was predicted rightly (its accuracy), [C]."""
        return ratio(self.intersection, self.truth)

    @property
    def precision(self) -> Floats:
        """Share of each class's predictions that are right, [C]."""
        return ratio(self.intersection, self.predicted)

    @property
    def miou(self) -> float:
        """Mean of the classes' IoU, over the classes that truth or prediction holds (union > 0)."""
        return mean(self.iou)

    @property
    def pixel_accuracy(self) -> float:
        """Share of the scored pixels that are right."""
        return float(sums.pixel_accuracy(self.counts))

    @property
    def mean_accuracy(self) -> float:
        """Mean recall over the classes that truth holds."""
        return mean(self.recall)

    @property
    def fwiou(self) -> float:
        """Mean of the classes' IoU, weighted by their share of the truth's pixels."""
        return float(sums.fwiou(self.counts))

    @property
    def coverage(self) -> float:
        """Share of the scored pixels that the prediction gives any class."""
        return float(ratio(self.predicted.sum(), self.truth.sum()))


@dataclass(slots=True, eq=False)
class ConfusionMatrix:
    """Pixels by truth class (rows) and predicted class (columns, the last one "no label").

    Matrices of parts add up to the matrix of the whole, exactly.
    """

    counts: Counts
    """int64 [C, C + 1]."""
    void: int = 0
    """Pixels left out because their truth is no class."""

    @classmethod
    def empty(cls, classes: int) -> ConfusionMatrix:
        """Return the matrix of no pixels."""
        return cls(np.zeros((classes, classes + 1), np.int64))

    def update(self, pairs: Pairs, rows: Index, columns: Index) -> None:
        """Add counted pairs; ids that `rows` and `columns` give no class are void or no label."""
        self.add(rows[pairs.truth], columns[pairs.predicted], pairs.counts)

    def add(self, row: Index, column: Index, counts: Counts) -> None:
        """Add counted pairs of class positions; negative ones are void or no label."""
        valid = row >= 0
        column = np.where(column >= 0, column, len(self.counts))
        np.add.at(self.counts, (row[valid], column[valid]), counts[valid])
        self.void += int(counts[~valid].sum())

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        return ConfusionMatrix(self.counts + other.counts, self.void + other.void)

    def __iadd__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        self.counts += other.counts
        self.void += other.void
        return self

    def tally(self) -> Tally:
        """Return the pixels of each class, over all that was added.

        Its `miou` is the field's: the mean of the IoU that the classes have over all images
        together, not the mean of the images' own.
        """
        return Tally(
            np.diagonal(self.counts).copy(),
            self.counts.sum(axis=1),
            self.counts[:, :-1].sum(axis=0),
        )
