"""Whether confidence means what it says: reliability, calibration error, risk against coverage.

Confidence maps hold 256 levels, round(255 p) (`segmill label --confidence`), so counts by level say
all that the maps do, and every figure follows at the end:

- Reliability: pixels by confidence in equal bins (low, high], the first with 0; in each the mean
  confidence and the accuracy. ECE is their mean distance, weighted by pixels, MCE the greatest
  (Naeini et al., AAAI 2015; Guo et al., ICML 2017, who take 15 bins: 17 whole levels each).
- Risk-coverage curve: the share of wrong pixels among the most confident ones, for each level as
  the threshold (El-Yaniv and Wiener, JMLR 2010). AURC is the mean of that risk over all coverages
  (Geifman et al., ICLR 2019), pixels of one level taken in random order, in expectation.

Pixels are scored whose truth is a class and whose prediction is one: where the prediction gives no
label it claims nothing; those pixels are counted apart. A class's figures are of the pixels
predicted as that class. All are of sums over all images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

import numpy as np

from pipeline import masks
from pipeline.errors import CorruptMask, InputError, SizeMismatch, UsageError
from pipeline.metrics.histogram import joint_histogram
from pipeline.metrics.shares import known, ratio

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from pipeline.label_space import LabelSpace
    from pipeline.metrics.confusion import Counts, Floats, LabelMap
    from pipeline.metrics.measure import LabelPair

    Confidence: TypeAlias = NDArray[np.uint8]

_LEVELS: Final = 256
_P: Final = np.arange(_LEVELS) / 255
_RIGHT, _ALL = range(2)


@dataclass(frozen=True, slots=True)
class Calibration:
    """The measure `calibration`; it needs the prediction's confidence maps.

    Raises:
        UsageError: `bins` is not in 1..255.
    """

    bins: int = 15
    name: str = "calibration"
    truth_columns: tuple[str, ...] = ()
    predicted_columns: tuple[str, ...] = ("confidence",)

    def __post_init__(self) -> None:
        if not 1 <= self.bins < _LEVELS:
            raise UsageError(f"calibration: 1 to {_LEVELS - 1} bins, not {self.bins}")

    @property
    def image_columns(self) -> tuple[pa.Field, ...]:
        """An image's mean confidence and calibration error; null without a pixel to score."""
        import pyarrow as pa

        return pa.field("mean_confidence", pa.float64()), pa.field("ece", pa.float64())

    def start(self, space: LabelSpace) -> CalibrationGathering:
        """Begin to count."""
        names = space.class_names
        return CalibrationGathering(self, names, np.zeros((2, len(names), _LEVELS), np.int64))


@dataclass(slots=True, eq=False)
class CalibrationGathering:
    """Pixels by predicted class and confidence."""

    measure: Calibration
    names: Sequence[str]
    counts: Counts
    """Right pixels and all pixels [2, C, 256]."""
    unlabelled: int = 0
    """Pixels of a class of truth that the prediction gives no label."""

    def update(self, pair: LabelPair) -> Mapping[str, float | int | None]:
        """Count one pair; return its mean confidence and calibration error.

        Raises:
            InputError: the prediction has no confidence map.
            CorruptMask: the map is damaged, or not one of 8 bits.
            SizeMismatch: it is not of the mask's size.
        """
        sure = _confidence(pair)
        truth, predicted = pair.truth_positions, pair.predicted_positions
        one, unlabelled = confidence_counts(truth, predicted, sure, len(self.names))
        self.counts += one
        self.unlabelled += unlabelled
        found = Reliability.of(one.sum(axis=1), self.measure.bins)
        return {"mean_confidence": known(found.mean_confidence), "ece": known(found.ece)}

    def merge(self, other: Self) -> None:
        """Add what another worker counted."""
        self.counts += other.counts
        self.unlabelled += other.unlabelled

    def figures(self) -> dict[str, Any]:
        """Return the scores of all pixels, and of each predicted class."""
        levels = self.counts.sum(axis=1)
        total = Reliability.of(levels, self.measure.bins)
        return {
            "ece": known(total.ece),
            "mce": known(total.mce),
            "mean_confidence": known(total.mean_confidence),
            "accuracy": known(total.mean_accuracy),
            "aurc": known(aurc(levels)),
            "pixels": int(levels[_ALL].sum()),
            "unlabelled_pixels": self.unlabelled,
            "bins": total.rows(),
            "classes": {
                name: self._of_class(self.counts[:, n]) for n, name in enumerate(self.names)
            },
            "risk_coverage": risk_coverage(levels),
        }

    def _of_class(self, levels: Counts) -> dict[str, Any]:
        found = Reliability.of(levels, self.measure.bins)
        return {
            "ece": known(found.ece),
            "pixels": int(levels[_ALL].sum()),
            "confidence": known(found.mean_confidence),
            "accuracy": known(found.mean_accuracy),
            "aurc": known(aurc(levels)),
        }


