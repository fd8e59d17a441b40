"""How weights move: the optimiser, its rate over the run, and the moving average of the weights."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from torch import nn

    from pipeline.training.recipe import Optimiser

_RESERVE: Final = 0.05
"""The share of a time budget kept for the last validation until one has been timed."""


def rate(progress: float, warmup: float, final: float) -> float:
    """Return the learning rate's factor at this share of the run: a ramp, then a cosine.

    >>> [round(rate(p, warmup=0.1, final=0.0), 2) for p in (0.0, 0.05, 0.1, 0.55, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        return progress / warmup
    cosine = (1 + math.cos(math.pi * (progress - warmup) / max(1 - warmup, 1e-9))) / 2
    return final + (1 - final) * cosine


@dataclass(slots=True)
class Clock:
    """How much of the run is over: by steps, by minutes, or by whichever is further.

    A run that was killed and goes on counts the time of its earlier processes too.
    """

    total_steps: int | None
    budget: float | None
    """Seconds for everything, the last validation included."""
    before: float = 0.0
    """Seconds that earlier processes of this run took."""
    validation: float | None = None
    """Seconds that the last validation took."""
    _start: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        """Seconds that the run has taken."""
        return self.before + time.monotonic() - self._start

    def progress(self, step: int) -> float:
        """Return the share of the training that is done before a step, 0 to 1 and beyond."""
        shares = [0.0]
        if self.total_steps is not None:
            shares.append((step + 0.5) / self.total_steps)
        if self.budget is not None:
            reserve = self.budget * _RESERVE if self.validation is None else self.validation
            shares.append(self.elapsed / max(self.budget - reserve, 1e-3))
        return max(shares)


def optimiser(module: nn.Module, how: Optimiser) -> torch.optim.AdamW:
    """Return AdamW that decays matrices and kernels only, not biases, norms and slopes."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": how.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=how.lr, fused=True)


class MovingAverage:
    """An exponential moving average of a network's weights and statistics."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        self._decay = decay

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the module's weights; early steps count for more, to forget the start."""
        keep = min(self._decay, (1 + step) / (10 + step))
        for mine, its in zip(
            self.module.state_dict().values(), module.state_dict().values(), strict=True
        ):
            if mine.is_floating_point():
                mine.lerp_(its, 1 - keep)
            else:
                mine.copy_(its)
