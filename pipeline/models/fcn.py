"""FCN-32s, -16s and -8s on VGG-16 (Long 2015, Shelhamer 2017, arXiv 1411.4038).

VOC 2011 val: 59.4, 62.4, 62.7 mIoU. Up-sampling is by transposed convolutions that begin as
bilinear; the last one stays so. Stages are trained one from the other: a recipe's `start_from`
takes all tensors of the same name and shape, so `fcn16s` goes on from the weights of `fcn32s`, and
`fcn8s` from those of `fcn16s`. `?at_once=true` scales the skips down instead, to train all at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from torch import nn

from pipeline.models.layers import bilinear_deconv, cropped, one_of, size_of
from pipeline.models.vgg import VGG16

if TYPE_CHECKING:
    from torch import Tensor

_BORDER: Final = 100  # around the image, so that the 7x7 layer fits into small ones
_CROPS: Final = {32: 19, 16: 27, 8: 31}
"""Where the image begins in the last up-sampled map, by stride (the authors' net.py)."""
_SKIPS: Final = {"pool4": (512, 5, 0.01), "pool3": (256, 9, 0.0001)}
"""Width, where the deeper scores begin in the skip's, and its scale when trained at once."""


class FCN(nn.Module):
    """Return logits [N, classes, H, W] of an image batch [N, 3, H, W]."""

    def __init__(
        self,
        classes: int,
        stride: Literal[32, 16, 8] = 8,
        *,
        at_once: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        one_of("stride", stride, _CROPS)
        self.backbone = VGG16(fc6_dilation=1, dropout=dropout)
        self.backbone.convs[0].padding = (_BORDER, _BORDER)
        for place in self.backbone.pools:
            self.backbone.features[place] = nn.MaxPool2d(2, ceil_mode=True)
        self.score = _zero(nn.Conv2d(4096, classes, 1))
        self.skips = [name for name, at in (("pool4", 16), ("pool3", 8)) if at >= stride]
        self.scores = nn.ModuleDict(
            {name: _zero(nn.Conv2d(_SKIPS[name][0], classes, 1)) for name in self.skips}
        )
        self.doubled = nn.ModuleList(bilinear_deconv(classes, 2, learned=True) for _ in self.skips)
        self.up = bilinear_deconv(classes, stride)
        self.at_once = at_once
        self.border = _CROPS[stride]

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        pooled = self.backbone(image)
        x = self.score(self.backbone.classifier(pooled[4]))
        for name, up in zip(self.skips, self.doubled, strict=True):
            _, offset, scale = _SKIPS[name]
            skip = pooled[int(name[-1]) - 1]
            score = self.scores[name](skip * scale if self.at_once else skip)
            x = up(x)
            x = x + cropped(score, size_of(x), offset)
        return cropped(self.up(x), size_of(image), self.border)


def _zero(conv: nn.Conv2d) -> nn.Conv2d:
    """Start from zero, as section 4 says: random scores were no better nor faster."""
    nn.init.zeros_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv
