"""How weights move: the optimiser, its rate over the run, and the moving average of the weights."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from pipeline.training.recipe import Optimiser

_BACKBONES: Final = ("backbone.", "depth_backbone.", "encoder.")
"""How the zoo, torchvision and smp name what starts from weights of image classification."""
_RESERVE: Final = 0.05
"""The share of a time budget kept for the last validation until one has been timed."""


def rate(progress: float, how: Optimiser) -> float:
    """Return the learning rate's factor at this share of the run: a ramp, then the schedule.

    Steps fall at shares of the whole run, the other schedules begin where the ramp ends.

    >>> from pipeline.training.recipe import Optimiser
    >>> how = Optimiser(warmup=0.1)
    >>> [round(rate(p, how), 2) for p in (0.0, 0.05, 0.1, 0.55, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < how.warmup:
        return progress / how.warmup
    since = (progress - how.warmup) / max(1 - how.warmup, 1e-9)
    if how.schedule == "constant":
        return 1.0
    if how.schedule == "step":
        return float(how.gamma ** sum(progress >= at for at in how.milestones))
    if how.schedule == "exponential":
        return float(how.final**since)
    if how.schedule == "poly":
        falling = float((1 - since) ** how.power)
    else:
        falling = (1 + math.cos(math.pi * since)) / 2
    return how.final + (1 - how.final) * falling


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


def optimiser(module: nn.Module, how: Optimiser) -> torch.optim.Optimizer:
    """Return an optimiser that decays matrices and kernels only, not biases, norms and slopes.

    Each group's `factor` is what the rate is multiplied by in it.

    Raises:
        UsageError: the backbone shall have a rate of its own, and the network has none.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = []
    for inside, factor in ((True, how.backbone_lr), (False, 1.0)):
        part = [p for name, p in named if name.startswith(_BACKBONES) is inside]
        if inside and not part and factor != 1:
            raise UsageError(
                f"optimiser.backbone_lr: {type(module).__name__} has no part named "
                f"{' or '.join(b.rstrip('.') for b in _BACKBONES)}"
            )
        for wide, decay in ((True, how.weight_decay), (False, 0.0)):
            some = [p for p in part if (p.dim() > 1) is wide]
            if some:
                groups.append({"params": some, "weight_decay": decay, "factor": factor})
    match how.name:
        case "adamw":
            return torch.optim.AdamW(groups, lr=how.lr, fused=True)
        case "adam":
            return torch.optim.Adam(groups, lr=how.lr, fused=True)
        case "rmsprop":
            return torch.optim.RMSprop(groups, lr=how.lr)
        case "sgd":
            return torch.optim.SGD(
                groups, lr=how.lr, momentum=how.momentum, nesterov=how.nesterov, fused=True
            )


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
