"""Pixels as a predictor takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.predict.predictor import Picture

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def picture(pixels: NDArray[np.uint8], path: str = "x") -> Picture:
    """Return RGB uint8 [H, W, 3] as an image that was decoded at its own size."""
    return Picture(pixels, (pixels.shape[0], pixels.shape[1]), path)
