"""FC-DenseNet, the "One Hundred Layers Tiramisu" (Jégou 2017, arXiv 1611.09326).

CamVid-11 at 480x360: 58.9 mIoU with 56 layers, 65.8 with 67, 66.9 with 103.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from pipeline.models.layers import cropped, one_of, size_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_FIRST: Final = 48
_PLANS: Final = {
    56: (12, (4,) * 11),
    67: (16, (5,) * 11),
    103: (16, (4, 5, 7, 10, 12, 15, 12, 10, 7, 5, 4)),
}
"""Growth, and the layers of the eleven blocks: five down, one below, five up."""


class FCDenseNet(nn.Module):
    """Return logits [N, classes, H, W] of an image batch [N, 3, H, W]."""

    def __init__(
        self, classes: int, layers: Literal[56, 67, 103] = 103, dropout: float = 0.2
    ) -> None:
        super().__init__()
        one_of("layers", layers, _PLANS)
        growth, plan = _PLANS[layers]
        half = len(plan) // 2
        self.first = nn.Conv2d(3, _FIRST, 3, padding=1)
        width, widths = _FIRST, []
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        for count in plan[:half]:
            self.down.append(_Block(width, growth, count, dropout))
            width += growth * count
            widths.append(width)
            self.shrink.append(_layer(width, width, 1, dropout))
        self.bottom = _Block(width, growth, plan[half], dropout)
        new = growth * plan[half]
        self.grow, self.up = nn.ModuleList(), nn.ModuleList()
        for count, skip in zip(plan[half + 1 :], reversed(widths), strict=True):
            self.grow.append(nn.ConvTranspose2d(new, new, 3, stride=2))
            width = new + skip
            self.up.append(_Block(width, growth, count, dropout))
            new = growth * count
        self.head = nn.Conv2d(width + new, classes, 1)
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_uniform_(conv.weight, nonlinearity="relu")
                assert conv.bias is not None
                nn.init.zeros_(conv.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        x, skips = self.first(image), []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            x = torch.cat((x, *block(x)), dim=1)
            skips.append(x)
            x = F.max_pool2d(shrink(x), 2)
        new = self.bottom(x)
        for grow, block in zip(self.grow, self.up, strict=True):
            skip = skips.pop()
            # Only what the block below made goes up: all of it would be too wide (section 3.2).
            x = torch.cat((cropped(grow(torch.cat(new, dim=1)), size_of(skip)), skip), dim=1)
            new = block(x)
        logits: Tensor = self.head(torch.cat((x, *new), dim=1))
        return logits


class _Block(nn.Module):
    """Layers that each see all before them; returns what each of them made."""

    def __init__(self, width: int, growth: int, count: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            _layer(width + i * growth, growth, 3, dropout) for i in range(count)
        )

    def forward(self, x: Tensor) -> Sequence[Tensor]:
        made: list[Tensor] = []
        for layer in self.layers:
            made.append(layer(torch.cat((x, *made), dim=1)))
        return made


def _layer(fan_in: int, out: int, kernel: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(fan_in),
        nn.ReLU(inplace=True),
        nn.Conv2d(fan_in, out, kernel, padding=kernel // 2),
        nn.Dropout(dropout),
    )
