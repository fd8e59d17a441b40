"""Scores of parts of the images: where a good mean hides a bad night.

Each slice's mIoU is that of its images together, with an interval by the same bootstrap as the
whole's. The worst slices come first. A slice is picked out because it is bad: with many slices the
worst is partly the unluckiest, and few images make it more so. Look at its interval.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import numpy as np

from pipeline.errors import UsageError
from pipeline.metrics import sums
from pipeline.metrics.attributes import NOT_LISTED, OTHER
from pipeline.metrics.bootstrap import LEVEL, check_sampling
from pipeline.metrics.resample import blocks, interval, poisson_weights, weighted_sums
from pipeline.metrics.shares import known
from pipeline.metrics.slicings import UNKNOWN, ByAttribute, parse_slicing
from pipeline.metrics.tally_measure import TRUTH
from pipeline.metrics.units import Distinct, Units

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.label_space import LabelSpace
    from pipeline.metrics.confusion import Counts
    from pipeline.metrics.resample import Keys
    from pipeline.metrics.slicings import Slicing
    from pipeline.store import Store

REPLICATES: Final = 200
FEW: Final = 5
"""A slice of fewer images is marked `few`."""
MOST_VALUES: Final = 200
"""Slices of one slicing; those whose names sort last are put together as `OTHER`."""

_MOST_SLICINGS: Final = 40
_BYTES: Final = 256 << 20
"""What all slices' replicates may take together."""
_ROOM: Final = 32
"""Images of a slice that are held one by one: replicates of few would be larger than they are."""
_SEEN: Final = 0.001
"""Share of a slice's pixels below which a class is not called its worst."""
UNMATCHED: Final = "(no such image)"
"""What counts a table's ids that are of no scored image: an entry without images."""
_SPECIAL: Final = frozenset({OTHER, NOT_LISTED, UNKNOWN})


