"""TensorBoard's event files, for those who have it installed."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.utils.tensorboard import SummaryWriter


def check_board() -> None:
    """Tell early whether TensorBoard can be written.

    Raises:
        UsageError: the package is not installed.
    """
    if find_spec("tensorboard") is None:
        raise UsageError("--tensorboard needs a package of its own: pip install tensorboard")


class Board:
    """The curves of one run: loss and rate by step; mIoU, accuracy and each class's IoU too."""

    def __init__(self, folder: str, step: int) -> None:
        check_board()
        from torch.utils.tensorboard import SummaryWriter

        # What a killed process wrote of later steps is no longer shown.
        self._writer: SummaryWriter = SummaryWriter(folder, purge_step=step + 1 if step else None)

    def add(self, row: Mapping[str, Any]) -> None:
        """Write an epoch's figures."""
        figures = {name: row.get(name) for name in ("loss", "lr", "miou", "pixel_accuracy", "wait")}
        figures |= {f"iou/{name}": value for name, value in (row.get("iou") or {}).items()}
        for name, value in figures.items():
            if value is not None and math.isfinite(value):
                self._writer.add_scalar(name, value, row["step"])
        self._writer.flush()
