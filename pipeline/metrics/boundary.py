"""How well boundaries are met: boundary IoU, boundary F1, and the scores in a band around them.

- Boundary IoU (Cheng et al., CVPR 2021): IoU of the two sets of pixels that lie in a class and
  within d of its edge. d is a share of the image's diagonal, 2 % in the paper, rounded, at least 1;
  distances are those of a 3x3 erosion, repeated; the image's border is an edge.
- Boundary F1 (Csurka et al., BMVC 2013): a contour pixel is right if the other map has one of the
  same class within a tolerance, 0.75 % of the diagonal by default, in straight distance. A contour
  pixel is one of the class with another class among its eight neighbours; the image's border is no
  contour.
- Trimap curve (Kohli et al., IJCV 2009): mIoU and accuracy of the pixels within k pixels of a
  boundary of truth, of both sides: their window of (2k + 1)^2 pixels holds two classes.

All figures are of sums over all images, as mIoU is, not means over images. Void truth is never
counted, and what the prediction says there is not looked at, in either map. An edge between a class
and void is by default no boundary: nobody knows whether the class goes on. Void then belongs to
every class when edges are looked for. A prediction of no label is a label of its own beside the
classes: it has edges, and every pixel of it is wrong.

One pass serves all classes: a pixel is within d of an edge of its own class if the least and the
greatest label of its window differ, and both come from separable filters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeAlias

import numpy as np

from pipeline.errors import UsageError
from pipeline.metrics.confusion import Tally
from pipeline.metrics.contours import Contour, matched
from pipeline.metrics.histogram import joint_histogram
from pipeline.metrics.shares import by_name, known, mean, ratio

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from pipeline.label_space import LabelSpace
    from pipeline.metrics.confusion import Counts, Floats, LabelMap
    from pipeline.metrics.measure import LabelPair

    BoolMap: TypeAlias = NDArray[np.bool_]

VoidEdge = Literal["ignored", "boundary"]

_TRIMAP: Final = (1, 2, 4, 8, 16, 32)
_MOST_WIDTHS: Final = 31  # the code of a pixel fits a byte
_INTERSECTION, _TRUTH, _PREDICTED = range(3)


@dataclass(frozen=True, slots=True)
class Boundary:
    """The measure `boundary`.

    `band_share` and `tolerance_share` are of an image's diagonal; `band_pixels` and
    `tolerance_pixels`, where given, hold for every image instead. `void="boundary"` takes an edge
    between a class and void as one of the class, for datasets that draw void along every contour,
    as Pascal VOC does: by default such maps have no contour at all.

    Raises:
        UsageError: a width is negative or not finite, or the trimap's don't ascend from 1.
    """

    band_share: float = 0.02
    band_pixels: int | None = None
    tolerance_share: float = 0.0075
    tolerance_pixels: float | None = None
    trimap_pixels: tuple[int, ...] = _TRIMAP
    void: VoidEdge = "ignored"
    name: str = "boundary"
    truth_columns: tuple[str, ...] = ()
    predicted_columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        given = (self.band_share, self.band_pixels, self.tolerance_share, self.tolerance_pixels)
        for value in given:
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UsageError(f"boundary: a width is 0 or more, not {value}")
        widths = self.trimap_pixels
        if len(widths) > _MOST_WIDTHS or any(a >= b for a, b in pairwise((0, *widths))):
            raise UsageError(
                f"boundary: the trimap's widths ascend from 1 and are {_MOST_WIDTHS} at most, "
                f"not {', '.join(map(str, widths))}"
            )

    @property
    def image_columns(self) -> tuple[pa.Field, ...]:
        """Means over the classes that have a boundary in the image; null where none has."""
        import pyarrow as pa

        return pa.field("boundary_iou", pa.float64()), pa.field("boundary_f1", pa.float64())

    def start(self, space: LabelSpace) -> BoundaryGathering:
        """Begin to count."""
        names = space.class_names
        return BoundaryGathering(self, names, BoundaryCounts.empty(self, len(names)))

    def band(self, shape: tuple[int, ...]) -> int:
        """Return d of boundary IoU for an image [H, W], in pixels, 1 or more."""
        if self.band_pixels is not None:
            return max(1, self.band_pixels)
        return max(1, round(self.band_share * math.hypot(*shape)))

    def tolerance(self, shape: tuple[int, ...]) -> float:
        """Return the tolerance of boundary F1 for an image [H, W], in pixels."""
        if self.tolerance_pixels is not None:
            return self.tolerance_pixels
        return self.tolerance_share * math.hypot(*shape)


@dataclass(slots=True, eq=False)
class BoundaryCounts:
    """Pixels by class, of one image or many."""

    bands: Counts
    """Within d of their class's edge: in both maps, in truth, in the prediction [3, C]."""
    contours: Counts
    """Contour pixels, and how many of them are matched: truth, prediction [2, 2, C]."""
    rings: Counts
    """Right, truth's and predicted pixels [K + 1, 3, C] by how many of the K trimaps hold them."""

    @classmethod
    def empty(cls, measure: Boundary, classes: int) -> Self:
        """Return the counts of no pixels."""
        rings = np.zeros((len(measure.trimap_pixels) + 1, 3, classes), np.int64)
        return cls(np.zeros((3, classes), np.int64), np.zeros((2, 2, classes), np.int64), rings)

    def add(self, other: BoundaryCounts) -> None:
        """Add the pixels of other images."""
        self.bands += other.bands
        self.contours += other.contours
        self.rings += other.rings

    @property
    def boundary_iou(self) -> Floats:
        """Boundary IoU of each class, [C]; nan where neither map holds the class."""
        both, truth, predicted = self.bands
        return ratio(both, truth + predicted - both)

    @property
    def recall(self) -> Floats:
        """Share of truth's contour pixels that are matched, [C]."""
        return ratio(self.contours[0, 1], self.contours[0, 0])

    @property
    def precision(self) -> Floats:
        """Share of the prediction's contour pixels that are matched, [C]."""
        return ratio(self.contours[1, 1], self.contours[1, 0])

    @property
    def boundary_f1(self) -> Floats:
        """Harmonic mean of the two, [C]; 0 where one map has no contour, nan where neither has."""
        recall, precision = np.nan_to_num(self.recall), np.nan_to_num(self.precision)
        found = ratio(2 * recall * precision, recall + precision)
        drawn = self.contours[:, 0].sum(axis=0) > 0
        return np.where(drawn, np.nan_to_num(found), np.nan)

    def trimaps(self) -> list[Tally]:
        """Return the pixels within each width, narrowest first."""
        inner = np.cumsum(self.rings[::-1], axis=0)[:-1]
        return [Tally(*counts) for counts in inner]


