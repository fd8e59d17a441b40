"""FRRN A and B, full-resolution residual networks (Pohlen 2017, arXiv 1611.08323).

Cityscapes test 71.8 mIoU (B). One stream keeps the image's size; the other is pooled, looks at the
first, and adds to it what it finds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from pipeline.models.layers import conv_norm, one_of, resized, size_of

if TYPE_CHECKING:
    from torch import Tensor

_PLANS: Final = {
    "A": ((3, 96, 2), (4, 192, 4), (2, 384, 8), (2, 384, 16), (2, 192, 8), (2, 192, 4), (2, 96, 2)),
    "B": (
        (3, 96, 2), (4, 192, 4), (2, 384, 8), (2, 384, 16), (2, 384, 32),
        (2, 192, 16), (2, 192, 8), (2, 192, 4), (2, 96, 2),
    ),
}  # fmt: skip
"""Units, width and stride of each level of the pooled stream (table 1)."""
_FULL: Final = 48
_STREAM: Final = 32


class FRRN(nn.Module):
    """Return logits [N, classes, H, W] of an image batch [N, 3, H, W]."""

    def __init__(self, classes: int, kind: Literal["A", "B"] = "A") -> None:
        super().__init__()
        one_of("kind", kind, _PLANS)
        self.first = nn.Sequential(conv_norm(3, _FULL, 5), *(_Residual() for _ in range(3)))
        self.split = nn.Conv2d(_FULL, _STREAM, 1, bias=False)
        self.levels = nn.ModuleList()
        width = _FULL
        for units, out, stride in _PLANS[kind]:
            self.levels.append(_Level(width, out, units, stride))
            width = out
        self.join = nn.Conv2d(width + _STREAM, _FULL, 1, bias=False)
        self.last = nn.Sequential(*(_Residual() for _ in range(3)))
        self.head = nn.Conv2d(_FULL, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        x = self.first(image)
        stream = self.split(x)
        for level in self.levels:
            x, stream = level(x, stream)
        x = self.join(torch.cat((resized(x, size_of(stream)), stream), dim=1))
        logits: Tensor = self.head(self.last(x))
        return logits


class _Level(nn.Module):
    """Full-resolution residual units at one stride."""

    def __init__(self, fan_in: int, width: int, units: int, stride: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(
            _Unit(width if i else fan_in, width, stride) for i in range(units)
        )
        self.stride = stride

    def forward(self, x: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
        high, wide = (max(1, side // self.stride) for side in size_of(stream))
        smaller = high < x.shape[2] or wide < x.shape[3]
        x = F.max_pool2d(x, 2) if smaller else resized(x, (high, wide))
        for unit in self.units:
            x, stream = unit(x, stream)
        return x, stream


class _Unit(nn.Module):
    def __init__(self, fan_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(conv_norm(fan_in + _STREAM, width), conv_norm(width, width))
        self.out = nn.Conv2d(width, _STREAM, 1)
        self.stride = stride

    def forward(self, x: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
        seen = F.max_pool2d(stream, self.stride)
        x = self.convs(torch.cat((x, seen), dim=1))
        return x, stream + F.interpolate(self.out(x), size_of(stream), mode="nearest")


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(conv_norm(_FULL, _FULL), conv_norm(_FULL, _FULL, act=False))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(x)
        return out
