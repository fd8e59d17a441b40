"""LinkNet on ResNet-18 (Chaurasia 2017, arXiv 1707.03718).

Cityscapes val 76.4, CamVid 68.3 mIoU in the paper. `smp:Linknet` is near it but not the same: it
links one level more, its transposed convolutions are 4x4, its head is one 1x1 convolution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from torch import nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from pipeline.models.layers import conv_norm, cropped, size_of
from pipeline.models.resnet import resnet, stages, stem

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.models.layers import Size

_WIDTHS: Final = (512, 256, 128, 64, 64)
_HEAD: Final = 32


class LinkNet(nn.Module):
    """Return logits [N, classes, H, W] of an image batch [N, 3, H, W]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = resnet(18)
        self.decoder = nn.ModuleList(
            Decoder(_WIDTHS[i], _WIDTHS[i + 1], 1 if i == 3 else 2) for i in range(4)
        )
        self.up = _Up(64, _HEAD)
        self.refine = conv_norm(_HEAD, _HEAD, bias=True)
        self.head = nn.ConvTranspose2d(_HEAD, classes, 2, stride=2)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        first = stem(self.backbone, image)
        found = stages(self.backbone, image)
        x = found[3]
        for level, skip in zip(self.decoder[:3], found[2::-1], strict=True):
            x = F.relu(level(x, size_of(skip)) + skip)
        x = self.decoder[3](x, size_of(x))
        x = self.refine(self.up(x, size_of(first)))
        return cropped(self.head(x), size_of(image))


class _Up(nn.Module):
    """A 3x3 transposed convolution with batch norm and ReLU, to the size that it is told."""

    def __init__(self, fan_in: int, out: int, stride: int = 2) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(fan_in, out, 3, stride, padding=1)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        return F.relu(self.norm(self.conv(x, output_size=list(size))))


class Decoder(nn.Module):
    """To a quarter of the width, twice the size, and out."""

    def __init__(self, fan_in: int, out: int, stride: int = 2) -> None:
        super().__init__()
        self.reduce = conv_norm(fan_in, fan_in // 4, 1, bias=True)
        self.up = _Up(fan_in // 4, fan_in // 4, stride)
        self.expand = conv_norm(fan_in // 4, out, 1, bias=True)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Return x at a size that is twice its own, or one less, as its level has it."""
        out: Tensor = self.expand(self.up(self.reduce(x), size))
        return out
