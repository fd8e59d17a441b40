"""The scores of many sums of tallies at once: int64 [..., 3, C], each the pixels of some images.

The same definitions as `confusion.Tally`, which scores one; nan is a share of nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.metrics.tally_measure import INTERSECTION, PREDICTED, TRUTH

if TYPE_CHECKING:
    from pipeline.metrics.confusion import Counts, Floats

HEADLINE: Final = ("miou", "pixel_accuracy", "mean_accuracy", "fwiou")
"""The scores of all classes together."""


def iou(sums: Counts) -> Floats:
    """Return intersection over union of each class, [..., C]."""
    right = sums[..., INTERSECTION, :]
    return _ratio(right, sums[..., TRUTH, :] + sums[..., PREDICTED, :] - right)


def miou(sums: Counts) -> Floats:
    """Return the mean IoU over the classes that truth or prediction holds, [...]."""
    return known_mean(iou(sums))


def pixel_accuracy(sums: Counts) -> Floats:
    """Return the share of pixels that are right, [...]."""
    return _ratio(sums[..., INTERSECTION, :].sum(axis=-1), sums[..., TRUTH, :].sum(axis=-1))


def headline(sums: Counts) -> dict[str, Floats]:
    """Return the scores of `HEADLINE`, each [...]."""
    ious, truth = iou(sums), sums[..., TRUTH, :]
    weighted = np.where(truth > 0, ious, 0.0) * truth
    return {
        "miou": known_mean(ious),
        "pixel_accuracy": pixel_accuracy(sums),
        "mean_accuracy": known_mean(_ratio(sums[..., INTERSECTION, :], truth)),
        "fwiou": _ratio(weighted.sum(axis=-1), truth.sum(axis=-1)),
    }


def known_mean(values: Floats) -> Floats:
    """Return the mean over the last axis of what is not nan."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0.0).sum(axis=-1), known.sum(axis=-1))


def plain(value: float) -> float | None:
    """Return a score for JSON: None stands for a share of nothing."""
    return None if math.isnan(value) else float(value)


def _ratio(part: Counts | Floats, whole: Counts) -> Floats:
    out: Floats = np.full(np.shape(whole), np.nan)
    np.divide(part, whole, out=out, where=whole > 0)
    return out
