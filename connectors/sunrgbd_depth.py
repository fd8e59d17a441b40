"""SUN RGB-D's depth: 16-bit PNG of millimetres, rotated left by three bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline import depth, masks
from pipeline.errors import CorruptMask, SizeMismatch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pipeline.record import Depth

METRES_PER_UNIT: Final = 0.001
_DOWN, _UP = np.uint16(3), np.uint16(13)
FILLED, SENSOR = "depth_bfx", "depth"


def from_pixels(pixels: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Return millimetres: the toolbox's (p >> 3) | (p << 13).

    >>> int(from_pixels(np.array([8001], np.uint16))[0])
    9192
    """
    return (pixels >> _DOWN) | (pixels << _UP)


def to_pixels(millimetres: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Return the pixels of a depth PNG, the reverse of `from_pixels`."""
    return (millimetres << _DOWN) | (millimetres >> _UP)


def read_map(data: bytes, path: str, shape: tuple[int, int]) -> NDArray[np.uint16]:
    """Return a depth PNG in millimetres, [H, W].

    Raises:
        CorruptMask: it is damaged, or has no 16 bits.
        SizeMismatch: it is not of the image's size.
    """
    pixels = masks.read_label(data, path)
    if pixels.dtype != np.uint16:
        cause = f"a depth map of {pixels.dtype}, where 16 bits are expected"
        raise CorruptMask(path, cause, "replace the file")
    if pixels.shape != shape:
        raise SizeMismatch(
            path,
            f"the depth map has {pixels.shape[1]}x{pixels.shape[0]} pixels, its image "
            f"{shape[1]}x{shape[0]}",
            "replace one of the two",
        )
    return from_pixels(pixels)


def cell(maps: Mapping[str, NDArray[np.uint16]]) -> bytes:
    """Return the depth cell of one or two maps by folder: the filled one first."""
    if len(maps) == 2:
        return depth.encode(maps[FILLED], maps[SENSOR])
    return depth.encode(next(iter(maps.values())))


@dataclass(frozen=True, slots=True)
class Pages:
    """A record's depth as millimetres, the map to use and the sensor's; what rounding cost."""

    main: NDArray[np.uint16]
    sensor: NDArray[np.uint16] | None
    rounded: bool


def pages(held: Depth, path: str) -> Pages | None:
    """Return the maps of a record's depth in whole millimetres, up to 65.535 m; None without.

    Raises:
        CorruptMask: the cell is damaged.
    """
    if held.bytes is None:
        return None
    found = depth.decode(held.bytes, path)
    scale = 1.0 if held.metres_per_unit is None else held.metres_per_unit
    whole = []
    exact = True
    for page in found:
        if page is None:
            continue
        if page.dtype == np.uint16 and scale == METRES_PER_UNIT:
            whole.append(page.astype(np.uint16, copy=False))
            continue
        millimetres = np.nan_to_num(page.astype(np.float64) * (scale / METRES_PER_UNIT))
        rounded = np.clip(np.rint(millimetres), 0, 65535).astype(np.uint16)
        # A float32 of metres is exact to a fraction of a millimetre that the sensor never saw.
        exact = exact and bool((np.abs(rounded - millimetres) <= 1e-3).all())
        whole.append(rounded)
    return Pages(whole[0], whole[1] if len(whole) > 1 else None, not exact)
