"""Two predictions of the same images: what differs, by how much, and whether by more than chance.

Intervals come from a paired bootstrap (each replicate draws the same images for both), p-values
from approximate randomisation (Noreen 1989; Yeh 2000): were the two equally good, which of an
image's two predictions is called the new one would be a coin's toss, so each round tosses it for
every image, and p is the share of rounds that differ at least as much as the two do. Classes' p are
adjusted for their number by Benjamini and Hochberg (1995).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Self

import numpy as np

from pipeline.errors import UsageError
from pipeline.metrics import sums
from pipeline.metrics.bootstrap import LEVEL, REPLICATES, check_sampling, note_on
from pipeline.metrics.resample import (
    blocks,
    interval,
    poisson_weights,
    swap_signs,
    weighted_sums,
)
from pipeline.metrics.shares import known
from pipeline.metrics.tally_measure import INTERSECTION, KEPT, LOST, PREDICTED, TRUTH
from pipeline.metrics.units import Distinct, Units

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.label_space import LabelSpace
    from pipeline.metrics.confusion import Counts, Floats
    from pipeline.metrics.resample import Keys

ROUNDS: Final = 2000
_SAME: Final = 1e-12
"""Scores nearer than this differ by rounding."""


class Moved(NamedTuple):
    """An image whose own mIoU differs."""

    difference: float
    image_id: str
    dataset: str
    split: str
    this: float
    baseline: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The measure `baseline`."""

    units: Units = field(default_factory=Units)
    replicates: int = REPLICATES
    rounds: int = ROUNDS
    level: float = LEVEL
    extremes: int = 12
    name: ClassVar[str] = "baseline"
    paired: ClassVar[bool] = True

    @property
    def columns(self) -> tuple[str, ...]:
        """The column that images are grouped by, and those that name an image."""
        return tuple(dict.fromkeys(("image_id", "dataset", "split", *self.units.columns)))

    def start(self, space: LabelSpace) -> ComparisonSums:
        """Begin with no images."""
        return ComparisonSums(self, space.class_names)


def baseline(
    replicates: int = REPLICATES,
    rounds: int = ROUNDS,
    by: str | None = None,
    level: float = LEVEL,
    extremes: int = 12,
) -> Comparison:
    """Return the measure that compares the prediction with another of the same images.

    `by` groups images that are resampled and swapped together (`Units.parse`); `extremes` images
    that got better and worse are named, of each. The least p-value is 1 / (rounds + 1).

    Raises:
        UsageError: too few replicates or rounds, a level that is no share, or no such column.
    """
    check_sampling(replicates, level)
    if not 100 <= rounds <= 100_000:
        raise UsageError(f"{rounds} rounds of randomisation; take 100 to 100000 (default: 2000)")
    return Comparison(Units.parse(by), replicates, rounds, level, extremes)


