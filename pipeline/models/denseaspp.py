"""DenseASPP (Yang 2018, CVPR): each dilated layer sees all before it; on a dilated DenseNet.

Cityscapes val 79.9 mIoU (DenseNet-161), test 80.6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from torch import nn
from torchvision.models import DenseNet

from pipeline.models.layers import one_of

if TYPE_CHECKING:
    from torch import Tensor

_PLANS: Final = {
    121: (32, (6, 12, 24, 16), 64, 128, 64),
    161: (48, (6, 12, 36, 24), 96, 512, 128),
    169: (32, (6, 12, 32, 32), 64, 336, 168),
    201: (32, (6, 12, 48, 32), 64, 480, 240),
}
"""Of the DenseNet growth, blocks and first width; of the pyramid the 1x1 and 3x3 widths."""
_DILATIONS: Final = (3, 6, 12, 18, 24)


class DenseASPP(nn.Module):
    """Return logits [N, classes, H / 8, W / 8] of an image batch [N, 3, H, W]."""

    def __init__(
        self, classes: int, depth: Literal[121, 161, 169, 201] = 161, dropout: float = 0.1
    ) -> None:
        super().__init__()
        one_of("depth", depth, _PLANS)
        growth, blocks, first, inner, out = _PLANS[depth]
        self.backbone: Any = DenseNet(growth, blocks, first)
        deep = self.backbone.classifier.in_features
        del self.backbone.classifier, self.backbone.features.norm5
        _dilate(self.backbone.features)
        width = deep // 2
        # What DenseNet does between blocks, once more behind the last.
        self.narrow = nn.Sequential(
            nn.BatchNorm2d(deep),
            nn.ReLU(inplace=True),
            nn.Conv2d(deep, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        self.pyramid = nn.ModuleList(
            _layer(width + i * out, inner, out, dilation, dropout, first=i == 0)
            for i, dilation in enumerate(_DILATIONS)
        )
        self.dropout = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(width + len(_DILATIONS) * out, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        x = self.narrow(self.backbone.features(image))
        for layer in self.pyramid:
            x = torch.cat((layer(x), x), dim=1)
        logits: Tensor = self.head(self.dropout(x))
        return logits


def _dilate(features: Any) -> None:
    """Take the last two halvings out, and dilate what follows them."""
    for name, dilation in (("2", 2), ("3", 4)):
        features.get_submodule(f"transition{name}").pool = nn.Identity()
        for layer in features.get_submodule(f"denseblock{int(name) + 1}").modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                layer.dilation, layer.padding = (dilation, dilation), (dilation, dilation)


def _layer(
    fan_in: int, inner: int, out: int, dilation: int, dropout: float, *, first: bool
) -> nn.Sequential:
    norm = [] if first else [nn.BatchNorm2d(fan_in), nn.ReLU()]
    return nn.Sequential(
        *norm,
        nn.Conv2d(fan_in, inner, 1),
        nn.BatchNorm2d(inner),
        nn.ReLU(inplace=True),
        nn.Conv2d(inner, out, 3, padding=dilation, dilation=dilation),
        nn.Dropout2d(dropout),
    )
