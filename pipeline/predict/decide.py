"""From logits to each pixel's best class and its probability, in memory that is bounded.

Logits at an image's size take 4 C bytes a pixel: 60 GB for 150 classes of 10,000 x 10,000 pixels.
So they are made a few images, or a few rows of one, at a time, and only bytes are kept of them. A
row's logits are the same in whatever band it is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Frame:
    """Where an image lies in the model's input; heights and widths in pixels.

    The image, `size` large, was resized to `inside` and padded below and right to `seen`.
    """

    seen: tuple[int, int]
    inside: tuple[int, int]
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Cut:
    """Pixels whose best class c is less probable than `least[c]` [C] get the id `void` []."""

    least: Tensor
    void: Tensor


class Decided(NamedTuple):
    """Ids [N, H, W] of the best classes, and uint8 maps [N, H, W] of their softmax.

    `confidence` is round(255 p); `margin` is round(255 (p - q)), q of the second best class, where
    it was asked for.
    """

    ids: Tensor
    confidence: Tensor
    margin: Tensor | None = None

    @classmethod
    def empty(cls, shape: tuple[int, int, int], ids: Tensor, *, margin: bool) -> Decided:
        """Return maps to fill in, with ids of the type of `ids`, where those are."""
        best = torch.empty(shape, dtype=ids.dtype, device=ids.device)
        sure, ahead = (torch.empty(shape, dtype=torch.uint8, device=ids.device) for _ in range(2))
        return cls(best, sure, ahead if margin else None)


def decide(
    logits: Tensor,
    frame: Frame,
    ids: Tensor,
    most_bytes: int,
    cut: Cut | None = None,
    *,
    margin: bool = False,
) -> Decided:
    """Return each pixel's best class, its probability, and with `margin` its lead.

    `logits` [N, C, h, w] cover the input; channel c is the class `ids[c]`. At the images' size
    at most about `most_bytes` of logits are held at a time. `cut` leaves confidence and margin as
    they are.
    """
    count, (height, width) = len(logits), frame.size
    found = Decided.empty((count, height, width), ids, margin=margin)
    rows = max(1, most_bytes // (4 * logits.shape[1] * width))
    images = max(1, rows // height)
    for first in range(0, count, images):
        some = slice(first, first + images)
        for at, part in bands(logits[some], frame, rows):
            top, index = part.max(dim=1)
            # p of the best class is 1 / sum(exp(logit - top)): no full softmax is kept.
            relative = (part - top.unsqueeze(1)).exp_()
            shares = relative.sum(dim=1)
            chosen = ids[index]
            if cut is not None:
                chosen = torch.where(1 / shares < cut.least[index], cut.void, chosen)
            found.ids[some, at] = chosen
            found.confidence[some, at] = (255 / shares).round_().to(torch.uint8)
            if found.margin is not None:
                second = relative.scatter_(1, index.unsqueeze(1), 0).amax(dim=1)
                found.margin[some, at] = (255 * (1 - second) / shares).round_().to(torch.uint8)
    return found


def bands(logits: Tensor, frame: Frame, rows: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield logits float32 [N, C, at most `rows`, W] at the images' size, from top to bottom."""
    height, width = frame.size
    if frame.inside == frame.size:
        source, size = logits, frame.seen
    else:
        source, size = _inside(logits, frame), frame.size
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        yield slice(start, stop), resized_rows(source, size, start, stop)[..., :width]


def _inside(logits: Tensor, frame: Frame) -> Tensor:
    """Return logits without what was padded; at the size of the model's input, if it was."""
    if frame.seen == frame.inside:
        return logits
    full = logits.float()
    if tuple(logits.shape[2:]) != frame.seen:
        full = F.interpolate(full, frame.seen, mode="bilinear", align_corners=False)
    return full[:, :, : frame.inside[0], : frame.inside[1]]


def resized_rows(logits: Tensor, size: tuple[int, int], start: int, stop: int) -> Tensor:
    """Return rows `start` to `stop` of logits [N, C, h, w] at `size`, bilinear, float32.

    As `interpolate(..., align_corners=False)` has them, to rounding.
    """
    return resized_part(logits, (0, logits.shape[2]), size, start, stop)


def resized_part(
    held: Tensor, of: tuple[int, int], size: tuple[int, int], start: int, stop: int
) -> Tensor:
    """Return the same of logits of which only some rows are held.

    `of` is the first row that is held, and how many rows the whole has.
    """
    part = _rows(held, of, size[0], start, stop)
    if part.shape[3] != size[1]:
        part = F.interpolate(part, (stop - start, size[1]), mode="bilinear", align_corners=False)
    return part


def _rows(held: Tensor, of: tuple[int, int], height: int, start: int, stop: int) -> Tensor:
    first, have = of
    if have == height:
        return held[:, :, start - first : stop - first].float()
    rows = torch.arange(start, stop, device=held.device, dtype=torch.float64)
    place = ((rows + 0.5) * (have / height) - 0.5).clamp_(0, have - 1)
    above = place.long()
    below = (above + 1).clamp_(max=have - 1)
    share = (place - above).to(torch.float32).view(-1, 1)
    above, below = above - first, below - first
    upper, lower = held.index_select(2, above).float(), held.index_select(2, below).float()
    return upper.mul_(1 - share).add_(lower.mul_(share))
