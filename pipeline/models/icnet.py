"""ICNet (Zhao 2018, arXiv 1704.08545): three resolutions, the deeper the smaller, fused in turn.

Cityscapes val 67.7, test 69.5 mIoU; CamVid 67.1 at 960x720. The widths are those of the authors'
network after pruning (6.7 M parameters). Strides lie on the 3x3 convolutions, as in timm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from torch import nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from pipeline.models.layers import conv_norm, resized, size_of
from pipeline.models.pspnet import deep_resnet
from pipeline.models.resnet import stem

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.models.layers import Size

_BINS: Final = (1, 2, 3, 6)
_FUSED: Final = 128
_WEIGHTS: Final = (1.0, 0.4, 0.16)
"""Of the losses at 1/4, 1/8 and 1/16 of the size."""


class ICNet(nn.Module):
    """Return logits [N, classes, H / 4, W / 4] of an image batch [N, 3, H, W]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = deep_resnet((3, 4, 6, 3), stem=32, channels=(32, 64, 128, 256))
        self.narrow = conv_norm(1024, 256, 1)
        self.fine = nn.Sequential(
            conv_norm(3, 32, stride=2), conv_norm(32, 32, stride=2), conv_norm(32, 64, stride=2)
        )
        self.fuse_middle = _Fusion(256, 256)
        self.fuse_fine = _Fusion(_FUSED, 64)
        self.head = nn.Conv2d(_FUSED, classes, 1)
        self.auxiliary = nn.ModuleList((nn.Conv2d(_FUSED, classes, 1), nn.Conv2d(256, classes, 1)))

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.head(self._fused(image)[0])
        return logits

    def forward_train(self, image: Tensor) -> list[tuple[float, Tensor]]:
        """Return the logits, and those of what goes into either fusion."""
        heads = (self.head, *self.auxiliary)
        found = zip(_WEIGHTS, heads, self._fused(image), strict=True)
        return [(weight, head(x)) for weight, head, x in found]

    def _fused(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the features at 1/4, 1/8 and 1/16 of the size, each up-sampled from the deeper."""
        net = self.backbone
        x = net.layer1(net.maxpool(stem(net, resized(image, _half(size_of(image))))))
        middle = net.layer2[0](x)
        x = net.layer2[1:](resized(middle, _half(size_of(middle))))
        x = _pyramid(net.layer4(net.layer3(x)))
        coarse = resized(self.narrow(x), size_of(middle))
        fine = self.fine(image)
        joined = resized(self.fuse_middle(coarse, middle), size_of(fine))
        last = self.fuse_fine(joined, fine)
        high, wide = size_of(image)
        return resized(last, (-(-high // 4), -(-wide // 4))), joined, coarse


class _Fusion(nn.Module):
    """The cascade feature fusion: a dilated look at the coarse map beside the finer one."""

    def __init__(self, coarse: int, fine: int) -> None:
        super().__init__()
        self.coarse = conv_norm(coarse, _FUSED, dilation=2, act=False)
        self.fine = conv_norm(fine, _FUSED, 1, act=False)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        return F.relu(self.coarse(coarse) + self.fine(fine))


def _half(size: Size) -> Size:
    return -(-size[0] // 2), -(-size[1] // 2)


def _pyramid(x: Tensor) -> Tensor:
    """Add what pooling to a few bins sees: summed, where PSPNet concatenates."""
    seen = [resized(F.adaptive_avg_pool2d(x, bins), size_of(x)) for bins in _BINS]
    return x + seen[0] + seen[1] + seen[2] + seen[3]
