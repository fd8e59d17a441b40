"""How precise a class's labels are at least, from held-out pixels that are not independent.

Three lower bounds of the precision of the pixels at or above each level, one-sided:

- `wilson`: Wilson's score bound (1927), each pixel for itself. Over-sure by far: neighbouring
  pixels are right or wrong together.
- `design`: the same with the effective number of pixels, n over the design effect, that the spread
  between images gives (linearised variance of a ratio; Kish 1965), and Student's t for the number
  of images (Korn and Graubard, Survey Methodology 1998).
- `bootstrap`: the quantile of Poisson bootstrap replicates, images drawn whole.

All are of one threshold that was fixed beforehand; the smallest of 256 levels that passes is chosen
with a little luck. Frames of one drive are alike too: what is withheld should be whole sequences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, get_args

import numpy as np

from pipeline.metrics.scores import ratio
from pipeline.pseudo.held_out import MIXED, PIXELS_SQUARED, RIGHT_SQUARED, at_or_above

if TYPE_CHECKING:
    from pipeline.metrics.confusion import Counts, Floats
    from pipeline.pseudo.held_out import HeldOut

Bound = Literal["design", "wilson", "bootstrap"]
BOUNDS: Final = get_args(Bound)
REPLICATES: Final = 200
"""Replicates of the bootstrap: enough for a 5 % quantile, and 200 MB for 100 classes."""
_FEWEST_IMAGES: Final = 2


def wilson_lower(right: Floats, pixels: Floats, z: float | Floats) -> Floats:
    """Return the lower end of Wilson's score interval of right / pixels; 0 without pixels.

    >>> wilson_lower(np.array([90.0]), np.array([100.0]), 1.645).round(4).tolist()
    [0.8379]
    """
    n = np.where(pixels > 0, pixels, 1.0)
    p, square = right / n, np.square(z)
    centre = p + square / (2 * n)
    reach = z * np.sqrt(p * (1 - p) / n + square / (4 * n * n))
    lower: Floats = np.where(pixels > 0, (centre - reach) / (1 + square / n), 0.0)
    return np.clip(lower, 0.0, 1.0)


def design_effect(held: HeldOut) -> Floats:
    """Return how many pixels count for one, at or above each level: [C, 256], 1 or more.

    Where every pixel is right, or every one wrong, nothing varies: there the effect of the next
    lower level counts, and where there is none, that of images whose pixels are all alike.
    """
    right, pixels = (at_or_above(c).astype(np.float64) for c in (held.right, held.pixels))
    p, m = ratio(right, pixels), held.holding
    spread = (
        held.squares[RIGHT_SQUARED]
        - 2 * p * held.squares[MIXED]
        + p * p * held.squares[PIXELS_SQUARED]
    )
    between = np.maximum(spread, 0) * ratio(m.astype(np.float64), (m - 1).astype(np.float64))
    effect = ratio(between, p * (1 - p) * pixels)
    effect = np.where((right == 0) | (right == pixels), np.nan, effect)
    alike = ratio(held.squares[PIXELS_SQUARED], pixels)
    for level in range(effect.shape[1]):
        before = effect[:, level - 1] if level else alike[:, 0]
        unknown = np.isnan(effect[:, level])
        effect[unknown, level] = before[unknown]
    return np.maximum(np.nan_to_num(effect, nan=1.0), 1.0)


def lower_bounds(held: HeldOut, bound: Bound, level: float = 0.95) -> Floats:
    """Return a lower bound of the precision at or above each level: [C, 256], 0 where unknown.

    `level` is the share of samples in which the bound holds.
    """
    from scipy.special import ndtri, stdtrit

    right, pixels = (at_or_above(c).astype(np.float64) for c in (held.right, held.pixels))
    z = float(ndtri(level))
    if bound == "wilson":
        return wilson_lower(right, pixels, z)
    if bound == "bootstrap":
        return _quantiles(held, level)
    images = np.maximum(held.holding, _FEWEST_IMAGES)
    t = stdtrit(images - 1, level)
    effective = pixels / design_effect(held) * np.square(z / t)
    lower = wilson_lower(ratio(right, pixels) * effective, effective, z)
    return np.where(held.holding >= _FEWEST_IMAGES, np.nan_to_num(lower), 0.0)


def _quantiles(held: HeldOut, level: float) -> Floats:
    if held.replicates is None:
        raise ValueError("the held-out sums were gathered without replicates")
    out = np.zeros(held.holding.shape)
    for c in range(len(out)):
        shares = ratio(*held.replicates[:, :, c].transpose(1, 0, 2))
        known = held.holding[c] >= _FEWEST_IMAGES
        if known.any():
            out[c, known] = np.nanquantile(shares[:, known], 1 - level, axis=0)
    return out


def smallest_level(lower: Floats, pixels: Counts, target: float) -> list[int | None]:
    """Return each class's least level whose bound reaches the target, None where none does."""
    there = at_or_above(pixels) > 0
    reached = (lower >= target) & there
    return [int(np.argmax(row)) if row.any() else None for row in reached]
