"""The scores of many sums of tallies at once: int64 [..., 3, C], each the pixels of some images.

The one place that defines them; `confusion.Tally` is one such sum. nan is a share of nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.metrics.shares import means, ratio
from pipeline.metrics.tally_measure import INTERSECTION, PREDICTED, TRUTH

if TYPE_CHECKING:
    from pipeline.metrics.confusion import Counts, Floats

HEADLINE: Final = ("miou", "pixel_accuracy", "mean_accuracy", "fwiou")
"""The scores of all classes together."""


def iou(sums: Counts) -> Floats:
    """Return intersection over union of each class, [..., C]."""
    right = sums[..., INTERSECTION, :]
    return ratio(right, sums[..., TRUTH, :] + sums[..., PREDICTED, :] - right)


def miou(sums: Counts) -> Floats:
    """Return the mean IoU over the classes that truth or prediction holds, [...]."""
    return means(iou(sums))


def pixel_accuracy(sums: Counts) -> Floats:
    """Return the share of pixels that are right, [...]."""
    return ratio(sums[..., INTERSECTION, :].sum(axis=-1), sums[..., TRUTH, :].sum(axis=-1))


def fwiou(sums: Counts) -> Floats:
    """Return the mean IoU, weighted by the classes' shares of the truth's pixels, [...]."""
    truth = sums[..., TRUTH, :]
    weighted = np.where(truth > 0, iou(sums), 0.0) * truth
    return ratio(weighted.sum(axis=-1), truth.sum(axis=-1))


def headline(sums: Counts) -> dict[str, Floats]:
    """Return the scores of `HEADLINE`, each [...]."""
    return {
        "miou": miou(sums),
        "pixel_accuracy": pixel_accuracy(sums),
        "mean_accuracy": means(ratio(sums[..., INTERSECTION, :], sums[..., TRUTH, :])),
        "fwiou": fwiou(sums),
    }
