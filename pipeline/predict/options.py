"""What a user says of how images are labelled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from pipeline.errors import UsageError

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: Final = get_args(Precision)
Decoding = Literal["full", "reduced"]
DECODINGS: Final = get_args(Decoding)


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """How images are labelled.

    Batch size, threads, device and compilation don't change the labels, but for rounding.
    """

    batch_size: int | None = None
    """Images in a forward pass; None: what fits and is fast, by the shape of the input."""
    precision: Precision = "fp32"
    confidence: bool = False
    input_size: tuple[int, int] | None = None
    """Height and width that images are resized to for the model; None: what the model says."""
    pad_limit: float = 0.0
    """Share of pixels that padding may add, so that images of nearly one size share a batch."""
    decode: Decoding = "full"
    """reduced: JPEGs are decoded at 1/2, 1/4 or 1/8 where the model's input is smaller still."""
    compile: bool = False
    kind: Literal["model", "pseudo"] = "model"
    device: str = "auto"
    threads: int | None = None
    """Threads that read, decode and encode beside the device; None: by the cores and devices."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"--precision takes fp32, bf16 or fp16, not {self.precision!r}")
        if self.decode not in DECODINGS:
            raise UsageError(f"--decode takes full or reduced, not {self.decode!r}")
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"--batch-size is at least 1, or auto, not {self.batch_size}")
        if not 0 <= self.pad_limit <= 1:
            raise UsageError(f"--pad-limit is a share, 0 to 1, not {self.pad_limit}")

    def output_identity(self) -> list[str]:
        """Return what, beyond the model, changes the labels: part of the model digest."""
        size = "native" if self.input_size is None else "{}x{}".format(*self.input_size)
        said = [self.precision, size, f"confidence={self.confidence}"]
        # What is at its default goes unsaid: labels made before the option was there stay valid.
        if self.pad_limit:
            said.append(f"pad_limit={self.pad_limit:g}")
        if self.decode != "full":
            said.append(f"decode={self.decode}")
        return said
