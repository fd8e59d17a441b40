"""A model for fault tests: slow, and it writes down every image that it is given."""

from __future__ import annotations

import os
import time

import torch
from torch import Tensor, nn


class Slow(nn.Module):
    """One convolution; logs a line for each image of a forward pass."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, classes, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[-1] != 64:  # the size of the blank image that loading a model probes with
            with open(os.environ["SEGMILL_TEST_LOG"], "a") as log:
                log.write("image\n" * len(image))
        time.sleep(float(os.environ.get("SEGMILL_TEST_SLEEP", "0")))
        return self.head(image)


def build(classes: int) -> nn.Module:
    torch.manual_seed(0)
    return Slow(classes)
