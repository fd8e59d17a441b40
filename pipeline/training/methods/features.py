"""A network's features, changed on their way: what feature perturbation needs of any segmenter.

They are the outputs of the network's first part called `encoder` or `backbone` (smp, torchvision,
transformers), else what its last layer with weights is given (ENet, lite-fpn, networks of one's
own).
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

_PARTS: Final = ("encoder", "backbone")
_LAYERS: Final = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def encoder(module: nn.Module) -> nn.Module | None:
    """Return the network's part that makes features; None where it has none by name."""
    named = (part for name, part in module.named_modules() if name.split(".")[-1] in _PARTS)
    return next(named, None)


@contextmanager
def changed(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Pass every feature map [N, ...] through `change`, which may return another number of images.

    The image itself, which some encoders hand on as their first feature, has its images repeated
    alike but is otherwise left as it is: `change` is told so by its number of channels, 3.

    Raises:
        UsageError: the network has no layer with weights.
    """
    part = encoder(module)
    if part is not None:
        handle = part.register_forward_hook(lambda _, __, out: _mapped(out, change))
    else:
        layers = [m for m in module.modules() if isinstance(m, _LAYERS)]
        if not layers:
            raise UsageError("feature perturbation needs a network with a convolution")
        handle = layers[-1].register_forward_pre_hook(lambda _, given: _mapped(given, change))
    try:
        yield
    finally:
        handle.remove()


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return type(value)(**{k: _mapped(v, change) for k, v in value.items()})
    if isinstance(value, list | tuple):
        return type(value)(_mapped(v, change) for v in value)
    return value


def with_dropped(start: int, drop: float) -> Callable[[Tensor], Tensor]:
    """Return a change that appends the images from `start` on with channels dropped at random."""

    def change(features: Tensor) -> Tensor:
        again = features[start:]
        return torch.cat([features, again if _is_image(again) else _dropped(again, drop)])

    return change


def complementary(features: Tensor) -> Tensor:
    """Drop half of the channels in the first half of the images, the others in the second.

    What is left is doubled. One pair of images in two keeps all. UniMatch V2 (2410.10777).
    """
    if _is_image(features):
        return features
    count, channels = len(features) // 2, features.shape[1]
    ones = (1,) * (features.dim() - 2)
    keep = 2 * (torch.rand(count, channels) < 0.5).float()
    whole = (torch.randperm(count) < count // 2)[:, None]
    first = torch.where(whole, torch.ones_like(keep), keep)
    second = torch.where(whole, torch.ones_like(keep), 2 - keep)
    factors = torch.cat([first, second]).view(2 * count, channels, *ones)
    return features * factors.to(features)


def _dropped(features: Tensor, drop: float) -> Tensor:
    """Set whole channels to nothing, each image's own, and scale the others up for it."""
    kept = (torch.rand(features.shape[:2]) >= drop).float() / (1 - drop)
    return features * kept.view(*kept.shape, *(1,) * (features.dim() - 2)).to(features)


def _is_image(features: Tensor) -> bool:
    return features.dim() == 4 and features.shape[1] == 3
