"""What is counted from images' tallies: intervals, slices, the comparison with a baseline.

A tally says how many pixels of each class are right, of truth and of prediction; every score of
classes follows from its sums. A `TallyMeasure` sees the tallies of a block of images at once, which
costs next to nothing beside reading their masks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.label_space import LabelSpace

INTERSECTION, TRUTH, PREDICTED = range(3)
"""The places of a tally's second axis: pixels [n, 3, C]."""
KEPT, GAINED, LOST = range(3)
"""The same of changes [n, 3, C + 1]: pixels of a class in both label sets, in the new one only, in
the old one only; the last column is "no label", so that kept and lost pixels are all pixels."""


class TallyGathering(Protocol):
    """What a tally measure has counted so far; picklable, and no larger for more images."""

    def update(
        self,
        tallies: NDArray[np.int64],
        keys: NDArray[np.uint64],
        rows: Mapping[str, Sequence[Any]],
        *,
        baseline: NDArray[np.int64] | None = None,
        changes: NDArray[np.int64] | None = None,
    ) -> None:
        """Count a block of images, in the order of truth.

        `tallies` is [n, 3, C]; `keys` [n] are hashes of dataset, split and image_id, the same in
        every run; `rows` holds the asked columns of truth. A paired measure also gets the
        baseline's tallies [n, 3, C] and the changes from the baseline to the prediction
        [n, 3, C + 1], and sees only images that the baseline has labels for.
        """
        ...

    def merge(self, other: Self) -> None:
        """Add what another worker counted of later images; parts come in the order of truth."""
        ...

    def figures(self) -> dict[str, Any] | list[dict[str, Any]]:
        """Return what `report.json` holds under the measure's name."""
        ...


class TallyMeasure(Protocol):
    """A kind of score that follows from images' tallies; a picklable description."""

    @property
    def name(self) -> str:
        """The key of its figures in `report.json`."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """The record's columns that it needs from truth; always given are the key's."""
        ...

    @property
    def paired(self) -> bool:
        """Whether it compares with a baseline."""
        ...

    def start(self, space: LabelSpace) -> TallyGathering:
        """Begin to count, with nothing counted."""
        ...