@dataclass(slots=True, eq=False)
class BoundaryGathering:
    """Counts of boundaries, image by image."""

    measure: Boundary
    names: Sequence[str]
    counts: BoundaryCounts

    def update(self, pair: LabelPair) -> Mapping[str, float | int | None]:
        """Count one pair; return its own boundary IoU and F1."""
        one = boundary_counts(
            pair.truth_positions, pair.predicted_positions, len(self.names), self.measure
        )
        self.counts.add(one)
        return {
            "boundary_iou": known(mean(one.boundary_iou)),
            "boundary_f1": known(mean(one.boundary_f1)),
        }

    def merge(self, other: Self) -> None:
        """Add what another worker counted."""
        self.counts.add(other.counts)

    def figures(self) -> dict[str, Any]:
        """Return the scores of all pixels; means are over the classes that have a score."""
        counts, measure = self.counts, self.measure
        iou, f1 = counts.boundary_iou, counts.boundary_f1
        return {
            "tolerance_pixels": measure.tolerance_pixels,
            "tolerance_share": measure.tolerance_share,
            "band_pixels": measure.band_pixels,
            "band_share": measure.band_share,
            "void": measure.void,
            "boundary_iou": known(mean(iou)),
            "boundary_f1": known(mean(f1)),
            "classes": by_name(
                self.names,
                boundary_iou=iou,
                boundary_f1=f1,
                precision=counts.precision,
                recall=counts.recall,
            ),
            "trimap": [
                {
                    "pixels": width,
                    "miou": known(tally.miou),
                    "accuracy": known(tally.pixel_accuracy),
                    "share": known(_share(tally.pixels, int(counts.rings[:, _TRUTH].sum()))),
                }
                for width, tally in zip(measure.trimap_pixels, counts.trimaps(), strict=True)
            ],
        }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def boundary_counts(
    truth: LabelMap, predicted: LabelMap, classes: int, measure: Boundary
) -> BoundaryCounts:
    """Count one pair of maps of class positions [H, W], the greatest value of their type for none.

    Raises:
        ValueError: shapes or types differ, or the maps are empty.
    """
    if truth.shape != predicted.shape or truth.dtype != predicted.dtype or not truth.size:
        raise ValueError(
            f"expected two maps of one size and type, got {truth.dtype} {truth.shape} and "
            f"{predicted.dtype} {predicted.shape}"
        )
    none = np.iinfo(truth.dtype).max
    void: LabelMap = np.negative((truth == none).astype(truth.dtype))  # all bits set
    unseen = void if measure.void == "ignored" else None
    predicted = predicted | void
    width, trimap = measure.band(truth.shape), measure.trimap_pixels
    level = np.zeros(truth.shape, np.uint8)
    found: dict[int, BoolMap] = {}
    for radius, mixed in _mixed(truth, unseen, {1, width, *trimap}):
        found[radius] = mixed
        if radius in trimap:
            level += mixed.view(np.uint8)
    drawn = dict(_mixed(predicted, unseen, {1, width}))
    bands = _with_rim(found[width], width), _with_rim(drawn[width], width)
    rings, counted = _by_ring(truth, predicted, classes, level, bands, len(trimap) + 1)
    contours = _contours(
        Contour.of(truth, found[1], classes),
        Contour.of(predicted, drawn[1], classes),
        truth.shape,
        classes,
        measure.tolerance(truth.shape),
    )
    return BoundaryCounts(counted, contours, rings)


