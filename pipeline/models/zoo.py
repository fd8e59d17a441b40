"""`zoo:` models: the architectures of `MODELS`, untrained."""

from __future__ import annotations

from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING

import torch

from pipeline.errors import UnknownName, UsageError
from pipeline.models import MODELS
from pipeline.models.asked import CLASSES
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
    make = getattr(import_module(module), factory)
    known = sorted(signature(make).parameters.keys() - {"classes", "self"})
    unknown = sorted(architecture.options.keys() - set(known))
    if unknown:
        raise UsageError(
            f"zoo:{architecture.name}: no option {', '.join(unknown)}; it takes: "
            f"{', '.join(sorted({*known, *CLASSES, 'seed'}))}"
        )
    try:
        built: nn.Module = make(classes=classes, **architecture.options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"zoo:{architecture.name}: {error}") from None
    return built
