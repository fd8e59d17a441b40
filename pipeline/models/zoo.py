"""`zoo:` models: the architectures of `MODELS`, untrained.

`?backbone_weights=FILE` starts the backbone from torchvision's ImageNet weights (timm's for
PSPNet), a file anywhere.
"""

from __future__ import annotations

from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Final

import torch

from pipeline.errors import UnknownName, UsageError
from pipeline.models import MODELS
from pipeline.models.asked import CLASSES
from pipeline.models.backbone import put_backbone
from pipeline.models.classes import space_of_size
from pipeline.models.loaded import (
    Architecture,
    LoadedModel,
    Preprocessing,
)
from pipeline.models.weights import read_weights

if TYPE_CHECKING:
    from torch import nn

    from pipeline.label_space import LabelSpace
    from pipeline.models.uri import ModelUri

BACKBONE_WEIGHTS: Final = "backbone_weights"


def load(uri: ModelUri, space: LabelSpace | None, *, pretrained: bool) -> LoadedModel:
    """Return the architecture with the random weights of its seed."""
    options = uri.build_options()
    # Where training starts from is no part of what the network is: model.json must not need it.
    start = options.pop(BACKBONE_WEIGHTS, None)
    architecture = Architecture("zoo", uri.name, options)
    known = space_of_size(uri, space)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(uri.seed)
        module = build(architecture, len(known.train_ids))
    if start is not None and pretrained:
        put_backbone(module, read_weights(str(start)), str(start))
    spec = MODELS[uri.name]
    preprocessing = Preprocessing(spec.mean, spec.std, multiple=spec.input_multiple)
    return LoadedModel(module, known, preprocessing, uri.text, "", architecture)


def build(architecture: Architecture, classes: int) -> nn.Module:
    """Build an architecture of the zoo."""
    if architecture.name not in MODELS:
        raise UnknownName("model of the zoo", architecture.name, MODELS)
    spec = MODELS[architecture.name]
    module, _, factory = spec.build.partition(":")
    make = getattr(import_module(module), factory)
    known = sorted(signature(make).parameters.keys() - {"classes", "self"})
    unknown = sorted(architecture.options.keys() - set(known))
    if unknown:
        raise UsageError(
            f"zoo:{architecture.name}: no option {', '.join(unknown)}; it takes: "
            f"{', '.join(sorted({*known, *CLASSES, 'seed'}))}"
        )
    options = {**spec.options, **architecture.options}
    try:
        built: nn.Module = make(classes=classes, **options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"zoo:{architecture.name}: {error}") from None
    return built
