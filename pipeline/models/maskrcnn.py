"""torchvision's Mask R-CNN: objects with a box, a score and a mask (He 2017, arXiv 1703.06870).

The network resizes and normalises by itself (shorter side 800, longer at most 1333), so images
come as they are. Its masks stay as small as the head makes them; `pipeline.predict.instances` draws
them at the image's size, one at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torchvision import models
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import FrozenBatchNorm2d

from pipeline.errors import UsageError
from pipeline.models.asked import asked_objects
from pipeline.models.classes import check_count, named_space, space_of_size
from pipeline.models.loaded import Architecture, BoxMasks, LoadedModel, Preprocessing
from pipeline.models.torchvision_hub import downloaded, named_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from pipeline.label_space import LabelSpace
    from pipeline.models.uri import ModelUri

NAMES: Final = ("maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2")
_OURS: Final = frozenset({"most", "score"})
_NO_CLASS: Final = frozenset({"N/A", "__background__"})
"""What torchvision calls the numbers between COCO's 80 classes that no class has."""


class Boxes(nn.Module):
    """A Mask R-CNN whose masks stay small.

    `labels` has, for each of the network's labels, the channel of its class, -1 for none.
    """

    labels: Tensor

    def __init__(self, net: Any, labels: Sequence[int]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("labels", torch.tensor(labels), persistent=False)

    def forward(self, image: Tensor) -> list[BoxMasks]:
        """Return the objects of each image; RGB in 0..1."""
        net = self.net
        sizes = [(int(image.shape[2]), int(image.shape[3]))] * len(image)
        inputs, _ = net.transform(list(image))
        features = net.backbone(inputs.tensors)
        proposals, _ = net.rpn(inputs, features)
        found, _ = net.roi_heads(features, proposals, inputs.image_sizes)
        return [
            self._one(one, inside, size)
            for one, inside, size in zip(found, inputs.image_sizes, sizes, strict=True)
        ]

    def _one(self, found: Any, inside: Any, size: Any) -> BoxMasks:
        channels = self.labels[found["labels"]]
        kept = channels >= 0
        boxes = resize_boxes(found["boxes"].float(), inside, size)
        masks = found["masks"][:, 0]
        return BoxMasks(boxes[kept], found["scores"][kept], channels[kept], masks[kept])


def is_known(name: str) -> bool:
    """Whether torchvision has a Mask R-CNN of that name."""
    return name in NAMES


def load(uri: ModelUri, space: LabelSpace | None, *, pretrained: bool) -> LoadedModel:
    """Return a network with torchvision's weights, or random ones of the URI's seed.

    COCO's trained networks have 91 labels for 80 classes: they are given ours by name.

    Raises:
        ModelError: the weights cannot be had, or have other classes than the label space.
        UsageError: nothing says which classes it has.
    """
    objects = asked_objects(uri, "instance")
    options = {k: v for k, v in uri.build_options().items() if k not in _OURS}
    if uri.options.get("weights") is None:
        known = space_of_size(uri, space)
        architecture = Architecture("torchvision", uri.name, options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(uri.seed)
            module = build(architecture, len(known.train_ids))
    else:
        weights = named_weights(uri)
        categories = list(weights.meta["categories"])
        names = [name for name in categories if name not in _NO_CLASS]
        known = space or named_space(names)
        check_count(uri.text, len(names), known)
        places = {name: channel for channel, name in enumerate(names)}
        options["labels"] = [places.get(name, -1) for name in categories]
        if uri.name == NAMES[0] and weights.name == "COCO_V1":
            options.setdefault("norm_eps", 0.0)  # as they were trained: torchvision issue 2933
        architecture = Architecture("torchvision", uri.name, options)
        module = build(architecture, len(names))
        if pretrained:
            tensors = downloaded(uri, weights, "")
            module.get_submodule("net").load_state_dict(tensors)
    plain = Preprocessing((0.0,) * 3, (1.0,) * 3)
    return LoadedModel(module, known, plain, uri.text, "", architecture, objects)


def build(architecture: Architecture, classes: int) -> nn.Module:
    """Build a network without weights; its label 0 is the background.

    The first version normalises by frozen statistics, as torchvision builds it for its weights;
    `norm_eps` is added to their variances.
    """
    options = dict(architecture.options)
    labels = options.pop("labels", [-1, *range(classes)])
    eps = options.pop("norm_eps", None)
    try:
        if architecture.name == NAMES[0]:
            backbone = resnet_fpn_backbone(
                backbone_name="resnet50", weights=None, trainable_layers=5
            )
            net = MaskRCNN(backbone, num_classes=len(labels), **options)
        else:
            net = models.get_model(
                architecture.name,
                weights=None,
                weights_backbone=None,
                num_classes=len(labels),
                **options,
            )
    except (TypeError, ValueError) as error:
        raise UsageError(f"{architecture}: {error}") from None
    for module in net.modules():
        if eps is not None and isinstance(module, FrozenBatchNorm2d):
            module.eps = float(eps)
    return Boxes(net, labels)
