"""`torchvision:` models: its semantic segmentation networks, `?weights=DEFAULT` for trained ones.

The auxiliary heads, which only training uses, are left out: their parameters would differ between
two copies of what is the same model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torchvision import models

from pipeline.errors import ModelError, UnknownName, UsageError
from pipeline.models.classes import check_count, named_space, space_of_size
from pipeline.models.loaded import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Architecture,
    LoadedModel,
    Preprocessing,
)

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.label_space import LabelSpace
    from pipeline.models.uri import ModelUri


class Main(nn.Module):
    """A torchvision segmentation network reduced to its main output."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        """Return logits [N, C, H, W]."""
        out: Tensor = self.net(image)["out"]
        return out


def load(uri: ModelUri, space: LabelSpace | None, *, pretrained: bool) -> LoadedModel:
    """Return a network with torchvision's weights, or random ones of the URI's seed."""
    architecture = Architecture("torchvision", uri.name, uri.build_options())
    _check_name(uri.name)
    wanted = uri.options.get("weights")
    if wanted is not None and pretrained:
        return _trained(uri, architecture, str(wanted), space)
    known = space_of_size(uri, space)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(uri.seed)
        module = build(architecture, len(known.train_ids))
    preprocessing = Preprocessing(IMAGENET_MEAN, IMAGENET_STD)
    return LoadedModel(module, known, preprocessing, uri.text, "", architecture)


def build(architecture: Architecture, classes: int) -> nn.Module:
    """Build a network without weights and without auxiliary head."""
    _check_name(architecture.name)
    try:
        net = models.get_model(
            architecture.name,
            weights=None,
            weights_backbone=None,
            num_classes=classes,
            **architecture.options,
        )
    except (TypeError, ValueError) as error:
        raise UsageError(f"{architecture}: {error}") from None
    return Main(net)


def _check_name(name: str) -> None:
    known = models.list_models(module=models.segmentation)
    if name not in known:
        raise UnknownName("torchvision segmentation model", name, known)


def _trained(
    uri: ModelUri, architecture: Architecture, name: str, space: LabelSpace | None
) -> LoadedModel:
    """Return the network with the weights that torchvision's hub has under that name."""
    choices = models.get_model_weights(uri.name)
    if name not in choices.__members__:
        raise UnknownName(f"weights of {architecture}", name, choices.__members__)
    weights: Any = choices[name]
    names = list(weights.meta["categories"])
    known = space or named_space(names)
    check_count(uri.text, len(names), known)
    try:
        tensors = weights.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise ModelError(
            f"{uri.text}: torchvision's hub cannot be reached ({error}); download "
            f"{weights.url} elsewhere, and give ?label_space={known.name} and --weights FILE"
        ) from None
    module = build(architecture, len(names))
    kept = {k: v for k, v in tensors.items() if not k.startswith("aux_classifier.")}
    module.get_submodule("net").load_state_dict(kept)
    transform = weights.transforms()
    preprocessing = Preprocessing(tuple(transform.mean), tuple(transform.std))
    return LoadedModel(module, known, preprocessing, uri.text, "", architecture)
