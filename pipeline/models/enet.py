"""ENet (Paszke 2016, arXiv 1606.02147): 0.35 M parameters, output stride 8 in the middle.

CamVid-11 at 480x360: 51.3 mIoU in the paper, 52.1 in a well-known re-implementation, whose
parameter counts (a PReLU of one slope after every batch norm, 3x3 head) this one has: C=11 350,508,
C=19 351,660.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, Literal

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from pipeline.models.layers import cropped, size_of, unpool
from pipeline.models.slope import Slope

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Activation = Callable[[], nn.Module]
    Conv = nn.Conv2d | nn.ConvTranspose2d

MULTIPLE: Final = 8
"""Inputs of other heights and widths are padded to this, and the logits cropped."""

_EPS: Final = 1e-3  # of batch norm, as the authors' Torch7 default
_REDUCTION: Final = 4

Middle = Literal["regular", "asymmetric"] | int
"""A bottleneck's middle convolution: 3x3, 5x1 then 1x5, or 3x3 dilated by that much."""

_RELU: Final = partial(nn.ReLU, inplace=True)
"""The decoder's activation: it has no slopes to learn (section 4)."""

_STAGE: Final[tuple[Middle, ...]] = ("regular", 2, "asymmetric", 4, "regular", 8, "asymmetric", 16)


class ENet(nn.Module):
    """Return logits [N, classes, H, W] of an image batch [N, 3, H, W].

    `dropout` drops whole channels of a block's branch; a tenth of it in the first stage. A short
    training does better without.
    """

    def __init__(self, classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        early = dropout / 10
        self.initial = _Initial()
        self.down1 = _Down(16, 64, early)
        self.stage1 = nn.Sequential(*(_Bottleneck(64, "regular", early) for _ in range(4)))
        self.down2 = _Down(64, 128, dropout)
        self.stage2 = nn.Sequential(*(_Bottleneck(128, middle, dropout) for middle in _STAGE))
        self.stage3 = nn.Sequential(*(_Bottleneck(128, middle, dropout) for middle in _STAGE))
        self.up4 = _Up(128, 64, dropout)
        self.stage4 = nn.Sequential(*(_Bottleneck(64, "regular", dropout, _RELU) for _ in range(2)))
        self.up5 = _Up(64, 16, dropout)
        self.stage5 = _Bottleneck(16, "regular", dropout, _RELU)
        self.head = nn.ConvTranspose2d(16, classes, 3, 2, padding=1, output_padding=1, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        size = size_of(image)
        down, right = (-n % MULTIPLE for n in size)
        x = self.initial(F.pad(image, (0, right, 0, down), mode="replicate"))
        x, where1 = self.down1(x)
        x = self.stage1(x)
        x, where2 = self.down2(x)
        x = self.stage3(self.stage2(x))
        x = self.stage4(self.up4(x, where2))
        x = self.stage5(self.up5(x, where1))
        return cropped(self.head(x), size)


class _Initial(nn.Module):
    """A 3x3 convolution to 13 channels beside a max-pool of the image itself; halves the size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 13, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16, eps=_EPS)
        self.act = Slope()

    def forward(self, image: Tensor) -> Tensor:
        x = torch.cat((self.conv(image), F.max_pool2d(image, 2)), dim=1)
        out: Tensor = self.act(self.norm(x))
        return out


class _Branch(nn.Sequential):
    """1x1 (or 2x2 stride 2) reduce, middle, 1x1 expand, spatial dropout."""

    def __init__(self, convs: list[Conv], act: Activation, dropout: float) -> None:
        layers: list[nn.Module] = []
        for conv in convs:
            layers += [conv, nn.BatchNorm2d(conv.out_channels, eps=_EPS), act()]
        super().__init__(*layers, *([nn.Dropout2d(dropout)] if dropout else []))


def _conv(
    fan_in: int, out: int, kernel: int | tuple[int, int], *, stride: int = 1, dilation: int = 1
) -> nn.Conv2d:
    """Return an unbiased convolution that keeps the size (or halves it, with stride 2)."""
    high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (0, 0) if stride == 2 else (high // 2 * dilation, wide // 2 * dilation)
    return nn.Conv2d(
        fan_in, out, (high, wide), stride, padding=padding, dilation=dilation, bias=False
    )


def _middle(width: int, middle: Middle) -> list[Conv]:
    if middle == "asymmetric":
        return [_conv(width, width, (5, 1)), _conv(width, width, (1, 5))]
    return [_conv(width, width, 3, dilation=1 if middle == "regular" else int(middle))]


class _Bottleneck(nn.Module):
    """A residual block that keeps size and width."""

    def __init__(self, width: int, middle: Middle, dropout: float, act: Activation = Slope) -> None:
        super().__init__()
        narrow = width // _REDUCTION
        convs = [_conv(width, narrow, 1), *_middle(narrow, middle), _conv(narrow, width, 1)]
        self.branch = _Branch(convs, act, dropout)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(x + self.branch(x))
        return out


class _Down(nn.Module):
    """A residual block that halves the size; also returns where each maximum was."""

    def __init__(self, fan_in: int, width: int, dropout: float) -> None:
        super().__init__()
        narrow = fan_in // _REDUCTION
        reduce = _conv(fan_in, narrow, 2, stride=2)
        convs = [reduce, *_middle(narrow, "regular"), _conv(narrow, width, 1)]
        self.branch = _Branch(convs, Slope, dropout)
        self.act = Slope()
        self.padding = width - fan_in

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        main, where = F.max_pool2d(x, 2, return_indices=True)
        main = F.pad(main, (0, 0, 0, 0, 0, self.padding))  # new channels start at zero
        return self.act(main + self.branch(x)), where


class _Up(nn.Module):
    """A residual block that doubles the size, unpooling to where the maxima were."""

    def __init__(self, fan_in: int, width: int, dropout: float) -> None:
        super().__init__()
        narrow = fan_in // _REDUCTION
        self.main = nn.Sequential(_conv(fan_in, width, 1), nn.BatchNorm2d(width, eps=_EPS))
        deconv = nn.ConvTranspose2d(narrow, narrow, 2, stride=2, bias=False)
        convs: list[Conv] = [_conv(fan_in, narrow, 1), deconv, _conv(narrow, width, 1)]
        self.branch = _Branch(convs, _RELU, dropout)
        self.act = _RELU()

    def forward(self, x: Tensor, where: Tensor) -> Tensor:
        high, wide = size_of(x)
        main = unpool(self.main(x), where, (2 * high, 2 * wide))
        out: Tensor = self.act(main + self.branch(x))
        return out
