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


class Strip:
    """Blended logits of images [N, 3, H, W], asked for from top to bottom.

    `forward` turns windows [n, 3, *window], n up to `batch`, into logits [n, C, *window]. Each
    window is run once; besides the rows asked for, those of one window's height are held. An image
    smaller than the window is padded up to it, its border repeated below and right. `mirrored`
    shows the network the mirrored images, and gives logits of those.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        images: Tensor,
        window: tuple[int, int],
        overlap: float,
        *,
        batch: int,
        mirrored: bool = False,
    ) -> None:
        self._forward, self._batch, self._width = forward, batch, images.shape[3]
        self._images = _grown(images.flip(3), window) if mirrored else _grown(images, window)
        self._window = window
        height, width = self._images.shape[2:]
        self._down = starts(height, window[0], overlap)
        self._across = starts(width, window[1], overlap)
        device = images.device
        self._high = shares(height, window[0], self._down).to(device)
        self._wide = shares(width, window[1], self._across).to(device)
        self._row = 0  # the next row of windows
        self._held: Tensor | None = None
        self._first = 0  # the image row that `_held` begins with

    def rows(self, first: int, last: int) -> Tensor:
        """Return logits float32 [N, C, last - first, W]; `first` never goes back."""
        assert first >= self._first, "rows are asked for from top to bottom"
        while self._row < len(self._down) and self._down[self._row] < last:
            self._drop(min(first, self._down[self._row]))
            self._run()
        self._drop(first)
        assert self._held is not None, "the first window begins at row 0"
        return self._held[:, :, : last - first, : self._width]

    def _drop(self, first: int) -> None:
        """Let go of the rows before `first`."""
        if self._held is not None:
            self._held = self._held[:, :, first - self._first :]
            self._first = first

    def _run(self) -> None:
        """Run the next row of windows and add it to what is held."""
        y, high = self._down[self._row], self._high[self._row, :, None]
        self._row += 1
        places = [(n, i, x) for n in range(len(self._images)) for i, x in enumerate(self._across)]
        for begin in range(0, len(places), self._batch):
            some = places[begin : begin + self._batch]
            cut = [self._images[n, :, y : y + self._window[0], x : x + self._window[1]]
                   for n, _, x in some]  # fmt: skip
            logits = self._forward(torch.stack(cut)).float()
            held = self._grow(logits, y + self._window[0])
            for one, (n, i, x) in zip(logits, some, strict=True):
                at = held[n, :, y - self._first :, x : x + self._window[1]]
                at += one * high * self._wide[i]

    def _grow(self, logits: Tensor, last: int) -> Tensor:
        """Return what is held with rows of zeros added, up to the image row `last`."""
        have = self._first + (0 if self._held is None else self._held.shape[2])
        if self._held is None or have < last:
            shape = (len(self._images), logits.shape[1], last - have, self._images.shape[3])
            more = logits.new_zeros(shape)
            self._held = more if self._held is None else torch.cat([self._held, more], dim=2)
        return self._held


def _grown(images: Tensor, window: tuple[int, int]) -> Tensor:
    """Pad images that are smaller than the window; others come back as they are."""
    down, right = (max(0, w - n) for n, w in zip(images.shape[2:], window, strict=True))
    if not (down or right):
        return images
    return F.pad(images.float(), (0, right, 0, down), mode="replicate")