def _mixed(
    labels: LabelMap, unseen: LabelMap | None, radii: set[int]
) -> Iterator[tuple[int, BoolMap]]:
    """Yield, for ascending radii r, whether a pixel's window of (2r + 1)^2 holds two labels.

    The window ends at the image's border. `unseen` has all bits set where labels (which are the
    greatest value there) are no labels, 0 elsewhere.
    """
    import cv2

    low = labels
    high = labels if unseen is None else labels & ~unseen
    reached = 0
    for radius in sorted(radii):
        # Windows add up: a window of the windows' extremes is a larger window. One that is as
        # large as the image holds all of it; no kernel needs to be larger.
        height, width = (2 * min(radius - reached, side) + 1 for side in labels.shape)
        kernel = np.ones((height, width), np.uint8)
        low, high, reached = cv2.erode(low, kernel), cv2.dilate(high, kernel), radius
        yield radius, low != high


def _with_rim(band: BoolMap, width: int) -> BoolMap:
    """Return the band with the pixels less than `width` from the image's border."""
    band = band.copy()
    band[:width] = band[-width:] = True
    band[:, :width] = band[:, -width:] = True
    return band


def _by_ring(
    truth: LabelMap,
    predicted: LabelMap,
    classes: int,
    level: NDArray[np.uint8],
    bands: tuple[BoolMap, BoolMap],
    levels: int,
) -> tuple[Counts, Counts]:
    """Return the pixels of each class by trimap [levels, 3, C], and those of the bands [3, C]."""
    # Views as bytes: NumPy converts booleans slower than it adds.
    where = level + bands[0].view(np.uint8) * np.uint8(levels)
    where += bands[1].view(np.uint8) * np.uint8(2 * levels)
    code: NDArray[Any] = where.astype(truth.dtype, copy=False)
    of_prediction = joint_histogram(code, predicted, (4 * levels, classes))
    code += (truth == predicted).view(np.uint8) * np.uint8(4 * levels)
    of_truth = joint_histogram(code, truth, (8 * levels, classes))
    # Axes: right or not, in the predicted band or not, in truth's band or not, level, class.
    rows = of_truth.reshape(2, 2, 2, levels, classes)
    columns = of_prediction.reshape(2, 2, levels, classes)
    rings = np.stack([rows[1].sum((0, 1)), rows.sum((0, 1, 2)), columns.sum((0, 1))], axis=1)
    counted = [rows[1, 1, 1].sum(0), rows[:, :, 1].sum((0, 1, 2)), columns[1].sum((0, 1))]
    return rings, np.stack(counted)


def _contours(
    truth: Contour, predicted: Contour, shape: tuple[int, ...], classes: int, tolerance: float
) -> Counts:
    """Return the contour pixels of each class and the matched ones: truth, prediction [2, 2, C]."""
    counts = np.zeros((2, 2, classes), np.int64)
    for n, (mine, theirs) in enumerate(((truth, predicted), (predicted, truth))):
        hit = matched(mine, theirs, shape, tolerance)
        counts[n, 0] = np.bincount(mine.labels, minlength=classes)
        counts[n, 1] = np.bincount(mine.labels[hit], minlength=classes)
    return counts
