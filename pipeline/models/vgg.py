"""VGG-16 (Simonyan 2014, arXiv 1409.1556) as the networks of 2015 use it.

The layers are torchvision's, and so are the names in the state dict: its published weights fit. The
fully connected layers are convolutions here, of the same numbers in the same order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from pipeline.models.layers import he_normal

if TYPE_CHECKING:
    from torch import Tensor


class VGG16(nn.Module):
    """The thirteen convolutions and five pools; `fc6_dilation` adds the two wide layers above.

    Those are a 7x7 convolution to 4096 and a 1x1 one, unpadded, with drop-out.
    """

    def __init__(
        self, *, norm: bool = False, fc6_dilation: int | None = None, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.features: nn.Sequential = make_layers(cfgs["D"], batch_norm=norm)
        if fc6_dilation is not None:
            self.classifier = nn.Sequential(
                nn.Conv2d(512, 4096, 7, dilation=fc6_dilation),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
                nn.Conv2d(4096, 4096, 1),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
            )
        he_normal(self)

    @property
    def convs(self) -> list[nn.Conv2d]:
        """The thirteen convolutions, from conv1_1 to conv5_3."""
        return [layer for layer in self.features if isinstance(layer, nn.Conv2d)]

    @property
    def pools(self) -> list[int]:
        """The places of the five pools in `features`."""
        return [i for i, layer in enumerate(self.features) if isinstance(layer, nn.MaxPool2d)]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return what comes out of each of the five pools (or of what stands in for one)."""
        return [after for _, after in self.levels(x)]

    def levels(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the features before and after each of the five pools."""
        found = []
        for layer in self.features:
            before, x = x, layer(x)
            if isinstance(layer, nn.MaxPool2d | nn.Identity):
                found.append((before, x))
        return found
