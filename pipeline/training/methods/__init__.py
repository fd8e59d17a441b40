"""Methods: how a network learns from labelled images and others; one file each.

A method is a class named in `METHODS`, whose options are a class in `options.py`; the loop in
`supervised.py` knows nothing else of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipeline.models import LoadedModel
    from pipeline.training.learner import Task
    from pipeline.training.place import Place
    from pipeline.training.recipe import Recipe
    from pipeline.training.unlabelled import Streams

METHODS: Final[dict[str, str]] = {
    "advsemiseg": "pipeline.training.methods.advsemiseg:AdvSemiSeg",
    "decouplednet": "pipeline.training.methods.decouplednet:DecoupledNet",
    "gan-ss": "pipeline.training.methods.gan_ss:GanSS",
    "mean-teacher": "pipeline.training.methods.mean_teacher:MeanTeacher",
    "self-training": "pipeline.training.methods.self_training:SelfTraining",
    "supervised": "pipeline.training.learner:Learner",
    "unimatch": "pipeline.training.methods.unimatch:UniMatch",
}


class Method(Protocol):
    """What trains on one worker; made from a model, a recipe, a place and a task."""

    @property
    def module(self) -> nn.Module:
        """The network that learns; in training mode while `step` is called."""
        ...

    @property
    def best_guess(self) -> nn.Module:
        """The segmenter to validate, save and use: an ordinary network with the model's classes."""
        ...

    def step(self, streams: Streams, number: int, share: float) -> tuple[Tensor, float]:
        """Change the weights once; return the loss, still on the device, and the learning rate.

        `number` counts the steps of the run, `share` is how much of it is over, 0 to 1.
        """
        ...

    def figures(self) -> dict[str, float]:
        """Return means over the steps since it was last asked: of each loss, of what was kept."""
        ...

    def state(self) -> dict[str, Any]:
        """Return all that a resumed run needs, as tensors and plain values."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        ...


def make_method(model: LoadedModel, recipe: Recipe, place: Place, task: Task) -> Method:
    """Return the recipe's method at work on a model.

    Raises:
        UsageError: the method and the model, or the number of workers, don't go together.
    """
    module, _, name = METHODS[recipe.method.name].partition(":")
    made: Method = getattr(import_module(module), name)(model, recipe, place, task)
    return made
