"""A network whose label map is the image: a class for each of 64 colours, two bits a channel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.models.loaded import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Colours(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        assert classes == 64
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        level = ((image * self.std + self.mean) * 255).round().clamp(0, 255).long() >> 6
        colour = level[:, 0] * 16 + level[:, 1] * 4 + level[:, 2]
        return nn.functional.one_hot(colour, 64).movedim(-1, 1).float() * 9


def make(classes: int) -> nn.Module:
    return Colours(int(classes))


def colours(rgb: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the class of each pixel of RGB [H, W, 3]."""
    level = rgb.astype(int) >> 6
    return level[..., 0] * 16 + level[..., 1] * 4 + level[..., 2]