@dataclass(frozen=True, slots=True, eq=False)
class Slices:
    """The measure `slices`."""

    slicings: tuple[Slicing, ...]
    units: Units = field(default_factory=Units)
    replicates: int = REPLICATES
    level: float = LEVEL
    name: ClassVar[str] = "slices"
    paired: ClassVar[bool] = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the slicings need, and that images are grouped by."""
        needed = (column for slicing in self.slicings for column in slicing.columns)
        return tuple(dict.fromkeys((*needed, *self.units.columns)))

    def start(self, space: LabelSpace) -> SliceSums:
        """Begin with no images.

        Raises:
            UnknownName: a slicing names a class that is not scored.
        """
        names = space.class_names
        empty: Counts = np.zeros((0, 3, len(names)), np.int64)
        for slicing in self.slicings:
            slicing.values(empty, {column: [] for column in slicing.columns}, names)
        return SliceSums(self, names, np.zeros((3, len(names)), np.int64))


def slices(
    asked: Sequence[str] = ("split", "dataset"),
    truth: Store | None = None,
    by: str | None = None,
    replicates: int = REPLICATES,
    level: float = LEVEL,
) -> Slices:
    """Return the measure of slices, each `asked` for as `parse_slicing` reads it.

    `truth` is the store that SQL conditions are asked of; `by` groups images (`Units.parse`).

    Raises:
        UsageError: a slicing that is none, two of one name, or too many.
        InputError: a CSV file is missing or broken.
    """
    check_sampling(replicates, level)
    found = tuple(
        slicing for text in dict.fromkeys(asked) for slicing in parse_slicing(text, truth)
    )
    if len(found) > _MOST_SLICINGS:
        raise UsageError(f"--slice: {len(found)} slicings; take {_MOST_SLICINGS} at most")
    names = [slicing.by for slicing in found if slicing.by != "class"]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"--slice: two slicings are called {twice!r}; rename one")
    return Slices(found, Units.parse(by), replicates, level)


@dataclass(slots=True, eq=False)
class _Slice:
    """The sums of one slice; its first images are held as they are."""

    total: Counts
    """int64 [3, C]."""
    images: int = 0
    units: Distinct = field(default_factory=Distinct)
    keys: list[Keys] = field(default_factory=list)
    held: list[Counts] = field(default_factory=list)
    """Tallies that are not in `replicates` yet."""
    replicates: Counts | None = None
    """int64 [B, 3, C]."""

    def add(self, tallies: Counts, keys: Keys, replicates: int) -> None:
        """Add images."""
        self.images += len(keys)
        self.units.add(keys)
        self.total += tallies.sum(axis=0)
        self.keys.append(keys)
        self.held.append(tallies)
        self._fold(replicates, _ROOM)

    def add_slice(self, other: _Slice, replicates: int) -> None:
        """Add another slice."""
        self.images += other.images
        self.units += other.units
        self.total += other.total
        self.keys += other.keys
        self.held += other.held
        if other.replicates is not None:
            mine = 0 if self.replicates is None else self.replicates
            self.replicates = other.replicates + mine
        self._fold(replicates, _ROOM)

    def _fold(self, replicates: int, room: int) -> None:
        if sum(map(len, self.keys)) <= room:
            return
        if self.replicates is None:
            self.replicates = np.zeros((replicates, *self.total.shape), np.int64)
        keys, tallies = np.concatenate(self.keys), np.concatenate(self.held)
        self.keys, self.held = [], []
        for part in blocks(len(keys)):
            weights = poisson_weights(keys[part], replicates)
            self.replicates += weighted_sums(weights, tallies[part])

    def resampled(self, replicates: int) -> Counts:
        """Return the replicates of all images."""
        self._fold(replicates, 0)
        if self.replicates is None:
            return np.zeros((replicates, *self.total.shape), np.int64)
        return self.replicates


@dataclass(slots=True, eq=False)
class SliceSums:
    """The sums of all slices, by the number of the slicing and the slice's name."""

    measure: Slices
    names: tuple[str, ...]
    total: Counts
    """int64 [3, C], over all images."""
    parts: dict[tuple[int, str], _Slice] = field(default_factory=dict)

    @property
    def most(self) -> int:
        """How many slices each slicing may have."""
        each = self.measure.replicates * self.total.nbytes
        slicings = max(1, len(self.measure.slicings))
        return max(8, min(MOST_VALUES, _BYTES // each // slicings))

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
        self.total += tallies.sum(axis=0)
        keys = self.measure.units.of(keys, rows)
        for number, slicing in enumerate(self.measure.slicings):
            members: dict[str, list[int]] = {}
            for image, value in enumerate(slicing.values(tallies, rows, self.names)):
                if value is not None:
                    members.setdefault(value, []).append(image)
            for value, images in members.items():
                part = self._part(number, value)
                part.add(tallies[images], keys[images], self.measure.replicates)
            self._bound(number)

    def _part(self, number: int, value: str) -> _Slice:
        if (number, value) not in self.parts:
            self.parts[number, value] = _Slice(np.zeros_like(self.total))
        return self.parts[number, value]

    def _bound(self, number: int) -> None:
        """Put slices beyond the most that are kept into one.

        Those that sort first stay: whatever the order of images, a name that is among the first of
        all was among the first of any part, so that it never lost an image.
        """
        values = sorted(v for n, v in self.parts if n == number and v not in _SPECIAL)
        for value in values[self.most :]:
            part = self.parts.pop((number, value))
            self._part(number, OTHER).add_slice(part, self.measure.replicates)

    def merge(self, other: Self) -> None:
        """Add another worker's sums."""
        self.total += other.total
        for (number, value), part in other.parts.items():
            self._part(number, value).add_slice(part, self.measure.replicates)
        for number in range(len(self.measure.slicings)):
            self._bound(number)

    def figures(self) -> list[dict[str, Any]]:
        """Return the slices, the worst mIoU first, those without any last."""
        overall = float(sums.miou(self.total))
        found = [
            self._figures(self.measure.slicings[number], value, part, overall)
            for (number, value), part in self.parts.items()
        ]
        for number, slicing in enumerate(self.measure.slicings):
            if isinstance(slicing, ByAttribute):
                found += self._unmatched(number, slicing)
        lacking = 2.0
        return sorted(
            found,
            key=lambda s: (lacking if s["miou"] is None else s["miou"], s["by"], s["value"]),
        )

    def _unmatched(self, number: int, slicing: ByAttribute) -> list[dict[str, Any]]:
        """Return an entry that counts ids of a table that are of no scored image."""
        listed = sum(
            part.images
            for (n, value), part in self.parts.items()
            if n == number and value != NOT_LISTED
        )
        unmatched = len(slicing.table.ids) - listed
        if unmatched <= 0:
            return []
        nothing = self._figures(slicing, UNMATCHED, _Slice(np.zeros_like(self.total)), np.nan)
        said = f"{unmatched} ids of {slicing.table.path} are of no scored image"
        return [{**nothing, "ids": unmatched, "note": said}]

    def _figures(
        self, slicing: Slicing, value: str, part: _Slice, overall: float
    ) -> dict[str, Any]:
        measure = self.measure
        miou = float(sums.miou(part.total))
        replicates = sums.miou(part.resampled(measure.replicates))
        worst = self._worst(part.total)
        return {
            "by": slicing.by,
            "value": value,
            "images": part.images,
            "pixels": int(part.total[TRUTH].sum()),
            "miou": known(miou),
            "miou_interval": interval(miou, replicates, part.units.count, measure.level),
            "pixel_accuracy": known(float(sums.pixel_accuracy(part.total))),
            "difference": known(miou - overall),
            "worst_class": None if worst is None else self.names[worst],
            "worst_iou": None if worst is None else float(sums.iou(part.total)[worst]),
            "few": part.images < FEW,
        }

    def _worst(self, total: Counts) -> int | None:
        """Return the class of least IoU among those that the slice's truth shows something of."""
        shown = np.flatnonzero(total[TRUTH] > _SEEN * total[TRUTH].sum())
        return int(shown[np.argmin(sums.iou(total)[shown])]) if shown.size else None
