"""Thumbnails: photos, label maps in their classes' colours, and where a prediction is wrong."""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.label_space import voc_colour
from pipeline.masks import encode

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.label_space import LabelMap, LabelSpace


_QUALITY: Final = 82
_WEBP_QUALITY: Final = 78
_AFTER_PALETTE: Final = 33 + 12 + 768  # signature and header, then the palette chunk
_WRONG: Final = np.array([255, 64, 48], np.float32)
_VOID: Final = np.array([112, 118, 128], np.float32)


def fit(height: int, width: int, side: int) -> tuple[int, int]:
    """Return (height, width) scaled down until the longer side is at most `side` pixels.

    >>> fit(360, 480, 320), fit(10, 20, 320), fit(1, 9000, 300)
    ((240, 320), (10, 20), (1, 300))
    """
    scale = min(1.0, side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def shrink(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return a photo [H, W, 3] scaled down to fit."""
    import cv2

    height, width = fit(pixels.shape[0], pixels.shape[1], side)
    if (height, width) == pixels.shape[:2]:
        return pixels
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def shrink_labels(mask: LabelMap, side: int) -> LabelMap:
    """Return a label map [H, W] scaled down to fit, by nearest neighbour."""
    import cv2

    height, width = fit(mask.shape[0], mask.shape[1], side)
    if (height, width) == mask.shape:
        return mask
    small = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
    return np.asarray(small, mask.dtype)


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """Return the JPEG file of RGB or grey pixels."""
    import cv2

    ordered = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else pixels
    _, data = cv2.imencode(".jpg", ordered, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return bytes(data)


def webp(pixels: NDArray[np.uint8]) -> bytes:
    """Return the WebP file of RGB pixels: about two thirds of the JPEG's bytes."""
    import cv2

    ordered = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".webp", ordered, [cv2.IMWRITE_WEBP_QUALITY, _WEBP_QUALITY])
    return bytes(data)


def error_png(wrong: NDArray[np.bool_], void: NDArray[np.bool_]) -> bytes:
    """Return a picture to lie on a photo: wrong pixels red, void ones grey, right ones clear."""
    positions = np.where(void, 2, np.where(wrong, 1, 0)).astype(np.uint8)
    palette = bytes([0, 0, 0, *_WRONG.astype(int).tolist(), *_VOID.astype(int).tolist()])
    return _with_alpha(encode(positions, palette.ljust(768, b"\0")), bytes([0, 215, 190]))


def labels_png(mask: LabelMap, space: LabelSpace, *, clear_void: bool = False) -> bytes:
    """Return the palette PNG of a label map; `clear_void` makes void pixels transparent."""
    if mask.dtype == np.uint8:
        ids, positions = np.arange(256), mask
    else:
        ids, inverse = np.unique(mask, return_inverse=True)
        # More than a palette holds: a thumbnail may show the last ones in one colour.
        positions = np.minimum(inverse, 255).reshape(mask.shape).astype(np.uint8)
    palette, alpha = _colours(space, tuple(ids[:256].tolist()))
    data = encode(positions, palette)
    return _with_alpha(data, alpha) if clear_void else data


def _with_alpha(data: bytes, alpha: bytes) -> bytes:
    """Return a palette PNG with the opacity of its first entries."""
    chunk = b"tRNS" + alpha
    place = data.index(b"IDAT", _AFTER_PALETTE) - 4
    crc = zlib.crc32(chunk).to_bytes(4, "big")
    return data[:place] + len(alpha).to_bytes(4, "big") + chunk + crc + data[place:]


@lru_cache(maxsize=64)
def _colours(space: LabelSpace, ids: tuple[int, ...]) -> tuple[bytes, bytes]:
    """Return the palette of some ids (768 bytes) and their opacity (256 bytes)."""
    palette = b"".join(bytes(colour_of(space, i)) for i in ids)
    alpha = bytes(0 if is_void(space, i) else 255 for i in ids)
    return palette.ljust(768, b"\0"), alpha.ljust(256, b"\xff")


def colour_of(space: LabelSpace, index: int) -> tuple[int, int, int]:
    """Return the RGB colour in which an id is shown."""
    known = space.by_id.get(index)
    if known is not None:
        return known.colour
    return (0, 0, 0) if index == space.ignore_index else voc_colour(index & 255)


def is_void(space: LabelSpace, index: int) -> bool:
    """Tell whether an id is no class that is trained or scored."""
    known = space.by_id.get(index)
    return index == space.ignore_index or known is None or known.void
