"""A network's input brought to sizes that it takes, and its logits brought to the image's size.

For validation and for the masks of objects. Label maps are made in bands of bounded memory
(`pipeline.predict.decide`): the same to rounding, so that a training's mIoU is that of its labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional as F  # noqa: N812 - torch's own convention

if TYPE_CHECKING:
    from torch import Tensor


def padded(images: Tensor, multiple: int) -> Tensor:
    """Return images [N, C, H, W] with H and W multiples: the border repeats below and right."""
    down, right = -images.shape[2] % multiple, -images.shape[3] % multiple
    return F.pad(images, (0, right, 0, down), mode="replicate") if down or right else images


def at_size(
    logits: Tensor, inside: tuple[int, int], multiple: int, size: tuple[int, int]
) -> Tensor:
    """Return logits [N, C, h, w] at `size`, bilinear.

    `inside` is the size that the network's input had before `padded`; what lies beyond is cut off.
    """
    seen = tuple(-(-n // multiple) * multiple for n in inside)
    if seen != inside:
        full = _resized(logits, seen)
        logits = full[:, :, : inside[0], : inside[1]]
    return _resized(logits, size)


def _resized(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    if tuple(logits.shape[2:]) == size:
        return logits
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)
