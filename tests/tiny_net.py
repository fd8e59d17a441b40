"""Networks small enough to train in a test, for `python:` model URIs."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def make(classes: int) -> nn.Module:
    """Logits at a quarter of the size, with batch norm and dropout."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU(),
        nn.Dropout2d(0.1), nn.Conv2d(24, classes, 1),
    )  # fmt: skip


def plain(classes: int) -> nn.Module:
    """Logits at full size, each image for itself."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, classes, 1))


class Deep(nn.Module):
    """A network with a head for training alone, of a quarter of the size and half the weight."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 2, 1)
        self.head = nn.Conv2d(8, classes, 1)
        self.auxiliary = nn.Conv2d(8, classes, 3, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        return self.forward_train(image)[0][1]

    def forward_train(self, image: Tensor) -> list[tuple[float, Tensor]]:
        """Return both heads' weights and logits."""
        x = torch.tanh(self.first(image))
        return [(1.0, self.head(x)), (0.5, self.auxiliary(x))]


class Four(nn.Module):
    """Logits from colours and depth, each pixel for itself."""

    in_channels = 4

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(4, 16, 1), nn.ReLU(), nn.Conv2d(16, classes, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits at full size."""
        logits: Tensor = self.net(image)
        return logits
