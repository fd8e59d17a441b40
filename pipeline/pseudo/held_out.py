"""What held-out truth says of predictions: pixels by predicted class and level of confidence.

Pixels of one image are alike: a hundred thousand of them are no hundred thousand witnesses. So the
sums keep, beside the counts, what the spread between images follows from (`bounds`).
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline import masks
from pipeline.errors import InputError, SizeMismatch, UsageError
from pipeline.in_order import Chunk, in_order
from pipeline.metrics.histogram import joint_histogram
from pipeline.metrics.pairing import pair_rows
from pipeline.metrics.resample import poisson_weights, weighted_sums
from pipeline.pseudo.rows import COLUMNS, failure, labelled
from pipeline.tables.rows import list_rows, rows_of
from pipeline.training.data import Channels

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.in_order import Mapper
    from pipeline.label_space import LabelMap, LabelSpace
    from pipeline.metrics.confusion import Counts, Floats
    from pipeline.metrics.pairing import Pair
    from pipeline.pseudo.rows import Labelled
    from pipeline.runs.failures import Failure
    from pipeline.store import Store

LEVELS: Final = 256
FOLDS: Final = 2
_FAILURES_KEPT: Final = 1000
RIGHT_SQUARED, MIXED, PIXELS_SQUARED = range(3)


@dataclass(slots=True, eq=False)
class HeldOut:
    """Sums over images of pixels with truth and a prediction, by predicted class and confidence.

    "At or above" are counts of all levels from one up: what a threshold there would keep.
    """

    space: LabelSpace
    folds: Counts
    """Right pixels and all pixels of each half of the images: int64 [2, 2, C, 256]."""
    squares: Floats
    """Sums over images of r², r n and n², r right ones of n pixels at or above: [3, C, 256]."""
    holding: Counts
    """Images with a pixel of the class at or above: int64 [C, 256]."""
    confusion: Counts
    """Pixels by predicted and true class: int64 [C, C]."""
    truth: Counts
    """Pixels of each class of truth, also where the prediction gives no label: int64 [C]."""
    replicates: Counts | None = None
    """Right and all pixels at or above, of Poisson bootstrap replicates: int64 [B, 2, C, 256]."""
    images: int = 0
    unpredicted: int = 0
    unlabelled: int = 0
    failed: int = 0
    failures: list[Failure] = field(default_factory=list)

    @classmethod
    def empty(cls, space: LabelSpace, replicates: int = 0) -> HeldOut:
        """Return sums over no images."""
        n = len(space.train_ids)
        return cls(
            space,
            np.zeros((FOLDS, 2, n, LEVELS), np.int64),
            np.zeros((3, n, LEVELS)),
            np.zeros((n, LEVELS), np.int64),
            np.zeros((n, n), np.int64),
            np.zeros(n, np.int64),
            np.zeros((replicates, 2, n, LEVELS), np.int64) if replicates else None,
        )

    @property
    def right(self) -> Counts:
        """Right pixels, int64 [C, 256]."""
        total: Counts = self.folds[:, 0].sum(axis=0)
        return total

    @property
    def pixels(self) -> Counts:
        """All pixels, int64 [C, 256]."""
        total: Counts = self.folds[:, 1].sum(axis=0)
        return total

    def add(self, truth: LabelMap, predicted: LabelMap, confidence: LabelMap, key: int) -> None:
        """Count one image: positions of classes [H, W], and its confidence; `key` is its hash."""
        counts, confusion, held = image_counts(truth, predicted, confidence, len(self.truth))
        self.folds[key % FOLDS] += counts
        above = at_or_above(counts)
        right, pixels = above.astype(np.float64)
        self.squares += np.stack([right * right, right * pixels, pixels * pixels])
        self.holding += above[1] > 0
        self.confusion += confusion
        self.truth += held
        self.images += 1
        if self.replicates is not None:
            keys = np.array([key], np.uint64)
            weights = poisson_weights(keys, len(self.replicates))
            self.replicates += weighted_sums(weights, above[None])

    def merge(self, other: HeldOut) -> None:
        """Add the sums over other images."""
        for name in ("folds", "squares", "holding", "confusion", "truth"):
            total = getattr(self, name)
            total += getattr(other, name)
        if self.replicates is not None and other.replicates is not None:
            self.replicates += other.replicates
        for name in ("images", "unpredicted", "unlabelled", "failed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.failures += other.failures[: _FAILURES_KEPT - len(self.failures)]


def at_or_above(counts: NDArray[Any]) -> NDArray[Any]:
    """Return the counts of all levels from each one up, along the last axis."""
    return np.flip(np.cumsum(np.flip(counts, -1), axis=-1), -1)


def image_counts(
    truth: LabelMap, predicted: LabelMap, confidence: LabelMap, classes: int
) -> tuple[Counts, Counts, Counts]:
    """Count one image by predicted class: maps of positions [H, W], void beyond the classes.

    Returns right and all pixels by level [2, C, 256], pixels by predicted and true class [C, C],
    and the pixels of each true class [C].
    """
    known = truth < classes
    levels = confidence.astype(predicted.dtype, copy=False)
    none = predicted.dtype.type(np.iinfo(predicted.dtype).max)
    size = (classes, LEVELS)
    everything = joint_histogram(np.where(known, predicted, none), levels, size)
    right = joint_histogram(np.where(truth == predicted, predicted, none), levels, size)
    confusion = joint_histogram(predicted, truth, (classes, classes))
    held = np.bincount(truth[known], minlength=classes)[:classes]
    return np.stack([right, everything]), confusion, held.astype(np.int64)


# --- from two stores ------------------------------------------------------------------------------


def gather(
    truth: Store,
    pred: Store,
    runner: Mapper,
    *,
    where: str | None = None,
    pred_where: str | None = None,
    replicates: int = 0,
) -> HeldOut:
    """Compare held-out truth with predictions that keep their confidence.

    The classes are the predictions'. Bad pairs are counted and described in `failures`.

    Raises:
        UsageError: the predictions use several label spaces, or an image has two of them.
        RemapError: no remap leads from a label space of truth to theirs.
        SegmillError: no row of truth has a prediction.
    """
    pairing = pair_rows(list_rows(truth, where), list_rows(pred, pred_where))
    space = one_space(pred, pairing.predicted.label_spaces())
    channels = Channels(space)
    for name in pairing.truth.label_spaces():
        channels.lut(truth.space(name))
    plan = _Plan(truth, pred, space, replicates)
    total = HeldOut.empty(space, replicates)
    total.unpredicted = pairing.unpredicted

    def lost(chunk: Chunk[Pair], error: InputError) -> HeldOut:
        part = HeldOut.empty(space, replicates)
        for pair in chunk.items:
            _fail(part, pair, pair.truth.image_id, error)
        return part

    for part in in_order(runner, plan, pairing, lost):
        total.merge(part)
    return total


def one_space(store: Store, names: list[str]) -> LabelSpace:
    """Return the one label space that a store's rows use.

    Raises:
        UsageError: they use none, or several.
    """
    if len(names) != 1:
        used = ", ".join(names) or "none"
        raise UsageError(f"{store.url}: the rows use label spaces {used}; one is needed")
    return store.space(names[0])


def _fail(part: HeldOut, pair: Pair, path: str, error: InputError) -> None:
    part.failed += 1
    part.failures.append(failure(pair.truth, pair.split, path, error, "calibrate"))


@dataclass(frozen=True, slots=True)
class _Plan:
    truth: Store
    pred: Store
    space: LabelSpace
    replicates: int

    def __call__(self) -> Callable[[Chunk[Pair]], HeldOut]:
        # Opened anew: threads share no reader.
        return _Worker(copy(self.truth), copy(self.pred), Channels(self.space), self.replicates)


@dataclass(frozen=True, slots=True)
class _Worker:
    truth: Store
    pred: Store
    channels: Channels
    replicates: int

    def __call__(self, chunk: Chunk[Pair]) -> HeldOut:
        part = HeldOut.empty(self.channels.space, self.replicates)
        columns = ("mask.bytes", "label_space")
        truths = dict(rows_of(self.truth, [p.truth for p in chunk.items], columns))
        found = dict(rows_of(self.pred, [p.predicted for p in chunk.items], COLUMNS))
        for pair in chunk.items:
            cell, space = truths[pair.truth]
            if cell is None:
                part.unlabelled += 1
                continue
            row = dict(zip(COLUMNS, found[pair.predicted], strict=True))
            path = row["image.path"] or pair.truth.image_id
            try:
                true = masks.decode(cell, f"{path} (truth)")
                prediction = labelled(row, path)
                self._add(part, self._positions(true, self.truth.space(space)), prediction, pair)
            except InputError as error:
                _fail(part, pair, path, error)
        return part

    def _positions(self, ids: LabelMap, space: LabelSpace) -> LabelMap:
        positions: LabelMap = self.channels.lut(space)[ids]
        return positions

    def _add(self, part: HeldOut, truth: LabelMap, prediction: Labelled, pair: Pair) -> None:
        predicted = self._positions(prediction.ids, self.channels.space)
        if truth.shape != predicted.shape:
            cause = f"the prediction is {predicted.shape}, the truth {truth.shape}"
            raise SizeMismatch(pair.truth.image_id, cause, "label the image at its own size")
        key = pair.truth.place or hash_of(pair.truth.image_id)
        part.add(truth, predicted, prediction.confidence, key)


def hash_of(text: str) -> int:
    """Return 63 bits that depend on the text alone."""
    from pipeline.tables.rows import place_of

    return place_of(text)
