"""How far a pixel's class leads, kept in the cell of its confidence.

A confidence cell stays what it was, an 8-bit grey PNG of round(255 p) that every reader shows. The
margin, round(255 (p - q)) with q the probability of the second best class, lies beside it in a
private chunk `maGN`, itself a mask cell: readers that don't know the chunk leave it out, as the PNG
standard asks of them, and the record's columns stay as they are. Whoever writes other confidences
drops it (by the chunk's name it is not safe to copy).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline import masks
from pipeline.errors import CorruptMask, SizeMismatch
from pipeline.labels import png

if TYPE_CHECKING:
    from numpy.typing import NDArray

_KIND: Final = b"maGN"
_MEND: Final = "label the image again with --margin"


def with_margin(cell: bytes, margin: NDArray[np.uint8]) -> bytes:
    """Return a confidence cell that holds the margin [H, W] as well."""
    return png.with_chunk(cell, _KIND, masks.encode(margin))


def margin_of(cell: bytes, path: str = "confidence cell") -> NDArray[np.uint8] | None:
    """Return the margin uint8 [H, W] in a confidence cell; None where it holds none.

    Raises:
        CorruptMask: the cell, or the margin in it, is damaged or has 16 bits a pixel.
        SizeMismatch: the margin is not of the confidence's size.
    """
    held = png.chunk(cell, _KIND, path)
    if held is None:
        return None
    path = f"{path} (margin)"
    margin = masks.decode(held, path)
    if margin.dtype != np.uint8:
        raise CorruptMask(path, "the margin has 16 bits a pixel, not 8", _MEND)
    outer = png.parse(cell, path)
    if margin.shape != (outer.height, outer.width):
        raise SizeMismatch(path, f"the margin is {margin.shape}, the confidence not", _MEND)
    return margin
