"""DeepLab v1 (Chen 2015, arXiv 1412.7062) and v2 (Chen 2017, arXiv 1606.00915).

VOC 2012 val: v1 LargeFOV 62.3 mIoU, 67.6 with a dense CRF (`segmill label --refine densecrf`); v2
on ResNet-101 76.4, 77.7 with it. Logits are at an eighth of the image's size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import torch
from torch import nn

from pipeline.models.layers import he_normal, one_of, resized, size_of
from pipeline.models.resnet import resnet, stages
from pipeline.models.vgg import VGG16

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_LARGE: Final = (6, 12, 18, 24)
_SMALL: Final = (2, 4, 8, 12)
_WIDE: Final = 1024
_BRANCH: Final = 128
_STEPS: Final = ((3, 8), (64, 4), (128, 2), (256, 1), (512, 1))
"""Width of the image and of the first four pools, and the stride that brings it to an eighth."""


class DeepLabV1(nn.Module):
    """VGG-16 with a dilated 3x3 layer on top (LargeFOV): logits [N, classes, H / 8, W / 8].

    `multiscale` adds what two small layers see in the image and in each of the first four pools.
    """

    def __init__(self, classes: int, *, multiscale: bool = False, dropout: float = 0.5) -> None:
        super().__init__()
        self.backbone = _dilated_vgg()
        self.top = _top(12, dropout)
        steps = _STEPS if multiscale else ()
        self.branches = nn.ModuleList(_branch(width, stride, dropout) for width, stride in steps)
        self.score = _scores(_WIDE + _BRANCH * len(steps), classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        pooled = self.backbone(image)
        seen = [image, *pooled[:4]]
        found = [branch(x) for branch, x in zip(self.branches, seen, strict=False)]
        logits: Tensor = self.score(torch.cat([self.top(pooled[4]), *found], dim=1))
        return logits


class DeepLabV2VGG(nn.Module):
    """VGG-16 with atrous spatial pyramid pooling: logits [N, classes, H / 8, W / 8].

    The scores of four branches are summed; `field` is how far they see.
    """

    def __init__(
        self, classes: int, field: Literal["large", "small"] = "large", dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.backbone = _dilated_vgg()
        self.branches = nn.ModuleList(
            nn.Sequential(*_top(dilation, dropout), _scores(_WIDE, classes))
            for dilation in _rates(field)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        top = self.backbone(image)[4]
        return torch.stack([branch(top) for branch in self.branches]).sum(dim=0)


class DeepLabV2(nn.Module):
    """ResNet-101 with atrous spatial pyramid pooling: logits [N, classes, H / 8, W / 8].

    `scales` of the image are scored one by one and their maximum is taken; the paper's best has
    0.5, 0.75 and 1. Training adds a loss for each scale.
    """

    def __init__(
        self,
        classes: int,
        depth: Literal[50, 101, 152] = 101,
        field: Literal["large", "small"] = "large",
        scales: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__()
        self.scales = tuple(scales)
        one_of("depth", depth, (50, 101, 152))
        self.backbone = resnet(depth, {"layer3": 2, "layer4": 4})
        self.branches = nn.ModuleList(
            _scores(2048, classes, kernel=3, dilation=dilation) for dilation in _rates(field)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        return self._fused([self._scores_at(image, scale) for scale in self.scales])

    def forward_train(self, image: Tensor) -> list[tuple[float, Tensor]]:
        """Return the logits, and those of each scale where there are several."""
        found = [self._scores_at(image, scale) for scale in self.scales]
        each = [(1.0, logits) for logits in found] if len(found) > 1 else []
        return [(1.0, self._fused(found)), *each]

    def _scores_at(self, image: Tensor, scale: float) -> Tensor:
        high, wide = size_of(image)
        image = resized(image, (round(high * scale), round(wide * scale)))
        top = stages(self.backbone, image)[3]
        return torch.stack([branch(top) for branch in self.branches]).sum(dim=0)

    def _fused(self, found: list[Tensor]) -> Tensor:
        size = max(size_of(logits) for logits in found)
        return torch.stack([resized(logits, size) for logits in found]).amax(dim=0)


def _rates(field: str) -> tuple[int, ...]:
    one_of("field", field, ("large", "small"))
    return _LARGE if field == "large" else _SMALL


def _dilated_vgg() -> VGG16:
    """Return VGG-16 with 3x3 pools, the last two of which keep the size."""
    net = VGG16()
    for number, place in enumerate(net.pools):
        net.features[place] = nn.MaxPool2d(3, stride=2 if number < 3 else 1, padding=1)
    for conv in net.convs[-3:]:
        conv.dilation, conv.padding = (2, 2), (2, 2)
    return net


def _top(dilation: int, dropout: float) -> nn.Sequential:
    """Return the dilated fc6 and fc7."""
    layers = nn.Sequential(
        nn.Conv2d(512, _WIDE, 3, padding=dilation, dilation=dilation),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Conv2d(_WIDE, _WIDE, 1),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
    )
    he_normal(layers)
    return layers


def _branch(width: int, stride: int, dropout: float) -> nn.Sequential:
    layers = nn.Sequential(
        nn.Conv2d(width, _BRANCH, 3, stride, padding=1),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Conv2d(_BRANCH, _BRANCH, 1),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
    )
    he_normal(layers)
    return layers


def _scores(width: int, classes: int, kernel: int = 1, dilation: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(width, classes, kernel, padding=dilation * (kernel // 2), dilation=dilation)
    nn.init.normal_(conv.weight, std=0.01)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv
