"""A network for fault tests: it tells who works, works slowly, and dies of a magenta image.

What it does is steered by files in the directory that SEGMILL_TEST_DIR names, as the environment of
an actor is that of its node: `pause` holds seconds a batch, `poison` makes magenta deadly.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

PROBE = 64
"""Width of the blank image that loading a model tries it with; ours are wider."""


class Steered(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, classes, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        place = os.environ.get("SEGMILL_TEST_DIR")
        if place and image.shape[-1] != PROBE:
            self.act(Path(place), image)
        return self.head(image)

    def act(self, place: Path, image: Tensor) -> None:
        node = "here"
        if "ray" in sys.modules and sys.modules["ray"].is_initialized():
            node = sys.modules["ray"].get_runtime_context().get_node_id()
        with open(place / "log", "a") as log:
            log.write(f"{os.getpid()} {node} {len(image)}\n")
        while (place / "hold").exists():
            time.sleep(0.02)
        if (place / "pause").exists():
            time.sleep(float((place / "pause").read_text()))
        magenta = (image[:, 0].amin((1, 2)) > 2) & (image[:, 1].amax((1, 2)) < -1.8)
        if bool(magenta.any()) and (place / "poison").exists():
            os.kill(os.getpid(), signal.SIGSEGV)


def make(classes: int) -> nn.Module:
    torch.manual_seed(0)
    return Steered(int(classes))
