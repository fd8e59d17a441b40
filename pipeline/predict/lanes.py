"""Copies between host and device that run beside the computation.

On CUDA an upload and a download each have a stream of their own, and host memory is pinned: while
the device computes one batch, the next one comes in and the last one goes out. Elsewhere everything
is there at once; the code that uses a `Lanes` is the same.

Nobody here keeps memory until a copy ends: torch's allocators do. A pinned block is not given to
anyone else before the copies that were begun with it are done, and a tensor's not before the
streams that it was recorded on have come so far.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

_CUDA: Any = torch.cuda  # its streams and events have no annotations


@dataclass(frozen=True, slots=True)
class Arriving:
    """A tensor on its way to the host; `done` is the event after which it is whole."""

    host: Tensor
    done: Any = None

    def array(self) -> NDArray[Any]:
        """Wait for the tensor and return it."""
        if self.done is not None:
            self.done.synchronize()
        array: NDArray[Any] = self.host.numpy()
        return array


class Lanes:
    """The ways to one device and back."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._beside = device, device.type == "cuda"
        if self._beside:
            self._up, self._down = _CUDA.Stream(device), _CUDA.Stream(device)

    def up(self, arrays: Sequence[NDArray[np.uint8]] | Sequence[NDArray[np.float32]]) -> Tensor:
        """Begin to copy arrays of one shape and type to the device, as one tensor [N, ...].

        What is computed from it waits for it.
        """
        if not self._beside:
            whole = np.stack(arrays) if len(arrays) > 1 else arrays[0][None]
            return torch.from_numpy(whole).to(self._device)
        dtype = torch.uint8 if arrays[0].dtype == np.uint8 else torch.float32
        host = torch.empty((len(arrays), *arrays[0].shape), dtype=dtype, pin_memory=True)
        np.stack(arrays, out=host.numpy())
        with _CUDA.stream(self._up):
            there = host.to(self._device, non_blocking=True)
        now = _CUDA.current_stream(self._device)
        now.wait_stream(self._up)
        # Without it the memory could be given to the next upload while this one is being read.
        there.record_stream(now)
        return there

    def down(self, tensor: Tensor) -> Arriving:
        """Begin to copy a tensor to the host, once what computes it is done."""
        if not self._beside:
            return Arriving(tensor.cpu())
        self._down.wait_stream(_CUDA.current_stream(self._device))
        with _CUDA.stream(self._down):
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            host.copy_(tensor, non_blocking=True)
        tensor.record_stream(self._down)
        # Who waits for an event that is not blocking spins, on a core that could decode meanwhile.
        done = _CUDA.Event(blocking=True)
        done.record(self._down)
        return Arriving(host, done)

    def mark(self) -> Any:
        """Return a moment of the computation, for `seconds_between`."""
        if not self._beside:
            return time.perf_counter()
        event = _CUDA.Event(enable_timing=True)
        event.record(_CUDA.current_stream(self._device))
        return event


def seconds_between(first: Any, last: Any) -> float:
    """Return the seconds of computation between two marks; on CUDA once the last one is passed."""
    if isinstance(first, float):
        return float(last - first)
    last.synchronize()
    return float(first.elapsed_time(last)) / 1000
