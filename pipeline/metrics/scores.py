"""Further scores of classes that follow from their pixels alone: Dice, Cohen's kappa.

All are of the sums over the images, as mIoU is. Frequency-weighted IoU and mean accuracy (which
scikit-learn calls balanced accuracy) are properties of the `Tally` itself.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.metrics.confusion import Counts, Floats, Tally


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
    """Return these scores for `report.json`; `classes` holds each class's Dice, in order."""
    return {
        "dice": known(total_dice(tally)),
        "mean_dice": known(mean_dice(tally)),
        "kappa": known(kappa(tally)),
        "classes": [known(value) for value in dice(tally).tolist()],
    }


# --- shares of counts -----------------------------------------------------------------------------


def ratio(part: Counts | Floats, whole: Counts | Floats) -> Floats:
    """Divide, with nan for shares of nothing."""
    out: Floats = np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan)
    np.divide(part, whole, out=out, where=whole > 0)
    return out


def mean(values: Floats) -> float:
    """Return the mean of the values that are known; nan without any."""
    found = values[~np.isnan(values)]
    return float(found.mean()) if found.size else math.nan


def known(value: float) -> float | None:
    """Return the value as JSON may hold it: None for nan."""
    return None if math.isnan(value) else float(value)


def by_name(names: Sequence[str], **columns: Floats | Counts) -> dict[str, dict[str, Any]]:
    """Return each class's figures under its name; the columns are [C], None stands for nan."""
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    told = ([known(v) if isinstance(v, float) else v for v in row] for row in rows)
    return {
        name: dict(zip(columns, row, strict=True)) for name, row in zip(names, told, strict=True)
    }
