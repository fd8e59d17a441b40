"""ResNets (He 2015, arXiv 1512.03385) as backbones: torchvision's, without the classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from torch import nn
from torchvision import models

from pipeline.models.layers import one_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

Depth = Literal[18, 34, 50, 101, 152]
STAGES: Final = ("layer1", "layer2", "layer3", "layer4")


def resnet(depth: Depth, dilations: Mapping[str, int] | None = None) -> Any:
    """Return a ResNet for `stages`; stages named in `dilations` keep the size and are dilated."""
    one_of("depth", depth, (18, 34, 50, 101, 152))
    net = models.get_model(f"resnet{depth}", weights=None)
    del net.fc
    for stage, dilation in (dilations or {}).items():
        dilate(net.get_submodule(stage), dilation)
    return net


def dilate(stage: nn.Module, dilation: int) -> None:
    """Take the stride out of a stage and dilate all of its 3x3 convolutions, the first too."""
    for layer in stage.modules():
        if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)
            if layer.kernel_size == (3, 3):
                layer.dilation, layer.padding = (dilation, dilation), (dilation, dilation)


def stem(net: Any, image: Tensor) -> Tensor:
    """Return the first features, at half the size."""
    act = net.relu if hasattr(net, "relu") else net.act1  # torchvision's name, timm's
    first: Tensor = act(net.bn1(net.conv1(image)))
    return first


def stages(net: Any, image: Tensor) -> list[Tensor]:
    """Return the features of the four stages, from the shallowest."""
    x, found = net.maxpool(stem(net, image)), []
    for stage in STAGES:
        x = getattr(net, stage)(x)
        found.append(x)
    return found
