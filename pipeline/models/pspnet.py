"""PSPNet (Zhao 2017, arXiv 1612.01105): dilated ResNet, pyramid pooling, an auxiliary loss.

VOC 2012 test 82.6 mIoU (ResNet-101), ADE20K val 41.7 (ResNet-50), Cityscapes val 79.7 (ResNet-101).
`smp:PSPNet` is another network: its encoder ends after the second of four stages, undilated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from timm.models.resnet import Bottleneck, ResNet
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from pipeline.models.layers import conv_norm, one_of, resized, size_of
from pipeline.models.resnet import dilate, stages

if TYPE_CHECKING:
    from torch import Tensor

_BLOCKS: Final = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_BINS: Final = (1, 2, 3, 6)
_WIDTH: Final = 2048
_AUXILIARY: Final = 0.4  # its weight, section 3.3


class PSPNet(nn.Module):
    """Return logits [N, classes, H / 8, W / 8] of an image batch [N, 3, H, W].

    Training takes batches of two and more: a batch norm comes after pooling to one pixel.
    """

    def __init__(
        self, classes: int, depth: Literal[50, 101, 152] = 101, dropout: float = 0.1
    ) -> None:
        super().__init__()
        one_of("depth", depth, _BLOCKS)
        self.backbone = deep_resnet(_BLOCKS[depth], stem=64)
        narrow = _WIDTH // len(_BINS)
        self.pyramid = nn.ModuleList(conv_norm(_WIDTH, narrow, 1) for _ in _BINS)
        self.head = _head(2 * _WIDTH, narrow, classes, dropout)
        self.auxiliary = _head(_WIDTH // 2, _WIDTH // 8, classes, dropout)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        return self._main(stages(self.backbone, image)[3])

    def forward_train(self, image: Tensor) -> list[tuple[float, Tensor]]:
        """Return the logits, and those of the third stage with a weight of 0.4."""
        found = stages(self.backbone, image)
        return [(1.0, self._main(found[3])), (_AUXILIARY, self.auxiliary(found[2]))]

    def _main(self, top: Tensor) -> Tensor:
        size = size_of(top)
        pooled = (F.adaptive_avg_pool2d(top, bins) for bins in _BINS)
        seen = (resized(conv(x), size) for conv, x in zip(self.pyramid, pooled, strict=True))
        logits: Tensor = self.head(torch.cat((top, *seen), dim=1))
        return logits


def deep_resnet(
    blocks: tuple[int, ...], stem: int, channels: tuple[int, ...] = (64, 128, 256, 512)
) -> Any:
    """Return a ResNet with three 3x3 convolutions for a stem, and an output stride of 8."""
    block: Any = Bottleneck  # timm's annotation names an instance
    net: Any = ResNet(
        block, blocks, num_classes=0, stem_width=stem, stem_type="deep", channels=channels
    )
    dilate(net.layer3, 2)
    dilate(net.layer4, 4)
    return net


def _head(fan_in: int, width: int, classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        conv_norm(fan_in, width), nn.Dropout2d(dropout), nn.Conv2d(width, classes, 1)
    )
