"""SegNet and SegNet-Basic (Badrinarayanan 2017, arXiv 1511.00561).

The decoder puts each value where the encoder's pool found its maximum. CamVid-11 at 480x360: 60.1
mIoU with 3.5 k images, 46.4 with the 367 of the common split.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

from torch import nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from pipeline.models.layers import conv_norm, he_normal, size_of, unpool
from pipeline.models.vgg import VGG16

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.models.layers import Size

_DECODER: Final = (
    (512, 512, 512, 512),
    (512, 512, 512, 256),
    (256, 256, 256, 128),
    (128, 128, 64),
)
"""Widths of each level, from the deepest; the last level is 64, 64, classes."""


class SegNet(nn.Module):
    """Return logits [N, classes, H, W] of an image batch [N, 3, H, W]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = VGG16(norm=True)
        levels = [_convs(widths) for widths in _DECODER]
        last = nn.Sequential(*_convs((64, 64)), nn.Conv2d(64, classes, 3, padding=1))
        self.decoder = nn.ModuleList([*levels, last])
        he_normal(self.decoder)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        x = image
        pooled: list[tuple[Tensor, Size]] = []
        for layer in self.backbone.features:
            x = _pool(x, pooled) if isinstance(layer, nn.MaxPool2d) else layer(x)
        for level in self.decoder:
            x = level(unpool(x, *pooled.pop()))
        return x


class SegNetBasic(nn.Module):
    """Return logits [N, classes, H, W] of an image batch [N, 3, H, W]; four 7x7 levels each way."""

    def __init__(self, classes: int, width: int = 64) -> None:
        super().__init__()
        self.norm = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)
        widths = (3, *[width] * 4)
        self.encoder = nn.ModuleList(
            conv_norm(widths[i], widths[i + 1], 7, bias=True) for i in range(4)
        )
        # The decoder has no ReLU (section 3.1).
        self.decoder = nn.ModuleList(
            conv_norm(width, width, 7, bias=True, act=False) for _ in range(4)
        )
        self.head = nn.Conv2d(width, classes, 1)
        he_normal(self)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        x = self.norm(image)
        pooled: list[tuple[Tensor, Size]] = []
        for level in self.encoder:
            x = _pool(level(x), pooled)
        for level in self.decoder:
            x = level(unpool(x, *pooled.pop()))
        logits: Tensor = self.head(x)
        return logits


def _pool(x: Tensor, pooled: list[tuple[Tensor, Size]]) -> Tensor:
    """Halve the size; remember where the maxima were, and the size before."""
    size = size_of(x)
    x, where = F.max_pool2d(x, 2, return_indices=True)
    pooled.append((where, size))
    return x


def _convs(widths: tuple[int, ...]) -> nn.Sequential:
    return nn.Sequential(*(conv_norm(a, b, bias=True) for a, b in pairwise(widths)))
