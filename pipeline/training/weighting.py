"""The weight of each class in a loss, from how often the training labels show it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Weighting = Literal["none", "median-frequency", "enet", "inverse-sqrt", "effective-number"]
_ENET_C: Final = 1.02  # ENet, section 5: 1 / ln(1.02 + p), at most 50 times the least
_BETA: Final = 1 - 1e-8  # pixels are many and alike: a class is new up to some 1 / (1 - beta)


def class_weights(
    how: Weighting, pixels: NDArray[np.int64], home: NDArray[np.int64]
) -> NDArray[np.float32] | None:
    """Return the weight of each class, None for equal ones; absent classes weigh 1.

    `pixels` counts each class, `home` the valid pixels of the images that show it.

    "median-frequency" is SegNet's; "enet" is 1 / ln(1.02 + share); "inverse-sqrt" is the mildest,
    the inverse root of the share, with mean 1; "effective-number" is (1 - b) / (1 - b^n) of Cui et
    al. 2019 (1901.05555) with b = 1 - 1e-8, with mean 1.

    >>> counts = np.array([300, 100, 0])
    >>> class_weights("median-frequency", counts, np.array([400, 400, 0])).round(2).tolist()
    [0.67, 2.0, 1.0]
    """
    if how == "none" or not pixels.sum():
        return None
    if how == "enet":
        weights = 1 / np.log(_ENET_C + pixels / pixels.sum())
    elif how == "median-frequency":
        frequency = pixels / np.maximum(home, 1)
        weights = np.median(frequency[pixels > 0]) / np.maximum(frequency, 1e-12)
    else:
        seen = np.maximum(pixels, 1)
        if how == "inverse-sqrt":
            weights = 1 / np.sqrt(seen / pixels.sum())
        else:
            weights = (1 - _BETA) / -np.expm1(seen * np.log(_BETA))
        weights /= weights[pixels > 0].mean()
    return np.where(pixels > 0, weights, 1.0).astype(np.float32)
