"""`torchvision:` models: its semantic segmentation networks, `?weights=DEFAULT` for trained ones.

Its Mask R-CNN is in `pipeline.models.maskrcnn`. The auxiliary heads, which only training uses, are
left out: their parameters would differ between two copies of what is the same model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torchvision import models

from pipeline.errors import UnknownName, UsageError
from pipeline.models import maskrcnn
from pipeline.models.asked import INPUT, asked_input
from pipeline.models.classes import check_count, named_space, space_of_size
from pipeline.models.loaded import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Architecture,
    LoadedModel,
    Preprocessing,
    ShortestEdge,
)
from pipeline.models.torchvision_hub import downloaded, named_weights

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
    """Return a network with torchvision's weights, or random ones of the URI's seed.

    `?weights=NAME` beside weights from a file gives them the classes and the size of NAME.
    """
    if maskrcnn.is_known(uri.name):
        return maskrcnn.load(uri, space, pretrained=pretrained)
    options = {k: v for k, v in uri.build_options().items() if k not in INPUT}
    architecture = Architecture("torchvision", uri.name, options)
    _check_name(uri.name)
    if uri.options.get("weights") is not None:
        return _trained(uri, architecture, space, fetch=pretrained)
    known = space_of_size(uri, space)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(uri.seed)
        module = build(architecture, len(known.train_ids))
    preprocessing = asked_input(uri, Preprocessing(IMAGENET_MEAN, IMAGENET_STD))
    return LoadedModel(module, known, preprocessing, uri.text, "", architecture)


def build(architecture: Architecture, classes: int) -> nn.Module:
    """Build a network without weights and without auxiliary head."""
    if maskrcnn.is_known(architecture.name):
        return maskrcnn.build(architecture, classes)
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
        raise UnknownName("torchvision segmentation model", name, [*known, *maskrcnn.NAMES])


def _trained(
    uri: ModelUri, architecture: Architecture, space: LabelSpace | None, *, fetch: bool
) -> LoadedModel:
    """Return the network with the weights that torchvision's hub has under the URI's name."""
    weights = named_weights(uri)
    names = list(weights.meta["categories"])
    known = space or named_space(names)
    check_count(uri.text, len(names), known)
    module = build(architecture, len(names))
    if fetch:
        tensors = downloaded(uri, weights, f"?label_space={known.name}")
        kept = {k: v for k, v in tensors.items() if not k.startswith("aux_classifier.")}
        module.get_submodule("net").load_state_dict(kept)
    transform = weights.transforms()
    edge = ShortestEdge(int(transform.resize_size[0])) if transform.resize_size else None
    own = Preprocessing(tuple(transform.mean), tuple(transform.std), edge=edge)
    return LoadedModel(module, known, asked_input(uri, own), uri.text, "", architecture)
