"""Average precision of objects as Cityscapes' evalInstanceLevelSemanticLabeling computes it.

At each of ten overlaps a truth object is found by the most certain prediction of its class whose
IoU is greater; further ones are false. A prediction that finds none is false, too, unless it
overlaps a group or an object that is too small, or unless void, groups and small objects make up
more than that share of it. The area below the curve of precision and recall is the script's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.instances import rle_crop
from pipeline.metrics.exact_sum import RowStack

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.metrics.cityscapes_truth import TruthSegments
    from pipeline.metrics.confusion import Counts
    from pipeline.metrics.pair_objects import Objects

    Flags = NDArray[np.bool_]

OVERLAPS: Final = np.arange(0.5, 1.0, 0.05)
_SMALLEST: Final = 100
"""Pixels of a truth object below which it is neither found nor missed."""

_BITS: Final = np.uint16(1) << np.arange(len(OVERLAPS), dtype=np.uint16)
ROW: Final = np.dtype([("score", "<f4"), ("class", "<u2"), ("true", "<u2"), ("false", "<u2")])
"""What is kept of a predicted object: bit k tells whether it is true, or false, at overlap k."""


@dataclass(frozen=True, slots=True)
class ImageMatches:
    """The outcome for one image: truth objects of each class [C], rows, objects without a score."""

    truths: Counts
    rows: NDArray[Any]
    unscored: int


class ObjectMatches:
    """The outcomes of all images: 10 bytes for each predicted object that is true or false."""

    __slots__ = ("images", "rows", "truths", "unscored")

    def __init__(self, classes: int) -> None:
        self.truths: Counts = np.zeros(classes, np.int64)
        self.rows = RowStack(ROW)
        self.images = self.unscored = 0

    def add(self, one: ImageMatches) -> None:
        """Add one image."""
        self.truths += one.truths
        self.rows.add(one.rows)
        self.images += 1
        self.unscored += one.unscored

    def merge(self, other: ObjectMatches) -> None:
        """Add what another has gathered."""
        self.truths += other.truths
        self.rows.merge(other.rows)
        self.images += other.images
        self.unscored += other.unscored

    def average_precisions(self) -> NDArray[np.float64]:
        """Return AP by class and overlap, [C, 10]; nan for a class of which truth has no object."""
        rows = self.rows.whole()
        found = np.full((len(self.truths), len(OVERLAPS)), np.nan)
        for place in np.flatnonzero(self.truths).tolist():
            mine = rows[rows["class"] == place]
            for k, bit in enumerate(_BITS):
                true, false = (mine["true"] & bit) > 0, (mine["false"] & bit) > 0
                kept = true | false
                found[place, k] = _area(mine["score"][kept], true[kept], int(self.truths[place]))
        return found


def match_image(shown: TruthSegments, objects: Objects, things: Flags) -> ImageMatches:
    """Match one image's predicted objects to truth.

    `things` [C] are the classes whose objects are scored; others are left out on both sides, as are
    predictions without a pixel.

    Raises:
        BadAnnotation: run lengths are malformed, or of another size; or a score is no number.
    """
    scored = (objects.positions >= 0) & things[objects.positions]
    scored &= objects.those(lambda i: i.rle)
    kept = objects.chosen(scored)
    sizes = np.bincount(shown.map.ravel(), minlength=len(shown.classes))
    overlap = _overlaps(shown, kept)
    scores, pixels = kept.scores(), overlap.sum(axis=1)
    truths: Counts = np.zeros(shown.scored, np.int64)
    rows = []
    for place in np.flatnonzero(things).tolist():
        mine = (kept.positions == place) & (pixels > 0)
        segments = np.flatnonzero((shown.classes == place) & (sizes > 0))
        single = (segments > shown.scored) & (sizes[segments] >= _SMALLEST)
        truths[place] = int(single.sum())
        if mine.any():
            void = overlap[mine, shown.scored]
            true, false = _outcomes(
                overlap[mine][:, segments], sizes[segments], pixels[mine], void, scores[mine],
                single, segments <= shown.scored,
            )  # fmt: skip
            rows.append(_rows(place, scores[mine], true, false))
    unscored = sum(i.score is None for i in kept.instances)
    return ImageMatches(truths, np.concatenate([np.empty(0, ROW), *rows]), unscored)


def _overlaps(shown: TruthSegments, objects: Objects) -> Counts:
    """Count the pixels that each object has of each segment: [P, S]."""
    height, width = shown.map.shape
    found = np.zeros((len(objects.instances), len(shown.classes)), np.int64)
    for row, one in zip(found, objects.instances, strict=True):
        crop, (top, left) = rle_crop(one.rle or "", height, width, objects.path)
        below = shown.map[top : top + crop.shape[0], left : left + crop.shape[1]]
        row += np.bincount(below[crop], minlength=len(row))
    return found


def _outcomes(
    overlap: Counts,
    sizes: Counts,
    pixels: Counts,
    void: Counts,
    scores: NDArray[np.float32],
    single: Flags,
    group: Flags,
) -> tuple[Flags, Flags]:
    """Return which of the predictions of a class are true, and which false: [P, 10] both.

    `overlap` [P, S] are pixels shared with the truth segments of the class, whose pixels are
    `sizes`; `pixels` and `void` [P] those of the predictions, all and on void; `single` [S] are the
    objects that count, `group` [S] the group.
    """
    iou = overlap / (sizes + pixels[:, None] - overlap)
    hit = iou[:, :, None] > OVERLAPS
    counts = hit & single[None, :, None]
    # The most certain of the predictions that hit an object; no prediction hits two.
    certain = np.where(counts, scores[:, None, None], -np.inf)
    first = np.arange(len(pixels))[:, None, None] == certain.argmax(axis=0)[None]
    true = (counts & first).any(axis=1)
    # A small group counts twice, as in the script.
    ignored = void + overlap[:, group].sum(axis=1) + overlap[:, sizes < _SMALLEST].sum(axis=1)
    stray = ~hit.any(axis=1) & ((ignored / pixels)[:, None] <= OVERLAPS)
    return true, (counts & ~first).any(axis=1) | stray


def _rows(place: int, scores: NDArray[np.float32], true: Flags, false: Flags) -> NDArray[Any]:
    rows = np.empty(len(scores), ROW)
    rows["score"], rows["class"] = scores, place
    rows["true"], rows["false"] = true @ _BITS, false @ _BITS
    kept: NDArray[Any] = rows[(rows["true"] | rows["false"]) > 0]
    return kept


def _area(scores: NDArray[np.float32], true: Flags, truths: int) -> float:
    """Return the area below precision over recall, in steps at each score that occurs."""
    if not true.any():
        return 0.0
    order = np.argsort(scores, kind="stable")
    _, first = np.unique(scores[order], return_index=True)
    below = np.concatenate(([0], np.cumsum(true[order])))[first]
    found = int(true.sum()) - below
    precision = np.append(found / (len(scores) - first), 1.0)
    recall = np.append(found / truths, 0.0)
    widths = np.convolve([recall[0], *recall, 0.0], [-0.5, 0, 0.5], "valid")
    return float(np.dot(precision, widths))
