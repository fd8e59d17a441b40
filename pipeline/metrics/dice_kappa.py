"""Further scores of classes that follow from their pixels alone: Dice, Cohen's kappa.

All are of the sums over the images, as mIoU is. Frequency-weighted IoU and mean accuracy (which
scikit-learn calls balanced accuracy) are properties of the `Tally` itself.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pipeline.metrics.shares import known, mean, ratio

if TYPE_CHECKING:
    from pipeline.metrics.confusion import Floats, Tally


def dice(tally: Tally) -> Floats:
    """Return 2 |A and B| / (|A| + |B|) of each class, [C], 0..1; nan where neither holds a pixel.

    The same as F1, the harmonic mean of precision and recall (Dice 1945).
    """
    return ratio(2 * tally.intersection, tally.truth + tally.predicted)


def mean_dice(tally: Tally) -> float:
    """Return the mean Dice of the classes that truth or prediction holds; nan without any."""
    return mean(dice(tally))


def total_dice(tally: Tally) -> float:
    """Return the Dice of all classes' pixels together (micro F1).

    Equal to the pixel accuracy where every pixel is given a label; above it where some are not.
    """
    total = int(tally.truth.sum() + tally.predicted.sum())
    return 2 * tally.correct / total if total else math.nan


def kappa(tally: Tally) -> float:
    """Return the agreement beyond that of chance, -1..1 (Cohen 1960).

    Pixels without a label are disagreements: a category that truth never uses. nan without pixels,
    and where both sides hold one and the same class only, so that chance explains all.
    """
    pixels = tally.pixels
    # Whole numbers of Python: products of pixel counts don't fit 64 bits.
    rows, columns = tally.truth.tolist(), tally.predicted.tolist()
    by_chance = sum(t * p for t, p in zip(rows, columns, strict=True))
    rest = pixels * pixels - by_chance
    return (tally.correct * pixels - by_chance) / rest if rest else math.nan


def further_figures(tally: Tally) -> dict[str, Any]:
    """Return the scores of all classes together for `report.json`."""
    return {
        "dice": known(total_dice(tally)),
        "mean_dice": known(mean_dice(tally)),
        "kappa": known(kappa(tally)),
    }
