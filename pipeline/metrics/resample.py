"""What is random about an image, drawn from a hash of its identity, and sums weighted by it.

Poisson bootstrap (Chamandy et al. 2012): instead of drawing n images of n, each image enters each
replicate Poisson(1) times. The draws come from a counter-based generator (SplitMix64, Steele et al.
2014) seeded by the image's key, so that they depend on nothing else: one pass over the images in
any order and any chunks gives the same sums exactly, and two predictions of the same images are
resampled alike.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.metrics.confusion import Counts, Floats

Keys: TypeAlias = NDArray[np.uint64]

_BLOCK: Final = 256
"""Images whose weights lie in memory at once; their sums are exact in float64 (below 2**53)."""
_ONE_THREAD: Final = 1 << 18
"""Multiplications up to which OpenBLAS starts no threads for a product."""
_WEIGHTS: Final = 0x5E6D_311B_0071_57A9
_SWAPS: Final = 0x0DDB_1A5E_D5AB_0071
_GOLDEN: Final = 0x9E37_79B9_7F4A_7C15


def mixed(states: Keys) -> Keys:
    """Return SplitMix64's output of each state, in place."""
    states ^= states >> np.uint64(30)
    states *= np.uint64(0xBF58_476D_1CE4_E5B9)
    states ^= states >> np.uint64(27)
    states *= np.uint64(0x94D0_49BB_1331_11EB)
    states ^= states >> np.uint64(31)
    return states


def draws(keys: Keys, words: int, seed: int) -> Keys:
    """Return `words` random 64-bit words of each key: uint64 [n, words]."""
    with np.errstate(over="ignore"):
        first = mixed(keys ^ np.uint64(seed))
        counters = np.arange(1, words + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
        return mixed(first[:, None] + counters)


@cache
def _thresholds() -> tuple[int, ...]:
    """Return, for each k from 1, the least 16-bit draw that means a weight of k or more."""
    below, term, found = 0.0, math.exp(-1), []
    for k in range(1, 9):  # nine and more: once in a million draws, less than a 16-bit step
        below, term = below + term, term / k
        found.append(round(below * 65536))
    return tuple(t for t in found if t < 65536)


def poisson_weights(keys: Keys, replicates: int) -> NDArray[np.uint8]:
    """Return how often each image enters each replicate: Poisson(1), uint8 [n, replicates]."""
    words = draws(keys, -(-replicates // 4), _WEIGHTS)
    samples = words.view(np.uint16)[:, :replicates]
    # Eight comparisons in vector registers are faster than a table of 65,536.
    weights = np.zeros(samples.shape, np.uint8)
    for threshold in _thresholds():
        weights += (samples >= np.uint16(threshold)).view(np.uint8)
    return weights


def swap_signs(keys: Keys, rounds: int) -> NDArray[np.int8]:
    """Return -1 where a round swaps the two predictions of an image, else 1: int8 [n, rounds]."""
    words = draws(keys, -(-rounds // 64), _SWAPS)
    bits = np.unpackbits(words.view(np.uint8), axis=1, count=rounds)
    return 1 - 2 * bits.view(np.int8)


def weighted_sums(weights: NDArray[np.uint8] | NDArray[np.int8], counts: Counts) -> Counts:
    """Sum images' counts [n, ...] under each column of weights [n, B]: int64 [B, ...], exactly."""
    images, columns = weights.shape
    flat = counts.reshape(images, math.prod(counts.shape[1:]))
    held = np.flatnonzero(flat.any(axis=0))  # most images hold few of 150 classes
    sums = np.zeros((columns, flat.shape[1]), np.int64)
    sums[:, held] = _product(weights.T.astype(np.float64), flat[:, held].astype(np.float64))
    return sums.reshape(columns, *counts.shape[1:])


def _product(weights: Floats, counts: Floats) -> Floats:
    """Return weights [B, n] @ counts [n, K], in pieces that BLAS takes on one thread.

    Its threads wait for each other by spinning: where workers keep all cores busy, a product that
    it splits up takes ten times as long.
    """
    rows, images = weights.shape
    piece = max(1, min(rows, _ONE_THREAD // max(1, counts.size)))
    whole = rows - rows % piece
    products = np.empty((rows, counts.shape[1]))
    stacked = np.ascontiguousarray(weights[:whole]).reshape(whole // piece, piece, images)
    products[:whole] = (stacked @ counts).reshape(whole, counts.shape[1])
    products[whole:] = weights[whole:] @ counts
    return products


def blocks(images: int) -> Iterator[slice]:
    """Cut a chunk's images into parts whose weights fit in memory."""
    for start in range(0, images, _BLOCK):
        yield slice(start, start + _BLOCK)


def interval(point: float, replicates: Floats, units: int, level: float) -> list[float] | None:
    """Return the bounds that hold the true value in `level` of all samples; None if unknown.

    The bias-corrected percentile interval (Efron 1987, without acceleration), widened for few units
    as a t interval is beside a normal one (Hesterberg 2015, section 5.3): a plain percentile
    interval of 30 images holds the true mIoU nine times of ten where it promises nineteen of
    twenty. Replicates that are nan, as those without a pixel of a class, are left out.
    """
    known = replicates[~np.isnan(replicates)]
    if units < 2 or math.isnan(point) or not len(known):
        return None
    from scipy.special import ndtr, ndtri, stdtrit

    # Replicates that equal the point, of which a class in few images has many, lie on both sides.
    below = float((known < point).mean() + (known == point).mean() / 2)
    edge = 1 / (2 * len(known))
    shift = 2 * ndtri(min(max(below, edge), 1 - edge))
    reach = math.sqrt(units / (units - 1)) * stdtrit(units - 1, (1 + level) / 2)
    low, high = np.quantile(known, [ndtr(shift - reach), ndtr(shift + reach)])
    # A heavily shifted percentile may pass the point by: an interval holds its own estimate.
    return [min(float(low), point), max(float(high), point)]
