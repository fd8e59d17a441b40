"""CE-Net, the context encoder network (Gu 2019, arXiv 1903.02740), on ResNet-34.

DRIVE vessels: sensitivity 0.831, AUC 0.978. Dilated paths with shared weights (DAC), then pools of
four sizes (RMP), then LinkNet's decoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from pipeline.models.layers import cropped, resized, size_of
from pipeline.models.linknet import Decoder
from pipeline.models.resnet import resnet, stages

if TYPE_CHECKING:
    from torch import Tensor

_DEEP: Final = 512
_POOLS: Final = (2, 3, 5, 6)
_WIDTHS: Final = (_DEEP + len(_POOLS), 256, 128, 64, 64)
_HEAD: Final = 32


class CENet(nn.Module):
    """Return logits [N, classes, H, W] of an image batch [N, 3, H, W]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = resnet(34)
        self.context = _DenseAtrous(_DEEP)
        self.pooled = nn.Conv2d(_DEEP, 1, 1)
        self.decoder = nn.ModuleList(Decoder(_WIDTHS[i], _WIDTHS[i + 1]) for i in range(4))
        self.up = nn.ConvTranspose2d(64, _HEAD, 4, stride=2, padding=1)
        self.refine = nn.Conv2d(_HEAD, _HEAD, 3, padding=1)
        self.head = nn.Conv2d(_HEAD, classes, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        found = stages(self.backbone, image)
        x = self._pools(self.context(found[3]))
        for level, skip in zip(self.decoder[:3], found[2::-1], strict=True):
            x = level(x, size_of(skip)) + skip
        high, wide = size_of(x)
        x = self.decoder[3](x, (2 * high, 2 * wide))
        x = F.relu(self.refine(F.relu(self.up(x))))
        return cropped(self.head(x), size_of(image))

    def _pools(self, x: Tensor) -> Tensor:
        """Put beside x what one shared 1x1 convolution sees in four pools of it."""
        size = size_of(x)
        seen = []
        for pool in _POOLS:
            window = [min(pool, side) for side in size]  # small images have small maps
            seen.append(resized(self.pooled(F.max_pool2d(x, window)), size))
        return torch.cat((*seen, x), dim=1)


class _DenseAtrous(nn.Module):
    """The dense atrous convolution: four paths through shared layers, added to x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.near, self.middle, self.far = (
            nn.Conv2d(width, width, 3, padding=d, dilation=d) for d in (1, 3, 5)
        )
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        near = self.near(x)
        both = self.middle(near)
        paths = (near, self.mix(self.middle(x)), self.mix(both), self.mix(self.far(both)))
        out = x
        for path in paths:
            out = out + F.relu(path)
        return out
