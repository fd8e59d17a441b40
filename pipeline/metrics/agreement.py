"""Two label sets of the same images without any truth: how far they agree, and what changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from pipeline.metrics.tally_measure import GAINED, KEPT, LOST

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.label_space import LabelSpace
    from pipeline.metrics.confusion import Counts


@dataclass(frozen=True, slots=True)
class Agreement:
    """The tally measure of changes: asked of a store that is scored against an earlier one."""

    name: ClassVar[str] = "changes"
    columns: ClassVar[tuple[str, ...]] = ()
    paired: ClassVar[bool] = True

    def start(self, space: LabelSpace) -> AgreementGathering:
        """Begin to count."""
        names = space.class_names
        return AgreementGathering(names, np.zeros((3, len(names) + 1), np.int64))


@dataclass(slots=True, eq=False)
class AgreementGathering:
    """The pixels of each class that stayed, came and went, [3, C + 1]; the last is "no label"."""

    names: tuple[str, ...]
    pixels: Counts
    images: int = 0
    changed: int = 0

    def update(
        self,
        tallies: NDArray[np.int64],
        keys: NDArray[np.uint64],
        rows: Mapping[str, Sequence[Any]],
        *,
        baseline: NDArray[np.int64] | None = None,
        changes: NDArray[np.int64] | None = None,
    ) -> None:
        """Count a block of images."""
        assert changes is not None
        self.pixels += changes.sum(axis=0)
        self.images += len(changes)
        self.changed += int(changes[:, LOST].any(axis=1).sum())

    def merge(self, other: Self) -> None:
        """Add what another worker counted."""
        self.pixels += other.pixels
        self.images += other.images
        self.changed += other.changed

    def figures(self) -> dict[str, Any]:
        """Return the agreement, the changed images, and each class's churn in pixels.

        `agreement` is the share of all pixels whose class is the same in both, or which neither
        gives one. A class's `churn` is the share of the pixels of either that only one has.
        """
        held = self.pixels[KEPT] + self.pixels[LOST]
        total = int(held.sum())
        return {
            "agreement": int(self.pixels[KEPT].sum()) / total if total else None,
            "images_changed": self.changed,
            "images_same": self.images - self.changed,
            "churn": {
                name: self._churn(place) for place, name in enumerate((*self.names, "no label"))
            },
        }

    def _churn(self, place: int) -> dict[str, Any]:
        kept, gained, lost = self.pixels[[KEPT, GAINED, LOST], place].tolist()
        either = kept + gained + lost
        share = (gained + lost) / either if either else None
        return {"kept": kept, "gained": gained, "lost": lost, "churn": share}
