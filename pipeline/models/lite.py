"""Small segmenters of our own: EfficientNet-lite0, cut short, with two light heads.

The encoder is timm's `tf_efficientnet_lite0` (Tan and Le 2019, 1905.11946; its "lite" form has no
squeeze-and-excitation) up to the second block of 192 channels, so that ImageNet weights fit it.
LiteFPN's decoder is that of Panoptic FPN (Kirillov 2019, 1901.02446) with depthwise convolutions,
and global context as in LR-ASPP (Howard 2019, 1905.02244), whose own head LiteLRASPP has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from torch import nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

if TYPE_CHECKING:
    from torch import Tensor

MULTIPLE: Final = 32
_TAKEN: Final = {1: 24, 2: 40, 4: 112, 5: 192}
"""The encoder's stages whose last maps are used (strides 4, 8, 16, 32), and their channels."""


class _Lite(nn.Module):
    """The encoder: maps at strides 4, 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        import timm

        whole = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        # The names are timm's: weights of the whole network find their place here.
        self.conv_stem: nn.Module = whole.get_submodule("conv_stem")
        self.bn1: nn.Module = whole.get_submodule("bn1")
        *blocks, last = list(whole.get_submodule("blocks").children())[: max(_TAKEN) + 1]
        self.blocks = nn.Sequential(*blocks, nn.Sequential(*list(last.children())[:2]))

    def taken(self, images: Tensor) -> list[Tensor]:
        x, taken = self.bn1(self.conv_stem(images)), []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in _TAKEN:
                taken.append(x)
        return taken


class LiteFPN(_Lite):
    """Return logits [N, classes, H/4, W/4] of an image batch [N, 3, H, W]; sides divide by 32.

    1.50 M parameters with 11 classes.
    """

    def __init__(self, classes: int, width: int = 96, dropout: float = 0.1) -> None:
        super().__init__()
        self.sides = nn.ModuleList(_unit(n, width, 1) for n in _TAKEN.values())
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(_TAKEN[5], width, 1), nn.Sigmoid()
        )
        self.smooth = nn.ModuleList(
            nn.Sequential(_unit(width, width, 3, groups=width), _unit(width, width, 1))
            for _ in _TAKEN
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits at a quarter of the size."""
        taken = self.taken(images)
        size = taken[0].shape[-2:]
        sides = [side(x) for side, x in zip(self.sides, taken, strict=True)]
        top = sides[-1] * self.gate(taken[-1])
        levels = [top]
        for side in reversed(sides[:-1]):
            top = side + _resized(top, side)
            levels.append(top)
        smoothed = (m(level) for m, level in zip(self.smooth, reversed(levels), strict=True))
        total = sum(F.interpolate(m, size, mode="bilinear", align_corners=False) for m in smoothed)
        logits: Tensor = self.classify(self.dropout(total))
        return logits


class LiteLRASPP(_Lite):
    """Return logits [N, classes, H/8, W/8] of an image batch [N, 3, H, W]; sides divide by 32.

    Howard's head takes strides 8 and 16 (its encoder is dilated from 16 on); here 8 and 32.
    1.45 M parameters with 11 classes.
    """

    def __init__(self, classes: int, width: int = 128) -> None:
        super().__init__()
        low, high = _TAKEN[2], _TAKEN[5]
        self.high = _unit(high, width, 1)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(high, width, 1, bias=False), nn.Sigmoid()
        )
        self.classify_high = nn.Conv2d(width, classes, 1)
        self.classify_low = nn.Conv2d(low, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits at an eighth of the size."""
        _, low, _, high = self.taken(images)
        strong = self.high(high) * self.gate(high)
        logits: Tensor = self.classify_high(_resized(strong, low)) + self.classify_low(low)
        return logits


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


def _unit(channels: int, out: int, size: int, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, out, size, padding=size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU6(inplace=True))
