"""From counts by confidence to the share that is right: monotone maps, and one temperature.

A store keeps the confidence of the best class alone, so temperature scaling (Guo et al., ICML 2017)
can't be done as it is defined, on all logits: `temperature` treats the rest as one class. The map
of each class is isotonic (Zadrozny and Elkan, KDD 2002), which assumes no form but that more
confidence is never worse.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.metrics.calibration import Reliability

if TYPE_CHECKING:
    from pipeline.metrics.confusion import Counts, Floats

_PRIOR: Final = 100.0
"""Pixels a level that say what all classes do: they decide for a class that is hardly there."""
_BINS: Final = 15
_P: Final = np.arange(256) / 255


def isotonic(right: Floats, pixels: Floats) -> Floats:
    """Return the non-decreasing map [256] nearest to right / pixels, weighted by pixels."""
    from scipy.optimize import isotonic_regression

    fitted = isotonic_regression(right / pixels, weights=pixels)
    return np.clip(np.asarray(fitted.x, np.float64), 0.0, 1.0)


def maps(right: Counts, pixels: Counts) -> Floats:
    """Return the share of right pixels by class and confidence [C, 256], of counts [C, 256].

    A class leans on all classes' map by some hundred pixels a level, and that one on the confidence
    itself.
    """
    every = isotonic(right.sum(axis=0) + _PRIOR * _P, pixels.sum(axis=0) + _PRIOR)
    rows = zip(right, pixels, strict=True)
    return np.stack([isotonic(r + _PRIOR * every, n + _PRIOR) for r, n in rows])


def temperature(right: Counts, pixels: Counts) -> float:
    """Return the T that makes q ** (1/T) / (q ** (1/T) + (1 - q) ** (1/T)) most likely.

    q is the confidence. T is above 1 where the model is over-sure; nan without pixels.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_expit

    n, k = (counts.sum(axis=0).astype(np.float64) for counts in (pixels, right))
    if not n.sum():
        return math.nan
    p = np.clip(_P, 0.5 / 255, 1 - 0.5 / 255)
    logit = np.log(p / (1 - p))

    def loss(log_t: float) -> float:
        x = logit / math.exp(log_t)
        return -float((k * log_expit(x) + (n - k) * log_expit(-x)).sum() / n.sum())

    found = minimize_scalar(loss, bounds=(-2.5, 2.5), method="bounded")
    return math.exp(float(found.x))


def calibration_error(folds: Counts) -> tuple[float, float]:
    """Return the expected calibration error before and after, of counts [2, 2, C, 256].

    After: each half of the images by the maps that the other half gave. 15 bins; nan for none.
    """
    total = folds.sum(axis=(0, 2))
    before = Reliability.of(total, _BINS).ece
    right, pixels, summed = (np.zeros(_BINS) for _ in range(3))
    for mine, other in ((0, 1), (1, 0)):
        p = maps(*folds[other])
        place = np.minimum((p * _BINS).astype(np.int64), _BINS - 1).ravel()
        k, n = (counts.ravel().astype(np.float64) for counts in folds[mine])
        right += np.bincount(place, k, _BINS)
        pixels += np.bincount(place, n, _BINS)
        summed += np.bincount(place, n * p.ravel(), _BINS)
    whole = float(pixels.sum())
    after = float(np.abs(right - summed).sum()) / whole if whole else math.nan
    return before, after


def wrong_shares(confusion: Counts) -> Floats:
    """Return where wrong pixels belong: the share of each true class among those of a prediction.

    `confusion` [C, C] counts by predicted and true class. A row sums to 1, or to 0 for a class
    whose every pixel was right; the diagonal is 0.
    """
    wrong = confusion.astype(np.float64)
    np.fill_diagonal(wrong, 0.0)
    total = wrong.sum(axis=1, keepdims=True)
    shares: Floats = np.divide(wrong, total, out=np.zeros_like(wrong), where=total > 0)
    return shares
