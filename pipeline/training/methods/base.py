"""What the methods share: a network with its optimiser, one step, and what a resumed run needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import UsageError
from pipeline.training.schedule import MovingAverage, optimiser, rate
from pipeline.training.validate import Normaliser

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from pipeline.models import LoadedModel
    from pipeline.training.learner import Task
    from pipeline.training.place import Place
    from pipeline.training.recipe import Recipe
    from pipeline.training.unlabelled import Streams


class Base(ABC):
    """A method on one worker; a subclass says what its losses are."""

    def __init__(self, model: LoadedModel, recipe: Recipe, place: Place, task: Task) -> None:
        if place.world > 1:
            raise UsageError(
                f"method {recipe.method.name!r} trains on one worker; leave --workers out"
            )
        self.recipe, self.place, self.task = recipe, place, task
        self.module = model.module.to(place.device).to(memory_format=torch.channels_last)
        self.criterion = task.criterion(recipe)
        self.normalise = Normaliser(model.preprocessing, place.device).colours
        half = place.precision(recipe.precision) == "fp16" and place.device.type == "cuda"
        self._scaler = torch.amp.GradScaler(place.device.type, enabled=half)
        self._noted: dict[str, tuple[Tensor, int]] = {}
        self._begin()

    def _begin(self) -> None:
        """Make optimiser and moving average for the module as it is."""
        self.optimiser = optimiser(self.module, self.recipe.optimiser)
        self.average = self._averaged()

    def _averaged(self) -> MovingAverage | None:
        decay = self.recipe.ema
        return None if decay is None else MovingAverage(self.module, decay)

    @property
    def best_guess(self) -> nn.Module:
        """The network to use: the moving average where there is one."""
        return self.module if self.average is None else self.average.module

    @abstractmethod
    def losses(self, streams: Streams, share: float) -> dict[str, Tensor]:
        """Return what is made small, by name; each is scaled as it counts."""

    def pace(self, share: float) -> float:
        """Return the share of the run by which the learning rate goes."""
        return share

    def also(self, streams: Streams, share: float) -> dict[str, Tensor]:
        """Train what learns beside the segmenter, after its step; return those losses."""
        return {}

    def step(self, streams: Streams, number: int, share: float) -> tuple[Tensor, float]:
        """Change the weights once; return the segmenter's loss and its learning rate."""
        how, parts = self.recipe.optimiser, self.recipe.accumulate
        lr = how.lr * rate(self.pace(share), how)
        for group in self.optimiser.param_groups:
            group["lr"] = lr * group["factor"]
        self.optimiser.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.place.device)
        for _ in range(parts):
            losses = self.losses(streams, share)
            loss = torch.stack(list(losses.values())).sum() / parts
            torch.autograd.backward(self._scaler.scale(loss))
            total += loss.detach()
            self.note(**losses)
        if how.clip_norm is not None:
            self._scaler.unscale_(self.optimiser)
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), how.clip_norm)
        self._scaler.step(self.optimiser)
        self._scaler.update()
        if self.average is not None:
            self.average.update(self.module, self.age(number))
        self.note(**self.also(streams, share))
        return total, lr

    def age(self, number: int) -> int:
        """Return how many steps the module has made before this one, the run's `number`."""
        return number

    def logits(self, images: Tensor) -> Tensor:
        """Return the module's logits [N, C, h, w], float32, of normalised images."""
        with self.place.autocast(self.recipe.precision):
            out: Tensor = self.module(images)
        return out.float()

    def supervised(self, streams: Streams) -> tuple[Tensor, Tensor]:
        """Return the next labelled images, normalised, and their labels, on the device."""
        batch = next(streams)
        labels = batch.labels.to(self.place.device, non_blocking=True)
        return self.normalise(batch.images), labels

    def note(self, **values: Tensor) -> None:
        """Add figures to the epoch's means, each over the times that it was noted."""
        for name, value in values.items():
            total, times = self._noted.get(name, (torch.zeros_like(value), 0))
            self._noted[name] = total + value.detach(), times + 1

    def figures(self) -> dict[str, float]:
        """Return the means since it was last asked."""
        out = {name: float(total) / times for name, (total, times) in self._noted.items()}
        self._noted = {}
        return out

    def parts(self) -> dict[str, Any]:
        """Return all that has a state, by name."""
        out = {"module": self.module, "optimiser": self.optimiser, "scaler": self._scaler}
        return out if self.average is None else {**out, "average": self.average.module}

    def state(self) -> dict[str, Any]:
        """Return all that a resumed run needs."""
        return {name: part.state_dict() for name, part in self.parts().items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        for name, part in self.parts().items():
            part.load_state_dict(state[name])


@contextmanager
def held(module: nn.Module) -> Iterator[None]:
    """Let gradients pass through a network, not into it."""
    learns = [p for p in module.parameters() if p.requires_grad]
    for p in learns:
        p.requires_grad = False
    try:
        yield
    finally:
        for p in learns:
            p.requires_grad = True


@contextmanager
def own_statistics(module: nn.Module) -> Iterator[None]:
    """Keep the running statistics of batch norms as they are: these images are no real ones."""
    norms = [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    before = [m.momentum for m in norms]
    for m in norms:
        m.momentum = 0.0
    try:
        yield
    finally:
        for m, momentum in zip(norms, before, strict=True):
            m.momentum = momentum
