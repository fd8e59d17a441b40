"""Start a network's backbone from published weights, by torchvision's or timm's names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from pipeline.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

_PLACES: Final = ("backbone", "depth_backbone")
_COUNTER: Final = "num_batches_tracked"


def put_backbone(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy a classifier's tensors into the backbones of a network; what they lack is left over.

    Fully connected layers become convolutions of the same numbers.

    Raises:
        ModelError: the network has no backbone, or the tensors are not those of its kind.
    """
    backbones = [b for b in (getattr(module, place, None) for place in _PLACES) if b is not None]
    if not backbones:
        raise ModelError(f"{source}: {type(module).__name__} has no backbone to start from weights")
    found = {_modern(name): tensor for name, tensor in tensors.items()}
    for backbone in backbones:
        own = backbone.state_dict()
        wrong = [n for n in own if not n.endswith(_COUNTER) and not _fits(found.get(n), own[n])]
        if wrong:
            raise ModelError(
                f"{source}: not the weights of {type(module).__name__}'s backbone: {len(wrong)} of "
                f"{len(own)} tensors are missing or of another shape ({wrong[0]!r} first)"
            )
        kept = {n: found[n].reshape(own[n].shape) for n in own if n in found}
        backbone.load_state_dict(own | kept)


def _fits(tensor: Tensor | None, own: Tensor) -> bool:
    return tensor is not None and tensor.numel() == own.numel()


def _modern(name: str) -> str:
    """Return a tensor's name as it is today: torchvision's DenseNet files have old ones.

    >>> _modern("features.denseblock1.denselayer1.norm.1.weight")
    'features.denseblock1.denselayer1.norm1.weight'
    """
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name)
