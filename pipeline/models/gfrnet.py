"""G-FRNet, the gated feedback refinement network (Islam 2017, CVPR), on VGG-16.

CamVid-11: 68.0 mIoU. A gate lets a fine map through where a coarser one agrees; each stage refines
the prediction before it, and training judges all six.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from pipeline.models.layers import conv_norm, he_normal, resized, size_of
from pipeline.models.vgg import VGG16

if TYPE_CHECKING:
    from torch import Tensor

_WIDTHS: Final = (512, 512, 256, 128, 64)
"""Of conv5_3, conv4_3, conv3_3, conv2_2, conv1_2."""
_WIDE: Final = 1024
_DROPPED: Final = (2, 3, 4)
"""The pools after which features are dropped."""


class GFRNet(nn.Module):
    """Return logits [N, classes, H, W] of an image batch [N, 3, H, W]."""

    def __init__(self, classes: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.backbone = VGG16(norm=True)
        for number in _DROPPED:
            place = self.backbone.pools[number]
            self.backbone.features[place] = _Pool(dropout)
        self.top = nn.Sequential(
            conv_norm(512, _WIDE, bias=True),
            nn.Dropout(dropout),
            conv_norm(_WIDE, _WIDE, bias=True),
            nn.Dropout(dropout),
        )
        self.coarse = _conv(_WIDE, classes)
        self.deepest = _conv(512, classes)
        self.features = nn.ModuleList(
            nn.Sequential(_conv(width, classes), nn.BatchNorm2d(classes)) for width in _WIDTHS
        )
        self.gates = nn.ModuleList(nn.BatchNorm2d(classes) for _ in _WIDTHS)
        self.refine = nn.ModuleList(_conv(2 * classes, classes) for _ in _WIDTHS)
        for layer in (self.top, self.coarse, self.deepest, self.features, self.refine):
            he_normal(layer)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of the last stage."""
        return self._stages(image)[-1]

    def forward_train(self, image: Tensor) -> list[tuple[float, Tensor]]:
        """Return the logits of all six stages, the last first, of equal weight."""
        return [(1.0, logits) for logits in reversed(self._stages(image))]

    def _stages(self, image: Tensor) -> list[Tensor]:
        levels = self.backbone.levels(image)
        pool5 = levels[-1][1]
        found = [self.coarse(self.top(pool5))]
        deeper = self.deepest(pool5)
        fine = (before for before, _ in reversed(levels))
        stages = zip(fine, self.features, self.gates, self.refine, strict=True)
        for x, feature, norm, refine in stages:
            shallow = feature(x)
            size = size_of(shallow)
            gate = norm(shallow * resized(deeper, size))
            found.append(refine(torch.cat((gate, resized(found[-1], size)), dim=1)))
            deeper = shallow
        return found


class _Pool(nn.MaxPool2d):
    """A 2x2 max-pool with drop-out."""

    def __init__(self, dropout: float) -> None:
        super().__init__(2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dropout(super().forward(x))
        return out


def _conv(fan_in: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(fan_in, out, 3, padding=1)
