"""RDFNet (Park 2017, ICCV): RefineNet on two ResNets, one for colour and one for depth.

NYUDv2-40: 47.7 mIoU on ResNet-50, 49.1 on 101, 50.1 on 152, with HHA-coded depth. The input's
channels are red, green, blue, then depth: one channel (repeated, since the depth network takes
three) or `?depth_channels=3` for HHA. Depth is normalised like colours are; no measurement is the
mean, 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from torch import nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from pipeline.models.layers import one_of
from pipeline.models.refinenet import RefineDecoder, ResidualPool, conv3, residual_units
from pipeline.models.resnet import resnet, stages

if TYPE_CHECKING:
    from torch import Tensor

_STAGES: Final = (256, 512, 1024, 2048)
_WIDTHS: Final = (256, 256, 256, 512)
_COLOURS: Final = 3


class RDFNet(nn.Module):
    """Return logits [N, classes, H / 4, W / 4] of a batch [N, 3 + depth_channels, H, W]."""

    def __init__(
        self,
        classes: int,
        depth: Literal[50, 101, 152] = 50,
        depth_channels: Literal[1, 3] = 1,
        pools: int = 2,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        one_of("depth_channels", depth_channels, (1, 3))
        self.in_channels = _COLOURS + depth_channels
        one_of("depth", depth, (50, 101, 152))
        self.backbone = resnet(depth)
        self.depth_backbone: Any = resnet(depth)
        self.fuse = nn.ModuleList(_Fusion(width) for width in _STAGES)
        self.reduce = nn.ModuleList(
            conv3(fan_in, width) for fan_in, width in zip(_STAGES, _WIDTHS, strict=True)
        )
        self.decoder = RefineDecoder(pools)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Conv2d(_WIDTHS[0], classes, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits.

        Raises:
            ValueError: the batch has not the channels of colour and depth.
        """
        if image.shape[1] != self.in_channels:
            raise ValueError(
                f"RDFNet takes colour and depth, {self.in_channels} channels, not {image.shape[1]}"
            )
        depth = image[:, _COLOURS:].expand(-1, _COLOURS, -1, -1)
        pairs = zip(
            stages(self.backbone, image[:, :_COLOURS]),
            stages(self.depth_backbone, depth),
            strict=True,
        )
        fused = [fuse(*pair) for fuse, pair in zip(self.fuse, pairs, strict=True)]
        fused[2:] = [self.dropout(x) for x in fused[2:]]
        reduced = [conv(x) for conv, x in zip(self.reduce, fused, strict=True)]
        logits: Tensor = self.head(self.dropout(self.decoder(reduced)))
        return logits


class _Fusion(nn.Module):
    """The multi-modal feature fusion block: both modalities refined at half the width, summed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.colour, self.depth = _path(width), _path(width)
        self.pool = ResidualPool(width, 1)

    def forward(self, colour: Tensor, depth: Tensor) -> Tensor:
        fused: Tensor = self.pool(F.relu(self.colour(colour) + self.depth(depth)))
        return fused


def _path(width: int) -> nn.Sequential:
    half = width // 2
    return nn.Sequential(
        nn.Conv2d(width, half, 1, bias=False), *residual_units(half, 2), conv3(half, width)
    )
