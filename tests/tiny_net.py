"""Networks small enough to train in a test, for `python:` model URIs."""

from __future__ import annotations

from torch import nn


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
