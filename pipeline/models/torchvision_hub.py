"""torchvision's trained weights: by name, downloaded once a node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchvision import models

from pipeline.errors import ModelError, UnknownName
from pipeline.models.fetched import node_lock

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from pipeline.models.uri import ModelUri


def named_weights(uri: ModelUri) -> Any:
    """Return torchvision's entry for `?weights=NAME`: URL, categories, transforms.

    Raises:
        UnknownName: it has none of that name for this network.
    """
    choices = models.get_model_weights(uri.name)
    name = str(uri.options["weights"])
    if name not in choices.__members__:
        raise UnknownName(f"weights of torchvision:{uri.name}", name, choices.__members__)
    return choices[name]


def downloaded(uri: ModelUri, weights: Any, classes: str) -> Mapping[str, Tensor]:
    """Return the tensors of an entry, from torch's cache if they are there.

    Raises:
        ModelError: the server cannot be reached, or sent something else.
    """
    try:
        with node_lock(f"torchvision-{uri.name}-{weights.name}"):
            return dict(weights.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        from torch.hub import get_dir

        raise ModelError(
            f"{uri.text}: torchvision's weights are not in {get_dir()}/checkpoints and cannot be "
            f"downloaded ({error}); fetch {weights.url} elsewhere, and put it there, or give "
            f"{classes or 'the same URI'} and --weights FILE"
        ) from None
