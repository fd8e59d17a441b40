"""Where one training worker runs: its device, and how it talks to the other workers."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import distributed as dist

from pipeline.runner import cores

if TYPE_CHECKING:
    from torch import Tensor, nn

_DTYPES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Place:
    """One of `world` workers; with more than one, a process group is up."""

    device: torch.device
    rank: int = 0
    world: int = 1
    threads: int = 1

    def spread(self, module: nn.Module) -> nn.Module:
        """Return the module so that its gradients are averaged over all workers."""
        if self.world == 1:
            return module
        if self.device.type == "cuda":
            convert = torch.nn.SyncBatchNorm.convert_sync_batchnorm
            module = convert(module)  # type: ignore[no-untyped-call]
        ids = [self.device] if self.device.type == "cuda" else None
        return torch.nn.parallel.DistributedDataParallel(module, device_ids=ids)

    def alone(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Return the context in which a spread module's gradients stay on this worker."""
        if isinstance(module, torch.nn.parallel.DistributedDataParallel):
            return module.no_sync()
        return nullcontext()

    def total(self, tensor: Tensor) -> Tensor:
        """Return the sum of the workers' tensors, on every worker."""
        if self.world > 1:
            on_device = tensor.to(self.device)
            dist.all_reduce(on_device)
            tensor = on_device.to(tensor.device)
        return tensor

    def agree(self, value: float) -> float:
        """Return the first worker's value: what hangs on a clock must not differ."""
        if self.world == 1:
            return value
        told = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(told, src=0)
        return float(told.item())

    def gathered(self, found: dict[str, str]) -> dict[str, str]:
        """Return the union of the workers' dictionaries."""
        if self.world == 1:
            return dict(found)
        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, found)
        return {k: v for part in parts for k, v in part.items()}

    def autocast(self, precision: str) -> AbstractContextManager[Any]:
        """Return the context in which the network computes."""
        name = self.precision(precision)
        if name == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, _DTYPES[name])

    def precision(self, asked: str) -> str:
        """Return the precision asked for; "auto" depends on the device."""
        if asked != "auto":
            return asked
        if self.device.type != "cuda":
            return "fp32"
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def this_machine() -> Place:
    """Return the place of a single worker: the GPU if there is one, else all cores."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Place(device, threads=cores())
