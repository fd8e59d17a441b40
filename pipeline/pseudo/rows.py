"""What a soft label's row holds, decoded and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline import masks
from pipeline.errors import CorruptMask, InputError, SizeMismatch
from pipeline.runs.failures import Failure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pipeline.label_space import LabelMap
    from pipeline.tables.rows import RowKey

_MEND: Final = "label the image again with --confidence"


@dataclass(frozen=True, slots=True)
class Labelled:
    """A row's label map [H, W] of ids, and its confidence uint8 [H, W] = round(255 p)."""

    ids: LabelMap
    confidence: NDArray[np.uint8]


COLUMNS: Final = ("image.path", "split", "label_space", "mask.bytes", "confidence.bytes")
"""What `labelled` needs of a row."""


def labelled(row: Mapping[str, Any], path: str) -> Labelled:
    """Decode a row of a prediction.

    Raises:
        InputError: it has no mask, or no confidence.
        CorruptMask: one of the cells is damaged, or the confidence has 16 bits a pixel.
        SizeMismatch: the two are of different sizes.
    """
    if row["mask.bytes"] is None:
        raise InputError(path, "the prediction has no mask", "label it with a model of label maps")
    if row["confidence.bytes"] is None:
        raise InputError(path, "the prediction has no confidence", _MEND)
    ids = masks.decode(row["mask.bytes"], path)
    return Labelled(ids, confidence_map(row["confidence.bytes"], ids.shape, path))


def confidence_map(cell: bytes, shape: tuple[int, ...], path: str) -> NDArray[np.uint8]:
    """Decode the confidence of a mask of that shape; errors as of `labelled`."""
    where = f"{path} (confidence)"
    sure = masks.decode(cell, where)
    if sure.dtype != np.uint8:
        raise CorruptMask(where, "the confidence has 16 bits a pixel, not 8", _MEND)
    if sure.shape != shape:
        raise SizeMismatch(where, f"the confidence is {sure.shape}, the mask {shape}", _MEND)
    return sure


def failure(key: RowKey, split: str, path: str, error: InputError, stage: str) -> Failure:
    """Return what the error says of a row."""
    text = " ".join(str(error).split())
    kind = type(error).__name__
    return Failure(path, key.image_id, key.dataset, split, stage, kind, text)
