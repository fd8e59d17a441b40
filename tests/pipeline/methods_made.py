"""Methods made ready for a step, endless random batches, and what a step changed."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipeline.training.batches import Batch
from pipeline.training.learner import Task, open_model
from pipeline.training.methods import make_method
from pipeline.training.unlabelled import Pictures, Streams
from tests.streets import HERE, MODEL, recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

VOID = 255


def made(store: Any, method: Any, model: str = MODEL, **changes: Any) -> Any:
    how = recipe(
        model=model, method=method, batch=2, ema=None, class_weights="none", precision="fp32",
        optimiser={"lr": 1e-2, "weight_decay": 0.0, "warmup": 0.0}, **changes,
    )  # fmt: skip
    method = make_method(open_model(how, store), how, HERE, Task(VOID, None))
    method.module.train()
    return method


def streams(*, labels: Tensor | None = None) -> Streams:
    """Return random batches without end, all of whose pictures show classes 1 and 4."""
    generator = torch.Generator().manual_seed(1)

    def images() -> Tensor:
        return torch.randint(0, 256, (2, 32, 40, 3), dtype=torch.uint8, generator=generator)

    def labelled() -> Iterator[Batch]:
        while True:
            own = torch.randint(0, 11, (2, 32, 40), dtype=torch.uint8, generator=generator)
            yield Batch(images(), own if labels is None else labels)

    def others() -> Iterator[Pictures]:
        present = torch.zeros(2, 11)
        present[:, [1, 4]] = 1
        while True:
            yield Pictures(("a", "b"), images(), torch.ones(2, 32, 40, dtype=torch.bool), present)

    return Streams(labelled(), {"unlabelled": others(), "weak": others()})


def gradients(module: nn.Module) -> bool:
    """Tell whether any parameter has a gradient that is not nothing."""
    return any(p.grad is not None and p.grad.any() for p in module.parameters())


def state(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def moved(before: dict[str, Tensor], module: nn.Module) -> bool:
    return any(not torch.equal(v, before[k]) for k, v in module.state_dict().items())
