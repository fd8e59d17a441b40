"""What a user says of how images are labelled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from pipeline.errors import UsageError

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: Final = get_args(Precision)


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """How images are labelled. Batch size, threads and device don't change the labels."""

    batch_size: int = 8
    precision: Precision = "fp32"
    confidence: bool = False
    input_size: tuple[int, int] | None = None
    """Height and width that images are resized to for the model; None: what the model says."""
    kind: Literal["model", "pseudo"] = "model"
    device: str = "auto"
    threads: int = 2

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"--precision takes fp32, bf16 or fp16, not {self.precision!r}")
        if self.batch_size < 1:
            raise UsageError(f"--batch-size is at least 1, not {self.batch_size}")

    def output_identity(self) -> list[str]:
        """Return what, beyond the model, changes the labels: part of the model digest."""
        size = "native" if self.input_size is None else "{}x{}".format(*self.input_size)
        return [self.precision, size, f"confidence={self.confidence}"]
