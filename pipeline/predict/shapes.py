"""Which images may stand in one batch, and how many of them.

The shape of an image's input depends on its own size alone, so that its labels never depend on
those beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt
from typing import Final

Shape = tuple[int, int]

CPU_BATCH: Final = 4
"""On a CPU the batch size changes the speed by less than a tenth, and the memory in proportion."""
_FIRST: Final = 8
_MOST: Final = 64
_MOST_PIXELS: Final = 1 << 25
"""Of a batch that grows by itself: what lies decoded in host memory is some four times that."""


def padded_length(length: int, multiple: int, limit: float) -> int:
    """Return what a side is padded to: a multiple, on a grid that grows with the side.

    Two sides together add at most the share `limit` of pixels, beyond what `multiple` adds.

    >>> [padded_length(n, 8, 0.1) for n in (480, 481, 500, 1000)]
    [480, 496, 512, 1024]
    """
    step = multiple
    while 2 * step <= length * (sqrt(1 + limit) - 1):
        step *= 2
    return length + -length % step


@dataclass(slots=True)
class BatchSizes:
    """How many images go into one forward pass, by the shape of their input.

    With `fixed` that many; without, 8 and twice as many each time it went well, up to what fits.
    What was too large is never tried again.
    """

    fixed: int | None
    most: int = _MOST
    _size: dict[Shape, int] = field(default_factory=dict)
    _limit: dict[Shape, int] = field(default_factory=dict)

    def of(self, shape: Shape) -> int:
        """Return how many images of that input shape to take."""
        if shape not in self._size:
            self._size[shape] = self.fixed or min(_FIRST, self._most(shape))
        return self._size[shape]

    def went_well(self, shape: Shape, count: int) -> None:
        """Take note that so many fit."""
        if self.fixed is None and count >= self.of(shape):
            self._size[shape] = min(2 * count, self._most(shape))

    def too_many(self, shape: Shape, count: int) -> None:
        """Take note that so many don't fit: half of them from now on."""
        half = max(1, count // 2)
        self._size[shape] = self._limit[shape] = min(half, self._limit.get(shape, half))

    def _most(self, shape: Shape) -> int:
        by_pixels = max(1, _MOST_PIXELS // (shape[0] * shape[1]))
        return min(self.most, by_pixels, self._limit.get(shape, self.most))
