"""Hard views of images, CutMix, and losses on pseudo-labels, on the device that trains.

All draw from torch's global generator, which an epoch seeds.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional as F  # noqa: N812 - its name everywhere

if TYPE_CHECKING:
    from torch import Tensor

_LUMA: Final = (0.299, 0.587, 0.114)
_JITTER: Final = 0.5
_ASPECT: Final = 0.3
_BLUR_RADIUS: Final = 4


def hardened(images: Tensor) -> Tensor:
    """Return images [N, H, W, 3] in 0..255 with other colours, float32, on their device.

    Four in five get another brightness, contrast and saturation, one in five becomes grey, every
    second is blurred (sigma 0.1 to 2): what UniMatch (2208.09910) and ST++ (2106.05095) do, without
    the hue.
    """
    out = _blurred(_jittered(images.float()))
    return out.clamp(0, 255)


def _jittered(images: Tensor) -> Tensor:
    count, device = len(images), images.device
    draws = torch.rand(5, count, 1, 1, 1).to(device)
    factors = 1 + _JITTER * (2 * draws[:3] - 1)
    factors = torch.where(draws[3] < 0.8, factors, torch.ones_like(factors))
    luma = torch.tensor(_LUMA, device=device)
    out = images * factors[0]
    mean = (out @ luma).mean((1, 2))[:, None, None, None]
    out = mean + factors[1] * (out - mean)
    grey = (out @ luma)[..., None]
    saturation = torch.where(draws[4] < 0.2, torch.zeros_like(factors[2]), factors[2])
    return grey + saturation * (out - grey)


def _blurred(images: Tensor) -> Tensor:
    """Blur every second image, each with a kernel of its own."""
    count, height, width, _ = images.shape
    draws = torch.rand(2, count)
    sigma = 0.1 + 1.9 * draws[0]
    at = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1).float()
    kernels = torch.exp(-0.5 * (at / sigma[:, None]) ** 2)
    kernels = (kernels / kernels.sum(1, keepdim=True)).repeat_interleave(3, 0).to(images.device)
    flat = images.permute(0, 3, 1, 2).reshape(1, 3 * count, height, width)
    edge = (_BLUR_RADIUS,) * 4
    flat = F.pad(flat, edge, mode="replicate")
    flat = F.conv2d(flat, kernels[:, None, :, None], groups=3 * count)
    flat = F.conv2d(flat, kernels[:, None, None, :], groups=3 * count)
    blurred = flat.reshape(count, 3, height, width).permute(0, 2, 3, 1)
    which = (draws[1] < 0.5)[:, None, None, None].to(images.device)
    return torch.where(which, blurred, images)


def boxes(shape: tuple[int, int, int], least: float, most: float) -> Tensor:
    """Return bool [N, H, W]: one box an image, of a share of its area between the two.

    The aspect ratio is drawn evenly on a logarithmic scale from 0.3 to 1 / 0.3.
    """
    count, height, width = shape
    out = torch.zeros(shape, dtype=torch.bool)
    for number, draw in enumerate(torch.rand(count, 4).tolist()):
        area = (least + (most - least) * draw[0]) * height * width
        aspect = math.exp((2 * draw[1] - 1) * math.log(1 / _ASPECT))
        rows = min(height, max(1, round(math.sqrt(area * aspect))))
        columns = min(width, max(1, round(area / rows)))
        top, left = int(draw[2] * (height - rows + 1)), int(draw[3] * (width - columns + 1))
        out[number, top : top + rows, left : left + columns] = True
    return out


def mixed(values: Tensor, inside: Tensor) -> Tensor:
    """Return the values [N, H, W, ...] with the next image's inside the boxes [N, H, W]."""
    shape = inside.shape + (1,) * (values.dim() - inside.dim())
    return torch.where(inside.view(shape), values.roll(1, 0), values)


def at_size(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return logits [N, C, h, w] at `size`, float32, bilinear."""
    if tuple(logits.shape[-2:]) == size:
        return logits.float()
    return F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)


def pseudo_labels(logits: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return each pixel's confidence, float32 [N, H, W] in 0..1, and best class, int64."""
    confidence, best = at_size(logits.detach(), size).softmax(1).max(1)
    return confidence, best


def pseudo_loss(logits: Tensor, target: Tensor, trusted: Tensor, shown: Tensor) -> Tensor:
    """Return cross-entropy on the trusted pixels, over the number of all that are shown.

    Logits [N, C, h, w], target int64 [N, H, W], trusted and shown bool [N, H, W]. An image few of
    whose pixels are trusted counts for little: the sum is not divided by their number.
    """
    scores = at_size(logits, (target.shape[-2], target.shape[-1]))
    each = F.cross_entropy(scores, target, reduction="none")
    return (each * (trusted & shown)).sum() / shown.sum().clamp_min(1)


def ramp(share: float, length: float) -> float:
    """Return the weight of a loss that grows over the first part of a run: exp(-5 (1 - t)^2).

    Laine and Aila 2017 (1610.02242).
    """
    t = 1.0 if length <= 0 else min(1.0, share / length)
    return math.exp(-5 * (1 - t) ** 2)
