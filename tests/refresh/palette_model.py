"""A network that names a pixel by the nearest of four colours; `bias` makes it prefer the first."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.label_space import LabelClass, LabelSpace
from pipeline.models.loaded import Architecture, LoadedModel, Preprocessing

COLOURS = ((200, 60, 60), (60, 200, 60), (60, 60, 200), (120, 120, 120))
SPACE = LabelSpace(
    "palette-4",
    tuple(LabelClass(i, n, c) for i, (n, c) in enumerate(zip("abcd", COLOURS, strict=True))),
    255,
)


class Nearest(nn.Module):
    def __init__(self, bias: float, sharp: float) -> None:
        super().__init__()
        self.register_buffer("colours", torch.tensor(COLOURS) / 255)
        self.register_buffer("bias", torch.tensor([bias, 0, 0, 0]).view(1, 4, 1, 1))
        self.register_buffer("sharp", torch.tensor(sharp))

    def forward(self, image: Tensor) -> Tensor:
        distance = (image[:, None] - self.colours[None, :, :, None, None]).square().sum(2)
        return -self.sharp * distance + self.bias


def make(bias: float = 0.0, sharp: float = 30.0) -> LoadedModel:
    still = Preprocessing((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), multiple=1)
    return LoadedModel(
        Nearest(float(bias), float(sharp)), SPACE, still, "", "", Architecture("python", "", {})
    )


def uri(bias: float = 0.0, sharp: float = 30.0) -> str:
    return f"python:tests.refresh.palette_model:make?bias={bias}&sharp={sharp}"


GOOD, BETTER, POISONED = uri(1.0), uri(0.0), uri(40.0)
