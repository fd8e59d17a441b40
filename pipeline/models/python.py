"""`python:package.module:factory` models: a function of the user's own returns the network.

    python:my_models.unet:make?classes=11&width=32    calls make(classes=11, width=32)

The function returns a torch module under the contract (normalised [N, 3, H, W] in, logits
[N, C, h, w] out), or a `LoadedModel` where it has a word on label space and preprocessing.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from pipeline.errors import ModelError, UsageError
from pipeline.models.classes import check_count, space_of_size
from pipeline.models.loaded import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Architecture,
    LoadedModel,
    Preprocessing,
)

if TYPE_CHECKING:
    from pipeline.label_space import LabelSpace
    from pipeline.models.uri import ModelUri

_MULTIPLE: Final = 32  # most networks halve their input five times at most
_PROBE: Final = 64
_OURS: Final = ("label_space", "seed", "weights")


def load(uri: ModelUri, space: LabelSpace | None, *, pretrained: bool) -> LoadedModel:
    """Call the factory with the URI's options; its random weights are those of the seed.

    Raises:
        ModelError: it cannot be imported, or its output does not fit the label space.
    """
    options = {k: v for k, v in uri.options.items() if k not in _OURS}
    if space is not None and "classes" in inspect.signature(_factory(uri.name)).parameters:
        options.setdefault("classes", len(space.train_ids))
    architecture = Architecture("python", uri.name, options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(uri.seed)
        made = _call(architecture)
    if isinstance(made, LoadedModel):
        model = made
        model.label_space, model.uri = space or made.label_space, uri.text
        model.architecture = architecture
    else:
        preprocessing = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, multiple=_MULTIPLE)
        known = space_of_size(uri, space)
        model = LoadedModel(made, known, preprocessing, uri.text, "", architecture)
    check_count(uri.text, _channels(model), model.label_space)
    return model


def build(architecture: Architecture, classes: int) -> nn.Module:
    """Call the factory again."""
    made = _call(architecture)
    module = made.module if isinstance(made, LoadedModel) else made
    return module


def _factory(name: str) -> Any:
    module, _, function = name.partition(":")
    try:
        return getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ModelError(
            f"python:{name}: {error}; write python:package.module:function, and put the package "
            "on PYTHONPATH"
        ) from None


def _call(architecture: Architecture) -> nn.Module | LoadedModel:
    try:
        made = _factory(architecture.name)(**architecture.options)
    except TypeError as error:
        raise UsageError(f"{architecture}: {error}") from None
    if not isinstance(made, nn.Module | LoadedModel):
        raise ModelError(f"{architecture}: returned {type(made).__name__}, not a torch module")
    return made


def _channels(model: LoadedModel) -> int:
    """Return the number of output channels, by trying the network on a small input."""
    high, wide = model.preprocessing.size or (max(_PROBE, model.preprocessing.multiple),) * 2
    try:
        with torch.inference_mode():
            channels = getattr(model.module, "in_channels", 3)
            logits = model.module.eval()(torch.zeros(1, channels, high, wide))
    except RuntimeError as error:
        raise ModelError(f"{model.uri}: fails on a {high}x{wide} input: {error}") from None
    if not isinstance(logits, torch.Tensor) or logits.dim() != 4:
        raise ModelError(f"{model.uri}: returns no logits [N, C, h, w]")
    return int(logits.shape[1])
