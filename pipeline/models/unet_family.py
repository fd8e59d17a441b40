"""U-Nets with batch norm: plain, with attention, recurrent, residual, and without skips.

Attention U-Net (Oktay 2018, arXiv 1804.03999), R2U-Net and RU-Net (Alom 2018, arXiv 1802.06955).
The layers are those of the well-known PyTorch collection of them: widths 64 to 1024, nearest
up-sampling and a 3x3 convolution on the way up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from pipeline.models.layers import conv_norm, one_of, size_of

if TYPE_CHECKING:
    from torch import Tensor

Block = Literal["plain", "recurrent", "residual"]
_WIDTHS: Final = (64, 128, 256, 512, 1024)


class NormUNet(nn.Module):
    """Return logits [N, classes, H, W] of an image batch [N, 3, H, W].

    `block` is what each level is made of: two convolutions, two recurrent ones, or these with a
    residual around them. `attention` gates the skips, `skips=False` leaves them out: an
    auto-encoder. `steps` is how often a recurrent convolution sees its own output.
    """

    def __init__(
        self,
        classes: int,
        block: Block = "plain",
        *,
        attention: bool = False,
        skips: bool = True,
        steps: int = 2,
    ) -> None:
        super().__init__()
        one_of("block", block, ("plain", "recurrent", "residual"))
        widths = (3, *_WIDTHS)
        pairs = list(zip(_WIDTHS[:0:-1], _WIDTHS[-2::-1], strict=True))
        self.down = nn.ModuleList(
            _block(block, widths[i], widths[i + 1], steps) for i in range(len(_WIDTHS))
        )
        self.up = nn.ModuleList(conv_norm(a, b, bias=True) for a, b in pairs)
        self.gates = nn.ModuleList(_Gate(b) for _, b in pairs if attention)
        self.merge = nn.ModuleList(_block(block, a if skips else b, b, steps) for a, b in pairs)
        self.head = nn.Conv2d(_WIDTHS[0], classes, 1)
        self.skips = skips

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        x, found = image, []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            found.append(x)
        found.pop()
        for level, (up, merge) in enumerate(zip(self.up, self.merge, strict=True)):
            skip = found.pop()
            x = up(F.interpolate(x, size_of(skip), mode="nearest"))
            if self.gates:
                skip = self.gates[level](x, skip)
            x = merge(torch.cat((skip, x), dim=1) if self.skips else x)
        logits: Tensor = self.head(x)
        return logits


class _Gate(nn.Module):
    """Weighs each pixel of a skip by how it agrees with what comes from below."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = width // 2
        self.below = conv_norm(width, inner, 1, bias=True, act=False)
        self.skip = conv_norm(width, inner, 1, bias=True, act=False)
        self.weigh = conv_norm(inner, 1, 1, bias=True, act=False)

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        seen = F.relu(self.below(below) + self.skip(skip))
        share: Tensor = self.weigh(seen).sigmoid()
        return skip * share


class _Recurrent(nn.Module):
    """One convolution applied again and again to its input plus what it made of it."""

    def __init__(self, width: int, steps: int) -> None:
        super().__init__()
        self.conv = conv_norm(width, width, bias=True)
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        for _ in range(self.steps):
            out = self.conv(x + out)
        return out


class _Residual(nn.Module):
    """A 1x1 convolution to the width, then x + layers(x)."""

    def __init__(self, narrow: nn.Module, layers: nn.Module) -> None:
        super().__init__()
        self.narrow, self.layers = narrow, layers

    def forward(self, x: Tensor) -> Tensor:
        x = self.narrow(x)
        out: Tensor = x + self.layers(x)
        return out


def _block(kind: Block, fan_in: int, out: int, steps: int) -> nn.Module:
    if kind == "plain":
        return nn.Sequential(conv_norm(fan_in, out, bias=True), conv_norm(out, out, bias=True))
    narrow = nn.Conv2d(fan_in, out, 1)
    layers = nn.Sequential(_Recurrent(out, steps), _Recurrent(out, steps))
    return _Residual(narrow, layers) if kind == "residual" else nn.Sequential(narrow, layers)
