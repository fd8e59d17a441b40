"""One decoded sample: what augmentation changes and batches are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable

Image: TypeAlias = NDArray[np.uint8]
Labels: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]
DepthMap: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Example:
    """One decoded image uint8 [H, W, 3], its labels [H, W] as channels of the model, its depth.

    Depth is float32 [H, W] in metres, 0 where nothing was measured; None for models of colour.
    """

    image: Image
    labels: Labels
    depth: DepthMap | None = None

    @property
    def arrays(self) -> list[NDArray[Any]]:
        """All arrays that it has."""
        return [a for a in (self.image, self.labels, self.depth) if a is not None]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(a.nbytes for a in self.arrays)

    def map(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Example:
        """Return it with all its arrays changed alike."""
        depth = None if self.depth is None else change(self.depth)
        return Example(change(self.image), change(self.labels), depth)
