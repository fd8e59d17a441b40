"""RefineNet (Lin 2017, arXiv 1611.06612) and Light-Weight RefineNet (Nekrasov 2018, 1810.03272).

VOC 2012 test 82.4 mIoU (ResNet-101), 83.4 (ResNet-152); NYUDv2-40 46.5 (ResNet-152). Four pools in
a chain, as in the released VOC networks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from torch import nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from pipeline.models.layers import one_of, resized, size_of
from pipeline.models.resnet import resnet, stages

if TYPE_CHECKING:
    from torch import Tensor

_STAGES: Final = (256, 512, 1024, 2048)
_WIDTHS: Final = (256, 256, 256, 512)


class RefineNet(nn.Module):
    """Return logits [N, classes, H / 4, W / 4] of an image batch [N, 3, H, W].

    `pools` is the length of the residual pooling chain: 4 in the released VOC networks, 2 in the
    paper's text.
    """

    def __init__(
        self,
        classes: int,
        depth: Literal[50, 101, 152] = 101,
        pools: int = 4,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        one_of("depth", depth, (50, 101, 152))
        self.backbone = resnet(depth)
        self.reduce = nn.ModuleList(
            conv3(fan_in, width) for fan_in, width in zip(_STAGES, _WIDTHS, strict=True)
        )
        self.decoder = RefineDecoder(pools)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Conv2d(_WIDTHS[0], classes, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        found = stages(self.backbone, image)
        found[2:] = [self.dropout(x) for x in found[2:]]
        reduced = [conv(x) for conv, x in zip(self.reduce, found, strict=True)]
        logits: Tensor = self.head(self.dropout(self.decoder(reduced)))
        return logits


class RefineNetLight(nn.Module):
    """RefineNet without residual units, 1x1 convolutions for 3x3; the same sizes in and out."""

    def __init__(self, classes: int, depth: Literal[50, 101, 152] = 101, pools: int = 4) -> None:
        super().__init__()
        one_of("depth", depth, (50, 101, 152))
        self.backbone = resnet(depth)
        self.reduce = nn.ModuleList(
            _conv1(fan_in, width) for fan_in, width in zip(_STAGES, _WIDTHS, strict=True)
        )
        self.adapt = nn.ModuleList(_conv1(256, 256) for _ in range(3))
        self.pool = nn.ModuleList(ResidualPool(width, pools, kernel=1) for width in _WIDTHS)
        self.out = nn.ModuleList(_conv1(width, 256) for width in _WIDTHS[1:])
        self.head = nn.Conv2d(_WIDTHS[0], classes, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        found = [conv(x) for conv, x in zip(self.reduce, stages(self.backbone, image), strict=True)]
        x = self.pool[3](F.relu(found[3]))
        for level in (2, 1, 0):
            path = self.adapt[level](found[level])
            x = F.relu(path + resized(self.out[level](x), size_of(path)))
            x = self.pool[level](x)
        logits: Tensor = self.head(x)
        return logits


class RefineDecoder(nn.Module):
    """The four RefineNet blocks: maps of 256, 256, 256 and 512 channels to one of 256.

    The deepest block has one path; the others fuse their own with the block's below.
    """

    def __init__(self, pools: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(residual_units(width, 2) for width in _WIDTHS)
        self.adapt = nn.ModuleList(conv3(256, 256) for _ in range(3))
        self.pool = nn.ModuleList(ResidualPool(width, pools) for width in _WIDTHS)
        self.refine = nn.ModuleList(residual_units(width, 3) for width in _WIDTHS)
        self.out = nn.ModuleList(conv3(width, 256) for width in _WIDTHS[1:])

    def forward(self, found: list[Tensor]) -> Tensor:
        """Fuse the maps, from the deepest, the last in the list."""
        x: Tensor = self.refine[3](self.pool[3](F.relu(self.units[3](found[3]))))
        for level in (2, 1, 0):
            path = self.adapt[level](self.units[level](found[level]))
            x = F.relu(path + resized(self.out[level](x), size_of(path)))
            x = self.refine[level](self.pool[level](x))
        return x


class ResidualUnit(nn.Module):
    """x + conv(relu(conv(relu(x)))); only the first convolution has a bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = conv3(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the refined x, of the same shape."""
        refined: Tensor = self.second(F.relu(self.first(F.relu(x))))
        return x + refined


class ResidualPool(nn.Module):
    """The chained residual pooling: each link pools and convolves what the one before it made."""

    def __init__(self, width: int, pools: int, kernel: int = 3) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(width, width, kernel, padding=kernel // 2, bias=False) for _ in range(pools)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return x plus all links, of the same shape."""
        link = x
        for conv in self.convs:
            link = conv(F.max_pool2d(link, 5, stride=1, padding=2))
            x = x + link
        return x


def residual_units(width: int, count: int) -> nn.Sequential:
    """Return residual units in a row."""
    return nn.Sequential(*(ResidualUnit(width) for _ in range(count)))


def conv3(fan_in: int, out: int) -> nn.Conv2d:
    """Return a 3x3 convolution without bias that keeps the size."""
    return nn.Conv2d(fan_in, out, 3, padding=1, bias=False)


def _conv1(fan_in: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(fan_in, out, 1, bias=False)
