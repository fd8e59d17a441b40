"""What a network says in training: its logits, and those of heads that only training has.

A network with such heads has `forward_train(image)`, which returns pairs of a weight and logits,
the ones that it labels with first. Parameters of heads that labelling does without are in its
`auxiliary`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

AUXILIARY: Final = "auxiliary."


class WeightedHeads(nn.Module):
    """A network for a loss: a module, so that what wraps it for many workers sees every output."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> list[tuple[float, Tensor]]:
        """Return weights and logits [N, C, h, w], each of its own size."""
        heads = getattr(self.net, "forward_train", None)
        found: list[tuple[float, Tensor]]
        found = [(1.0, self.net(image))] if heads is None else heads(image)
        return found


def parameters_in_use(net: nn.Module) -> int:
    """Return how many parameters labelling takes: all but those of auxiliary heads."""
    named = net.named_parameters()
    return sum(p.numel() for name, p in named if not name.startswith(AUXILIARY))
