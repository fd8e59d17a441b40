"""How far the scores would move with other images: bootstrap intervals, in one pass.

The images (or groups of them, `Units`) are a sample of those that the labels are for; an interval
says what the score of all of those may be. It knows nothing of wrong truth, nor of images unlike
the ones that were scored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import numpy as np

from pipeline.errors import UsageError
from pipeline.metrics import sums
from pipeline.metrics.resample import blocks, interval, poisson_weights, weighted_sums
from pipeline.metrics.tally_measure import PREDICTED, TRUTH
from pipeline.metrics.units import FEW, Distinct, Units

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.label_space import LabelSpace
    from pipeline.metrics.confusion import Counts
    from pipeline.metrics.resample import Keys

REPLICATES: Final = 1000
LEVEL: Final = 0.95


@dataclass(frozen=True, slots=True)
class Intervals:
    """The measure `intervals`."""

    units: Units = field(default_factory=Units)
    replicates: int = REPLICATES
    level: float = LEVEL
    name: ClassVar[str] = "intervals"
    paired: ClassVar[bool] = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The column that images are grouped by."""
        return self.units.columns

    def start(self, space: LabelSpace) -> IntervalSums:
        """Begin with no images."""
        names = space.class_names
        shape = (self.replicates, 3, len(names))
        counts = (np.zeros(shape[1:], np.int64), np.zeros(shape, np.int64))
        return IntervalSums(self, names, *counts, np.zeros(len(names), np.int64))


def intervals(
    replicates: int = REPLICATES, by: str | None = None, level: float = LEVEL
) -> Intervals:
    """Return the measure of intervals for mIoU, accuracies, fwIoU and each class's IoU.

    `by` groups images: a column, or `COLUMN:REGEX` (`Units.parse`).

    Raises:
        UsageError: too few replicates, a level that is no share, or no such column.
    """
    check_sampling(replicates, level)
    return Intervals(Units.parse(by), replicates, level)


def check_sampling(replicates: int, level: float) -> None:
    """Refuse what gives no interval.

    Raises:
        UsageError: fewer than 100 replicates or more than 100,000; a level not in 0.5..0.999.
    """
    if not 100 <= replicates <= 100_000:
        raise UsageError(f"{replicates} bootstrap replicates; take 100 to 100000 (default: 1000)")
    if not 0.5 <= level <= 0.999:
        raise UsageError(f"an interval of level {level}; take a share from 0.5 to 0.999")


def note_on(units: int, by: Units) -> str | None:
    """Return what to say of intervals and p-values from so few units; None if they are enough."""
    if units >= FEW:
        return None
    what = "images" if by.column is None else f"groups by {by}"
    return f"only {units} {what}: intervals and p-values are unreliable below {FEW}"


@dataclass(slots=True, eq=False)
class IntervalSums:
    """Sums of tallies over all images and over each replicate."""

    measure: Intervals
    names: tuple[str, ...]
    total: Counts
    """int64 [3, C]."""
    replicates: Counts
    """int64 [B, 3, C]."""
    held: Counts
    """int64 [C]: images whose truth or prediction holds the class."""
    images: int = 0
    units: Distinct = field(default_factory=Distinct)

    def update(
        self,
        tallies: Counts,
        keys: Keys,
        rows: Mapping[str, Sequence[Any]],
        *,
        baseline: Counts | None = None,
        changes: Counts | None = None,
    ) -> None:
        """Add a block of images."""
        keys = self.measure.units.of(keys, rows)
        self.images += len(keys)
        self.units.add(keys)
        self.total += tallies.sum(axis=0)
        self.held += ((tallies[:, TRUTH] + tallies[:, PREDICTED]) > 0).sum(axis=0)
        for part in blocks(len(keys)):
            weights = poisson_weights(keys[part], self.measure.replicates)
            self.replicates += weighted_sums(weights, tallies[part])

    def merge(self, other: Self) -> None:
        """Add another worker's sums."""
        self.images += other.images
        self.units += other.units
        self.total += other.total
        self.held += other.held
        self.replicates += other.replicates

    def figures(self) -> dict[str, Any]:
        """Return the intervals; a class in one image has none."""
        measure, units = self.measure, self.units.count
        points, replicates = sums.headline(self.total), sums.headline(self.replicates)
        ious, moved = sums.iou(self.total), sums.iou(self.replicates)
        found: dict[str, Any] = {
            "level": measure.level,
            "replicates": measure.replicates,
            "images": self.images,
            "by": str(measure.units),
            "units": units,
        }
        for name in sums.HEADLINE:
            found[name] = interval(float(points[name]), replicates[name], units, measure.level)
        # A class that few images hold is known from those few only, however many others there are.
        found["classes"] = {
            name: {
                "iou": interval(float(ious[c]), moved[:, c], min(units, held), measure.level),
                "images": held,
            }
            for c, (name, held) in enumerate(zip(self.names, self.held.tolist(), strict=True))
        }
        note = note_on(units, measure.units)
        return found if note is None else {**found, "note": note}