def _confidence(pair: LabelPair) -> Confidence:
    """Return the prediction's confidence map [H, W]."""
    cell = pair.predicted_row.get("confidence")
    data = cell.get("bytes") if cell else None
    if not data:
        raise InputError(
            pair.image_id,
            "the prediction has no confidence map",
            "label with --confidence, or leave rows without one out with --pred-where",
        )
    path = f"{pair.image_id} (confidence)"
    sure = masks.decode(data, path)
    mend = "label the image again with --confidence"
    if sure.shape != pair.truth.shape:
        height, width = sure.shape
        rows, columns = pair.truth.shape
        cause = f"the confidence map is {width}x{height} pixels, the mask {columns}x{rows}"
        raise SizeMismatch(path, cause, mend)
    if sure.dtype != np.uint8:
        raise CorruptMask(path, "the confidence map has 16 bits a pixel, not 8", mend)
    return sure


def confidence_counts(
    truth: LabelMap, predicted: LabelMap, confidence: Confidence, classes: int
) -> tuple[Counts, int]:
    """Count one pair of maps of class positions [H, W] by predicted class and confidence.

    Returns right pixels and all pixels [2, C, 256], and how many have truth but no prediction.
    """
    none = truth.dtype.type(np.iinfo(truth.dtype).max)
    void = truth == none
    levels: NDArray[Any] = confidence.astype(truth.dtype, copy=False)
    # All bits are set where a pixel is left out: no class.
    hidden: LabelMap = np.negative(void.astype(truth.dtype))
    wrong: LabelMap = np.negative((truth != predicted).astype(truth.dtype))
    kept = (predicted | wrong, predicted | hidden)
    counts = np.stack([joint_histogram(p, levels, (classes, _LEVELS)) for p in kept])
    return counts, int(void.size - np.count_nonzero(void) - counts[_ALL].sum())


# --- figures from counts by level -----------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """Pixels in bins of confidence."""

    right: Counts
    """[B]."""
    pixels: Counts
    summed: Floats
    """Sum of the confidence of each bin's pixels, [B]."""
    confidence: Floats = field(init=False)
    accuracy: Floats = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "confidence", ratio(self.summed, self.pixels))
        object.__setattr__(self, "accuracy", ratio(self.right, self.pixels))

    @classmethod
    def of(cls, levels: Counts, bins: int) -> Self:
        """Return the bins of right pixels and all pixels by level [2, 256]."""
        # Whole numbers: (low, high] is exact at the edges, as level / 255 is not.
        place = np.maximum(0, -(-np.arange(_LEVELS) * bins // 255) - 1)
        right, pixels = (np.bincount(place, n, bins).astype(np.int64) for n in levels)
        total = np.bincount(place, levels[_ALL] * np.arange(_LEVELS), bins)
        return cls(right, pixels, total / 255)

    @property
    def mean_confidence(self) -> float:
        """Mean confidence of all pixels, 0..1."""
        pixels = int(self.pixels.sum())
        return float(self.summed.sum()) / pixels if pixels else math.nan

    @property
    def mean_accuracy(self) -> float:
        """Share of the pixels that are right."""
        pixels = int(self.pixels.sum())
        return int(self.right.sum()) / pixels if pixels else math.nan

    @property
    def ece(self) -> float:
        """Mean distance of accuracy and confidence, weighted by pixels."""
        pixels = int(self.pixels.sum())
        return float(np.abs(self.right - self.summed).sum()) / pixels if pixels else math.nan

    @property
    def mce(self) -> float:
        """The greatest distance of a bin that holds pixels."""
        gaps = np.abs(self.accuracy - self.confidence)[self.pixels > 0]
        return float(gaps.max()) if gaps.size else math.nan

    def rows(self) -> list[dict[str, Any]]:
        """Return the bins, lowest first."""
        bins = len(self.pixels)
        return [
            {
                "low": n / bins,
                "high": (n + 1) / bins,
                "pixels": int(self.pixels[n]),
                "confidence": known(float(self.confidence[n])),
                "accuracy": known(float(self.accuracy[n])),
            }
            for n in range(bins)
        ]


def risk_coverage(levels: Counts) -> list[dict[str, float]]:
    """Return coverage and risk at each level that pixels have as the least, surest first.

    `threshold` is the level's confidence: what `--min-confidence` would keep.
    """
    pixels = np.cumsum(levels[_ALL, ::-1])
    errors = np.cumsum((levels[_ALL] - levels[_RIGHT])[::-1])
    at = np.flatnonzero(levels[_ALL, ::-1])
    return [
        {
            "threshold": float(_P[::-1][n]),
            "coverage": float(pixels[n] / pixels[-1]),
            "risk": float(errors[n] / pixels[n]),
        }
        for n in at
    ]


def aurc(levels: Counts) -> float:
    """Return the area under the risk-coverage curve of right and all pixels by level [2, 256].

    The mean over n = 1..N of the expected share of errors among the n surest pixels, where those of
    one level come in random order. nan without pixels.
    """
    from scipy.special import digamma

    at = np.flatnonzero(levels[_ALL])[::-1]
    if not at.size:
        return math.nan
    pixels = levels[_ALL, at].astype(np.float64)
    errors = pixels - levels[_RIGHT, at]
    before = np.cumsum(pixels) - pixels
    wrong = np.cumsum(errors) - errors
    rate = errors / pixels
    # The sum over i = 1..n of (wrong + rate i) / (before + i); sums of 1 / k are digammas.
    inverse = digamma(before + pixels + 1) - digamma(before + 1)
    total = rate * pixels + (wrong - rate * before) * inverse
    return float(total.sum() / pixels.sum())
