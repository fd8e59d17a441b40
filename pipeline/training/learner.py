"""The learner: a network, its optimiser and its moving average; one call changes the weights."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import torch

from pipeline.errors import UsageError
from pipeline.models import load_model
from pipeline.models.heads import WeightedHeads
from pipeline.models.uri import parse
from pipeline.models.weights import put_matching, read_weights
from pipeline.training.losses import criterion
from pipeline.training.schedule import MovingAverage, optimiser, rate
from pipeline.training.validate import Normaliser

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from pipeline.models import LoadedModel
    from pipeline.store import Store
    from pipeline.training.batches import Batch
    from pipeline.training.losses import Criterion
    from pipeline.training.place import Place
    from pipeline.training.recipe import Recipe


_WITH_DEPTH: Final = 4
_TRAINED: Final = frozenset({"run", "shipped"})
"""Kinds of model that come with weights and classes of their own."""


def open_model(recipe: Recipe, store: Store) -> LoadedModel:
    """Load the recipe's model with the classes that it shall learn.

    Raises:
        UsageError: neither recipe nor model name the classes, and the store has several lists; or
            the model finds objects, or is a program that has no weights to learn.
    """
    uri = parse(recipe.model)
    if uri.kind in {"export", "onnx", "script"}:
        raise UsageError(f"{uri.text}: is a program; training needs the network that it came from")
    text = uri.text
    if "seed" not in uri.options and uri.kind not in _TRAINED:
        text += f"{'&' if uri.options else '?'}seed={recipe.seed}"
    settled = uri.kind in {*_TRAINED, "hf"} and "head" not in uri.options
    settled = settled or bool({"label_space", "weights"} & uri.options.keys())
    space = recipe.label_space
    if space is None and not settled:
        known = list(store.label_spaces.values())
        if len(known) != 1:
            raise UsageError(
                f"{store.url}: holds label spaces {', '.join(s.name for s in known)}; the recipe "
                "must say which to learn: label_space: NAME"
            )
        model = load_model(text, label_space=known[0])
    else:
        model = load_model(text, label_space=space)
    if model.objects is not None:
        raise UsageError(f"{uri.text}: finds objects, and training here is of class maps")
    if recipe.start_from is not None:
        put_matching(model, read_weights(recipe.start_from), recipe.start_from)
    if recipe.input_size is not None:
        model.preprocessing = replace(model.preprocessing, size=recipe.input_size)
    _take_depth(model, recipe)
    # Crops are trained on at the images' own scale, which is then the scale to label at.
    model.preprocessing = replace(model.preprocessing, edge=None)
    return model


def _take_depth(model: LoadedModel, recipe: Recipe) -> None:
    """Put the recipe's scale of depth into the model.

    Raises:
        UsageError: one of them knows of depth and the other doesn't.
    """
    channels, scale = getattr(model.module, "in_channels", 3), recipe.depth
    if channels > _WITH_DEPTH:
        raise UsageError(
            f"{model.uri}: takes {channels} channels; training gives red, green, blue and one of "
            "depth (for RDFNet leave depth_channels out)"
        )
    if (channels == _WITH_DEPTH) != (scale is not None):
        raise UsageError(
            f"{model.uri}: takes depth; the recipe must say how to scale it, in metres: "
            "depth: {mean: 2.8, std: 1.3}"
            if scale is None
            else f"{model.uri}: takes colours alone; the recipe must not name depth"
        )
    if scale is not None:
        model.preprocessing = replace(model.preprocessing, depth=(scale.mean, scale.std))


@dataclass(frozen=True, slots=True)
class Task:
    """What the loss takes beside logits and labels."""

    void: int
    weights: Tensor | None
    """One for each class, or None for equal ones."""

    def criterion(self, recipe: Recipe) -> Criterion:
        """Return the recipe's loss for this task."""
        return criterion(recipe.loss, self.void, self.weights)


class Learner:
    """A network in training on one worker."""

    def __init__(self, model: LoadedModel, recipe: Recipe, place: Place, task: Task) -> None:
        self._recipe, self._place = recipe, place
        self._criterion = task.criterion(recipe)
        self.module = model.module.to(place.device).to(memory_format=torch.channels_last)
        self._spread = place.spread(WeightedHeads(self.module))
        self._optimiser = optimiser(self.module, recipe.optimiser)
        decay = recipe.ema
        self._average = None if decay is None else MovingAverage(self.module, decay)
        half = place.precision(recipe.precision) == "fp16" and place.device.type == "cuda"
        self._scaler = torch.amp.GradScaler(place.device.type, enabled=half)
        self._normalise = Normaliser(model.preprocessing, place.device)

    @property
    def best_guess(self) -> nn.Module:
        """The network to use: the moving average where there is one."""
        return self.module if self._average is None else self._average.module

    def step(self, batches: Iterator[Batch], number: int, share: float) -> tuple[Tensor, float]:
        """Change the weights once; return the loss, still on the device, and the learning rate.

        `number` counts the steps of the run, `share` is how much of it is over, 0 to 1.
        """
        how = self._recipe.optimiser
        lr = how.lr * rate(share, how)
        for group in self._optimiser.param_groups:
            group["lr"] = lr * group["factor"]
        self._optimiser.zero_grad(set_to_none=True)
        loss = self._backward(list(islice(batches, self._recipe.accumulate)), share)
        if how.clip_norm is not None:
            self._scaler.unscale_(self._optimiser)
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), how.clip_norm)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        if self._average is not None:
            self._average.update(self.module, number)
        return loss, lr

    def _backward(self, batches: list[Batch], share: float) -> Tensor:
        """Add up the batches' gradients; return this worker's share of the step's loss, detached.

        A batch counts as much as its valid pixels weigh among those of all batches and workers:
        a mean over pixels has the gradient that one worker would find with the whole batch.
        """
        place, total = self._place, torch.zeros((), device=self._place.device)
        labels = [b.labels.to(place.device, non_blocking=True) for b in batches]
        masses = torch.stack([self._criterion.mass(each) for each in labels])
        # DistributedDataParallel takes the mean over workers, where the sum is wanted.
        factors = masses * place.world / place.total(masses.sum()).clamp_min(1e-6)
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            with nullcontext() if last else place.alone(self._spread):
                with place.autocast(self._recipe.precision):
                    heads = self._spread(self._normalise(batch))
                found = [w * self._criterion(x, labels[number], share) for w, x in heads]
                loss = torch.stack(found).sum() * factors[number]
                torch.autograd.backward(self._scaler.scale(loss))
            total += loss.detach()
        return total

    def figures(self) -> dict[str, float]:
        """Return nothing: the loss says it all."""
        return {}

    def state(self) -> dict[str, Any]:
        """Return all tensors that a resumed run needs."""
        average = self._average
        return {
            "module": self.module.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "scaler": self._scaler.state_dict(),
            "average": None if average is None else average.module.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.module.load_state_dict(state["module"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._scaler.load_state_dict(state["scaler"])
        if self._average is not None:
            self._average.module.load_state_dict(state["average"])
