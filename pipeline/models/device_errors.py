"""What a device's errors mean: a batch too large for its memory, or a device that is lost.

torch has a class for its own allocator's refusal alone; all else is told by the text.
"""

from __future__ import annotations

from typing import Final

import torch

_SAYS: Final = (
    "can't allocate",  # the CPU's allocator, and `pipeline.models.onnx`
    "CUDA error: out of memory",  # pinned memory of the host, and what is not torch's own
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
_LOST: Final = (
    "an illegal memory access was encountered",
    "unspecified launch failure",
    "uncorrectable ECC error",
    "device-side assert triggered",
    "an illegal instruction was encountered",
    "misaligned address",
    "hardware stack error",
    "a hardware error",
    "the launch timed out",
    "no CUDA-capable device is detected",
    "is/are busy or unavailable",
    "unknown error",
)
"""After one of these CUDA fails whatever the process asks of it."""
_CUDA_SAYS: Final = ("CUDA error: ", "CUDA failure ")
"""As torch begins them, and onnxruntime."""


def no_memory(error: BaseException) -> bool:
    """Tell whether a device, or the host, had no memory left for what was asked of it."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAYS)


def device_lost(error: BaseException) -> bool:
    """Tell whether the process can use its device no more: the images are not the cause."""
    text = str(error)
    return (
        isinstance(error, RuntimeError)
        and any(said in text for said in _CUDA_SAYS)
        and any(said in text for said in _LOST)
    )
