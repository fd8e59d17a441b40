"""U-Net as published (Ronneberger 2015, arXiv 1505.04597): no padding in any convolution.

The border that they eat is mirrored around the image first, as the paper's overlap-tile strategy
has it, so that logits cover the whole image. `?padding=same` is what most later code does instead:
zero padding, half the work, other results near the border. Normalised forms are in
`pipeline.models.unet_family`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from pipeline.models.layers import cropped, he_normal, mirrored, one_of, size_of

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.models.layers import Size

_WIDTHS: Final = (64, 128, 256, 512, 1024)
_MARGIN: Final = 92
"""What the convolutions eat on each side: 572 become 388."""


class UNet(nn.Module):
    """Return logits [N, classes, H, W] of an image batch [N, in_channels, H, W]."""

    def __init__(
        self,
        classes: int,
        in_channels: int = 3,
        padding: Literal["mirror", "same"] = "mirror",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        one_of("padding", padding, ("mirror", "same"))
        self.in_channels = in_channels
        self.mirror = padding == "mirror"
        inner = 0 if self.mirror else 1
        widths = (in_channels, *_WIDTHS)
        self.down = nn.ModuleList(
            _convs(widths[i], widths[i + 1], inner, dropout if i >= 3 else 0) for i in range(5)
        )
        pairs = list(zip(_WIDTHS[:0:-1], _WIDTHS[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
        self.merge = nn.ModuleList(_convs(a, b, inner, 0) for a, b in pairs)
        self.head = nn.Conv2d(_WIDTHS[0], classes, 1)
        he_normal(self)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        size = size_of(image)
        below = _to_tile(size) if self.mirror else _to_multiple(size)
        above = _MARGIN if self.mirror else 0
        x, skips = mirrored(image, (above, above), below), []
        for level, convs in enumerate(self.down):
            x = convs(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = up(x)
            skip = skips.pop()
            beside = cropped(skip, size_of(x), (skip.shape[2] - x.shape[2]) // 2)  # its middle
            x = merge(torch.cat((beside, x), dim=1))
        return cropped(self.head(x), size)


def _to_tile(size: Size) -> Size:
    """Return the border below and right that makes 16 k + 60: the sizes that halve four times."""
    down, right = (16 * -(-(n + 124) // 16) + 60 - _MARGIN - n for n in size)
    return down, right


def _to_multiple(size: Size) -> Size:
    down, right = (-n % 16 for n in size)
    return down, right


def _convs(fan_in: int, out: int, padding: int, dropout: float) -> nn.Sequential:
    layers = [
        nn.Conv2d(fan_in, out, 3, padding=padding),
        nn.ReLU(inplace=True),
        nn.Conv2d(out, out, 3, padding=padding),
        nn.ReLU(inplace=True),
    ]
    return nn.Sequential(*layers, *([nn.Dropout(dropout)] if dropout else []))
