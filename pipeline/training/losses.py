"""Losses over pixels that have a class, and the class weights that go into them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 - its name everywhere

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

Weighting = Literal["none", "median-frequency", "enet", "inverse-sqrt"]
_ENET_C: Final = 1.02  # ENet, section 5: 1 / ln(1.02 + p), at most 50 times the least


def class_weights(
    how: Weighting, pixels: NDArray[np.int64], home: NDArray[np.int64]
) -> NDArray[np.float32] | None:
    """Return the weight of each class, None for equal ones; absent classes weigh 1.

    `pixels` counts each class, `home` the valid pixels of the images that show it.

    "median-frequency" is SegNet's; "enet" is 1 / ln(1.02 + share); "inverse-sqrt" is the mildest,
    the inverse root of the share, with mean 1.

    >>> counts = np.array([300, 100, 0])
    >>> class_weights("median-frequency", counts, np.array([400, 400, 0])).round(2).tolist()
    [0.67, 2.0, 1.0]
    """
    if how == "none" or not pixels.sum():
        return None
    if how == "enet":
        weights = 1 / np.log(_ENET_C + pixels / pixels.sum())
    elif how == "inverse-sqrt":
        weights = 1 / np.sqrt(np.maximum(pixels, 1) / pixels.sum())
        weights /= weights[pixels > 0].mean()
    else:
        frequency = pixels / np.maximum(home, 1)
        weights = np.median(frequency[pixels > 0]) / np.maximum(frequency, 1e-12)
    return np.where(pixels > 0, weights, 1.0).astype(np.float32)


def cross_entropy(logits: Tensor, labels: Tensor, void: int, weights: Tensor | None) -> Tensor:
    """Return the weighted mean over the batch's pixels that are not void; 0 where all are.

    Logits [N, C, h, w] are brought to the size of labels [N, H, W] first.
    """
    labels = labels.long()
    logits = logits.float()
    if logits.shape[-2:] != labels.shape[-2:]:
        logits = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(logits, labels, weights, ignore_index=void, reduction="sum")
    valid = labels != void
    if weights is None:
        mass = valid.sum()
    else:
        table = torch.zeros(void + 1, device=labels.device)
        table[: len(weights)] = weights
        mass = table[labels].sum()
    return total / mass.clamp_min(1e-6)
