"""Dilated front end and context module on VGG-16 (Yu & Koltun 2016, arXiv 1511.07122).

CamVid-11: 65.3 mIoU (Dilation8); Cityscapes test 67.1 (Dilation10); VOC 2012 val 71.3 with the
basic context module, 72.1 with the large one. The front end pads nothing: the image gets a mirrored
border of 186 pixels. The context module pads layer by layer, as the Cityscapes network does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import torch
from torch import nn

from pipeline.models.layers import bilinear_deconv, cropped, mirrored, one_of, size_of
from pipeline.models.vgg import VGG16

if TYPE_CHECKING:
    from torch import Tensor

_MARGIN: Final = 186
_STRIDE: Final = 8
_DILATIONS: Final = {
    7: (1, 1, 2, 4, 8, 1),
    8: (1, 1, 2, 4, 8, 16, 1),
    10: (1, 1, 2, 4, 8, 16, 32, 64, 1),
}
"""Of the context module's 3x3 convolutions, by how many layers the network is said to have."""
_LARGE: Final = (2, 2, 4, 8, 16, 32, 32)
"""Widths of the large context module, in numbers of classes."""
_NOISE: Final = 1e-3  # around the identity, to break the symmetry of equal channels


class Dilation(nn.Module):
    """Return logits [N, classes, H / 8, W / 8] of an image batch [N, 3, H, W].

    `layers` is the context module's: 8 for CamVid and VOC, 10 for Cityscapes, 7 for KITTI.
    `context` "none" leaves the front end alone, which is trained first; "large" is for 8 layers.
    `deconv` adds a fixed bilinear transposed convolution to the image's size, as the authors'
    Cityscapes network has; its numbers count as parameters.
    """

    def __init__(
        self,
        classes: int,
        layers: Literal[7, 8, 10] = 8,
        context: Literal["basic", "large", "none"] = "basic",
        *,
        deconv: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        one_of("layers", layers, _DILATIONS)
        one_of("context", context, ("basic", "large", "none"))
        if context == "large" and layers != 8:
            raise TypeError("the large context module has 8 layers")
        self.backbone = _front_end(dropout)
        self.score = nn.Conv2d(4096, classes, 1)
        nn.init.normal_(self.score.weight, std=0.01)
        widths = _LARGE if context == "large" else (1,) * len(_DILATIONS[layers])
        self.context = (
            nn.Identity() if context == "none" else _context(classes, _DILATIONS[layers], widths)
        )
        up = bilinear_deconv(classes, _STRIDE, groups=classes, padding=4)
        self.up = up if deconv else nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        down, right = (-n % _STRIDE for n in size_of(image))
        padded = mirrored(image, (_MARGIN, _MARGIN), (_MARGIN + down, _MARGIN + right))
        score = self.score(self.backbone.classifier(self.backbone(padded)[-1]))
        return cropped(self.up(self.context(score)), size_of(image))


def _front_end(dropout: float) -> VGG16:
    """Return VGG-16 without its last two pools, dilated instead, and without padding."""
    net = VGG16(fc6_dilation=4, dropout=dropout)
    for conv in net.convs:
        conv.padding = (0, 0)
    for conv in net.convs[-3:]:
        conv.dilation = (2, 2)
    for place in net.pools[-2:]:
        net.features[place] = nn.Identity()
    return net


def _context(classes: int, dilations: tuple[int, ...], widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    fan_in = classes
    for dilation, width in zip(dilations, widths, strict=True):
        out = width * classes
        conv = nn.Conv2d(fan_in, out, 3, padding=dilation, dilation=dilation)
        layers += [_identity(conv, classes), nn.ReLU(inplace=True)]
        fan_in = out
    return nn.Sequential(*layers, _identity(nn.Conv2d(fan_in, classes, 1), classes))


def _identity(conv: nn.Conv2d, classes: int) -> nn.Conv2d:
    """Let the layer begin by passing on what it gets (section 4), wider ones in equal shares."""
    into, out = conv.in_channels // classes, conv.out_channels // classes
    share = 1 / into  # each class's channels in, averaged into each of its channels out
    eye = torch.eye(classes).repeat_interleave(out, 0).repeat_interleave(into, 1) * share
    middle = conv.kernel_size[0] // 2
    with torch.no_grad():
        conv.weight.normal_(std=_NOISE if max(into, out) > 1 else 0.0)
        conv.weight[:, :, middle, middle] += eye
        assert conv.bias is not None
        conv.bias.zero_()
    return conv
