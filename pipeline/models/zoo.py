"""`zoo:` models: the architectures of `MODELS`, untrained."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import torch

from pipeline.errors import UnknownName, UsageError
from pipeline.models import MODELS
from pipeline.models.classes import space_of_size
from pipeline.models.loaded import (
    Architecture,
    LoadedModel,
    Preprocessing,
)

if TYPE_CHECKING:
    from torch import nn

    from pipeline.label_space import LabelSpace
    from pipeline.models.uri import ModelUri


def load(uri: ModelUri, space: LabelSpace | None, *, pretrained: bool) -> LoadedModel:
    """Return the architecture with the random weights of its seed."""
    architecture = Architecture("zoo", uri.name, uri.build_options())
    known = space_of_size(uri, space)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(uri.seed)
        module = build(architecture, len(known.train_ids))
    spec = MODELS[uri.name]
    preprocessing = Preprocessing(spec.mean, spec.std, multiple=spec.input_multiple)
    return LoadedModel(module, known, preprocessing, uri.text, "", architecture)


def build(architecture: Architecture, classes: int) -> nn.Module:
    """Build an architecture of the zoo."""
    if architecture.name not in MODELS:
        raise UnknownName("model of the zoo", architecture.name, MODELS)
    module, _, factory = MODELS[architecture.name].build.partition(":")
    try:
        built: nn.Module = getattr(import_module(module), factory)(
            classes=classes, **architecture.options
        )
    except TypeError as error:
        raise UsageError(f"{architecture}: {error}") from None
    return built
