"""A network through `torch.compile`, and as it is where there is no compiler."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

LOG = logging.getLogger("segmill")


class Compiled:
    """Calls a module compiled; after the compiler's first failure uncompiled, with a warning."""

    def __init__(self, module: nn.Module, backend: str = "inductor") -> None:
        self._module, self._fast = module, torch.compile(module, backend=backend)
        self._works = True

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return what the module returns for the inputs, to rounding."""
        from torch._dynamo.exc import TorchDynamoException

        if self._works:
            try:
                found: Tensor = self._fast(inputs)
                return found
            except TorchDynamoException as error:
                self._works = False
                text = " ".join(str(error).split())[:200]
                LOG.warning("--compile: the network can't be compiled, going on without: %s", text)
        found = self._module(inputs)
        return found
