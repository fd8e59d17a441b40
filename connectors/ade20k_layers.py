"""The RGB masks of the full ADE20K releases: class number in red and green, object in blue.

    class = R // 10 * 256 + G, 0 for none; object = rank of B among the values present, 0 for none

R is a multiple of 10. The releases spread the blue values of n objects evenly, up to 255.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from pipeline import masks
from pipeline.errors import CorruptMask, UnknownColour, UsageError
from pipeline.labels import png

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from pipeline.label_space import LabelMap, LabelSpace

TOP_NUMBER: Final = 25 * 256 + 255
"""The greatest class number that red and green hold."""

_REPLACE: Final = "replace the file, or write it again as the releases do"


@dataclass(frozen=True, slots=True)
class Layer:
    """One mask: class numbers uint16 [H, W], blue uint8 [H, W], rank of each blue value [256]."""

    numbers: NDArray[np.uint16]
    blue: NDArray[np.uint8]
    ranks: NDArray[np.uint8]


class Patch(NamedTuple):
    """One object's visible pixels: its level (0 for wholes), rank, class number, box."""

    level: int
    rank: int
    number: int
    pixels: NDArray[np.bool_]
    corner: tuple[int, int]

    @property
    def box(self) -> tuple[slice, slice]:
        """Return the rows and columns of the box."""
        (y, x), (h, w) = self.corner, self.pixels.shape
        return slice(y, y + h), slice(x, x + w)


def read_layer(data: bytes, path: str) -> Layer:
    """Read a `_seg.png` or `_parts_1.png`.

    Raises:
        CorruptMask: it is damaged, lossy, or not in RGB.
        UnknownColour: a red value is no multiple of 10.
    """
    import cv2

    if data[:8] == png.SIGNATURE and len(data) > 25 and data[25] in (png.GREY, png.PALETTE, 4):
        raise CorruptMask(
            path, f"{png.MODES[data[25]]}, where the full releases have RGB", _REPLACE
        )
    red, green, blue = cv2.split(masks.read_colour_label(data, path))
    odd = np.flatnonzero(cv2.calcHist([red], [0], None, [256], [0, 256]).ravel())
    odd = odd[odd % 10 != 0]
    if len(odd):
        named = ", ".join(map(str, odd[:8].tolist()))
        raise UnknownColour(path, f"red is {named}, no multiple of 10", _REPLACE)
    high = (np.arange(256, dtype=np.uint16) // 10) << 8
    numbers = np.take(high, red) | green
    present = cv2.calcHist([blue], [0], None, [256], [0, 256]).ravel() > 0
    present[0] = False
    ranks = np.where(present, np.cumsum(present), 0).astype(np.uint8)
    return Layer(numbers, blue.astype(np.uint8, copy=False), ranks)


def layer_png(numbers: LabelMap, blue: NDArray[np.uint8]) -> bytes:
    """Return class numbers and blue values as an RGB PNG."""
    import cv2

    red = np.take((np.arange(256) * 10).clip(max=255).astype(np.uint8), numbers >> 8)
    pixels = cv2.merge((blue, numbers.astype(np.uint8), red))  # OpenCV writes blue, green, red
    done, data = cv2.imencode(".png", pixels)
    if not done:
        raise UsageError("OpenCV cannot write an RGB mask")
    return bytes(data)


def spread(count: int) -> NDArray[np.uint8]:
    """Return the blue value of each rank 0..count, as the releases spread them: round(255 k / n).

    >>> spread(3).tolist(), spread(34)[:5].tolist()
    ([0, 85, 170, 255], [0, 8, 15, 23, 30])
    """
    ranks = np.arange(count + 1)
    return ((510 * ranks + count) // max(1, 2 * count)).astype(np.uint8)


def draw(
    patches: Iterable[Patch], level: int, shape: tuple[int, int]
) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Return class numbers and blue values [H, W] of the patches of one level."""
    here = [patch for patch in patches if patch.level == level and patch.rank]
    blues = spread(max((patch.rank for patch in here), default=0))
    numbers, blue = np.zeros(shape, np.uint16), np.zeros(shape, np.uint8)
    for patch in here:
        if level:
            numbers[patch.box][patch.pixels] = patch.number
        blue[patch.box][patch.pixels] = blues[patch.rank]
    return numbers, blue


@dataclass(frozen=True, slots=True)
class Numbering:
    """Class ids of a space to the numbers in red and green and back: tables of 65,536 entries.

    The ignore index is number 0. Other ids are their own number, or one more each where 0 is a
    class.
    """

    to_number: NDArray[np.uint16]
    to_id: NDArray[np.uint16]


@lru_cache(maxsize=32)
def numbering(space: LabelSpace) -> Numbering:
    """Return the numbering of a space.

    Raises:
        UsageError: a class number does not fit red and green.
    """
    shift = int(0 in space.by_id and space.ignore_index != 0)
    top = max((i for i in space.ids if i != space.ignore_index), default=0) + shift
    if top > TOP_NUMBER:
        raise UsageError(
            f"label space {space.name!r} has class numbers up to {top}, the masks of ade20k-full "
            f"hold {TOP_NUMBER}; choose another --label-space, or --format maskdir"
        )
    every = np.arange(65536)
    to_number, to_id = (every + shift).clip(max=65535), (every - shift).clip(min=0)
    to_number[space.ignore_index], to_id[0] = 0, space.ignore_index
    return Numbering(to_number.astype(np.uint16), to_id.astype(np.uint16))
