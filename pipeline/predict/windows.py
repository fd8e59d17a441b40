"""Sliding windows with overlap over an image, their logits blended into one map.

Each window's logits are weighted by a raised cosine that falls towards the window's border, where a
network has seen least context. The weights are normalised beforehand, so that a pixel that one
window covers keeps that window's logits to the bit.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_FLOOR: Final = 0.01
"""Least weight of a pixel: at an image's border it may be the only one, and is divided by."""


def starts(length: int, window: int, overlap: float) -> list[int]:
    """Return where windows begin along one axis; the last one is shifted inwards.

    `overlap` is the share of a window that it has in common with the next, 0 or more, below 1.

    >>> starts(10, 4, 0.5), starts(10, 4, 0), starts(3, 4, 0)
    ([0, 2, 4, 6], [0, 4, 6], [0])
    """
    if length <= window:
        return [0]
    stride = max(1, int(window * (1 - overlap)))
    count = math.ceil((length - window) / stride) + 1
    return [min(i * stride, length - window) for i in range(count)]


def shares(length: int, window: int, begins: list[int]) -> Tensor:
    """Return each window's weights along one axis, float32 [windows, window].

    The weights of all windows that cover a pixel add up to 1.
    """
    angle = (torch.arange(window, dtype=torch.float64) + 0.5) * (math.pi / window)
    taper = angle.sin().square().clamp_min(_FLOOR)
    total = torch.zeros(length, dtype=torch.float64)
    for begin in begins:
        total[begin : begin + window] += taper
    return torch.stack([taper / total[b : b + window] for b in begins]).float()


def blended(
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    window: tuple[int, int],
    overlap: float,
    *,
    batch: int,
    rows: tuple[int, int] | None = None,
) -> Tensor:
    """Return blended logits float32 [N, C, rows, W] of images [N, 3, H, W].

    `forward` turns windows [n, 3, *window], n up to `batch`, into logits [n, C, *window]. `rows` is
    a range of the image's rows: only the windows that touch it are run, and only it is held. An
    image smaller than the window is padded up to it, its border repeated below and right.
    """
    width, (first, last) = images.shape[3], rows or (0, images.shape[2])
    images = _grown(images, window)
    axes = [(n, w, starts(n, w, overlap)) for n, w in zip(images.shape[2:], window, strict=True)]
    high, wide = (shares(*axis).to(images.device) for axis in axes)
    places = [
        (n, (i, y), (j, x))
        for n in range(len(images))
        for i, y in enumerate(axes[0][2])
        if y < last and y + window[0] > first
        for j, x in enumerate(axes[1][2])
    ]
    total: Tensor | None = None
    for begin in range(0, len(places), batch):
        some = places[begin : begin + batch]
        cut = [images[n, :, y : y + window[0], x : x + window[1]] for n, (_, y), (_, x) in some]
        logits = forward(torch.stack(cut)).float()
        if total is None:
            shape = (len(images), logits.shape[1], last - first, images.shape[3])
            total = logits.new_zeros(shape)
        for one, (n, (i, y), (j, x)) in zip(logits, some, strict=True):
            top, end = max(y, first), min(y + window[0], last)
            weighted = one * high[i, :, None] * wide[j]
            total[n, :, top - first : end - first, x : x + window[1]] += weighted[
                :, top - y : end - y
            ]
    assert total is not None, "every row is covered by a window"
    return total[..., :width]


def _grown(images: Tensor, window: tuple[int, int]) -> Tensor:
    """Pad images that are smaller than the window; others come back as they are."""
    down, right = (max(0, w - n) for n, w in zip(images.shape[2:], window, strict=True))
    if not (down or right):
        return images
    return F.pad(images.float(), (0, right, 0, down), mode="replicate")