@dataclass(slots=True, eq=False)
class ComparisonSums:
    """Sums over all images, over each replicate and each round, and the images that moved most.

    Without truth (labels against labels: no `baseline` is fed) only what changed is added up.
    """

    measure: Comparison
    names: tuple[str, ...]
    total: Counts = field(init=False)
    """int64 [2, 3, C]: the tallies of this prediction and of the baseline."""
    replicates: Counts = field(init=False)
    """int64 [B, 2, 3, C]."""
    swapped: Counts = field(init=False)
    """int64 [R, 2, C]: this less baseline, of right and of predicted pixels, with swapped signs."""
    held: Counts = field(init=False)
    """int64 [C]: images where truth or either prediction holds the class."""
    changes: Counts = field(init=False)
    """int64 [3, C]: pixels kept, gained and lost."""
    agreeing: int = 0
    differing: int = 0
    """Pixels, over all of the images."""
    images: int = 0
    scored: int = 0
    """Images of `images` that were also scored against truth."""
    better: int = 0
    worse: int = 0
    rising: list[Moved] = field(default_factory=list)
    falling: list[Moved] = field(default_factory=list)
    units: Distinct = field(default_factory=Distinct)

    def __post_init__(self) -> None:
        classes = len(self.names)
        self.total = np.zeros((2, 3, classes), np.int64)
        self.replicates = np.zeros((self.measure.replicates, 2, 3, classes), np.int64)
        self.swapped = np.zeros((self.measure.rounds, 2, classes), np.int64)
        self.held = np.zeros(classes, np.int64)
        self.changes = np.zeros((3, classes), np.int64)

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
        self.images += len(tallies)
        if changes is not None:
            self._count_changes(changes)
        if baseline is not None:
            self._compare(np.stack([tallies, baseline], axis=1), keys, rows)

    def _count_changes(self, changes: Counts) -> None:
        self.changes += changes.sum(axis=0)[:, : len(self.names)]
        # With the column "no label" a pixel that differs is lost exactly once.
        self.agreeing += int(changes[:, KEPT].sum())
        self.differing += int(changes[:, LOST].sum())

    def _compare(self, both: Counts, keys: Keys, rows: Mapping[str, Sequence[Any]]) -> None:
        """Add tallies int64 [n, 2, 3, C]."""
        measure = self.measure
        self.scored += len(both)
        self._rank(sums.miou(both), rows)
        keys = measure.units.of(keys, rows)
        self.units.add(keys)
        self.total += both.sum(axis=0)
        self.held += (both[:, :, [TRUTH, PREDICTED]].sum(axis=(1, 2)) > 0).sum(axis=0)
        # The truth is the same in both: their difference is of what is right and what is predicted.
        difference = (both[:, 0] - both[:, 1])[:, [INTERSECTION, PREDICTED]]
        for part in blocks(len(keys)):
            weights = poisson_weights(keys[part], measure.replicates)
            self.replicates += weighted_sums(weights, both[part])
            moved = np.flatnonzero(difference[part].any(axis=(1, 2)))
            signs = swap_signs(keys[part][moved], measure.rounds)
            self.swapped += weighted_sums(signs, difference[part][moved])

    def _rank(self, mious: Floats, rows: Mapping[str, Sequence[Any]]) -> None:
        """Count images that moved, and keep those that moved most; mIoU [n, 2]."""
        difference = np.nan_to_num(mious[:, 0] - mious[:, 1])
        self.better += int((difference > _SAME).sum())
        self.worse += int((difference < -_SAME).sum())
        names = zip(rows["image_id"], rows["dataset"], rows["split"], strict=True)
        moved = [
            Moved(by, str(image_id), str(dataset), str(split), *own)
            for by, (image_id, dataset, split), own in zip(
                difference.tolist(), names, mious.tolist(), strict=True
            )
            if abs(by) > _SAME
        ]
        self._keep(moved)

    def _keep(self, moved: list[Moved]) -> None:
        most = self.measure.extremes
        self.rising = heapq.nsmallest(
            most,
            [*self.rising, *(m for m in moved if m.difference > 0)],
            key=lambda m: (-m.difference, m[1:]),
        )
        self.falling = heapq.nsmallest(
            most, [*self.falling, *(m for m in moved if m.difference < 0)]
        )

    def merge(self, other: Self) -> None:
        """Add another worker's sums."""
        for name in ("total", "replicates", "swapped", "held", "changes", "units"):
            mine = getattr(self, name)
            mine += getattr(other, name)
        for name in ("images", "scored", "better", "worse", "agreeing", "differing"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self._keep([*other.rising, *other.falling])

    def figures(self) -> dict[str, Any]:
        """Return what differs; the scores are of the images that both predictions have."""
        found: dict[str, Any] = {"images": self.images}
        if self.scored:
            found |= self._scores()
        pixels = self.agreeing + self.differing
        if pixels:
            found["agreement"] = self.agreeing / pixels
            found["churn"] = {
                name: dict(zip(("kept", "gained", "lost"), counts, strict=True))
                for name, counts in zip(self.names, self.changes.T.tolist(), strict=True)
            }
        return found

    def _scores(self) -> dict[str, Any]:
        measure, units = self.measure, self.units.count
        found: dict[str, Any] = {
            "level": measure.level,
            "replicates": measure.replicates,
            "rounds": measure.rounds,
            "by": str(measure.units),
            "units": units,
        }
        rounds = self._rounds()
        scores = [sums.headline(counts) for counts in (self.total, self.replicates, rounds)]
        for name in sums.HEADLINE:
            found[name] = _difference([s[name] for s in scores], units, measure.level)
        ious = [sums.iou(counts) for counts in (self.total, self.replicates, rounds)]
        classes = {
            name: _difference([i[..., c] for i in ious], min(units, held), measure.level)
            for c, (name, held) in enumerate(zip(self.names, self.held.tolist(), strict=True))
        }
        adjusted = benjamini_hochberg([c["p"] for c in classes.values()])
        for each, p in zip(classes.values(), adjusted, strict=True):
            each["p_adjusted"] = p
        found |= {
            "classes": classes,
            "better": self.better,
            "worse": self.worse,
            "same": self.scored - self.better - self.worse,
            "most_better": [_plain(moved) for moved in self.rising],
            "most_worse": [_plain(moved) for moved in self.falling],
        }
        note = note_on(units, measure.units)
        return found if note is None else {**found, "note": note}

    def _rounds(self) -> Counts:
        """Return the tallies of both predictions in each round: int64 [R, 2, 3, C]."""
        together = self.total.sum(axis=0)
        rounds = np.empty((len(self.swapped), *self.total.shape), np.int64)
        rounds[:, :, TRUTH] = self.total[:, TRUTH]
        for place, counts in enumerate((INTERSECTION, PREDICTED)):
            rounds[:, 0, counts] = (together[counts] + self.swapped[:, place]) // 2
            rounds[:, 1, counts] = together[counts] - rounds[:, 0, counts]
        return rounds


def _plain(moved: Moved) -> dict[str, Any]:
    return {k: known(v) if isinstance(v, float) else v for k, v in moved._asdict().items()}


def _difference(scores: Sequence[Floats], units: int, level: float) -> dict[str, Any]:
    """Describe a score, given of both [2], of their replicates [B, 2] and rounds [R, 2]."""
    both, replicates, rounds = scores
    this, other = both.tolist()
    point = this - other
    return {
        "this": known(this),
        "baseline": known(other),
        "difference": known(point),
        "interval": interval(point, replicates[:, 0] - replicates[:, 1], units, level),
        "p": _p_value(point, rounds[:, 0] - rounds[:, 1]),
    }


def _p_value(point: float, rounds: Floats) -> float | None:
    """Return the share of rounds, the real one among them, that differ as much as `point`."""
    if np.isnan(point):
        return None
    as_far = np.abs(np.nan_to_num(rounds)) >= abs(point) - _SAME
    return float((1 + as_far.sum()) / (1 + len(rounds)))


def benjamini_hochberg(values: Sequence[float | None]) -> list[float | None]:
    """Return p-values adjusted for their number: called below x, a share x of calls is false.

    >>> benjamini_hochberg([0.01, None, 0.04, 0.03])
    [0.03, None, 0.04, 0.04]
    """
    known = sorted((p, n) for n, p in enumerate(values) if p is not None)
    found: list[float | None] = [None] * len(values)
    least = 1.0
    for rank in range(len(known), 0, -1):
        p, place = known[rank - 1]
        least = min(least, p * len(known) / rank)
        found[place] = least
    return found
