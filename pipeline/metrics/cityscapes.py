"""Cityscapes' own scores: categories, the instance-weighted IoU, average precision of objects.

Cordts et al., "The Cityscapes Dataset", CVPR 2016, section 4; cityscapesScripts 2.x
(evalPixelLevelSemanticLabeling, evalInstanceLevelSemanticLabeling) on the files that the connector
`cityscapes` writes for the same rows gives the same numbers. The sizes below are its constants.

Truth is read as instanceIds tells it: a pixel belongs to one object at most, to one whose class the
mask has there; pixels of a class of objects that no single object has are the image's one group of
that class. Truth that is no scored class is void; but, as the official script has it, for average
precision the pixels of a single caravan or trailer are not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from pipeline.errors import RemapError, UsageError
from pipeline.label_space import LABEL_SPACES, find_remap, label_space
from pipeline.labels.segments import look_up
from pipeline.metrics.cityscapes_ap import ObjectMatches, match_image
from pipeline.metrics.cityscapes_truth import TruthSegments
from pipeline.metrics.confusion import count_pairs
from pipeline.metrics.exact_sum import ExactSums
from pipeline.metrics.pair_objects import (
    narrowest,
    no_objects,
    predicted_objects,
    truth_objects,
)
from pipeline.metrics.shares import known

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from pipeline.label_space import LabelSpace
    from pipeline.metrics.confusion import Counts
    from pipeline.metrics.measure import LabelPair

CATEGORIES: Final[Mapping[str, tuple[str, ...]]] = {
    "flat": ("road", "sidewalk"),
    "construction": ("building", "wall", "fence"),
    "object": ("pole", "traffic light", "traffic sign"),
    "nature": ("vegetation", "terrain"),
    "sky": ("sky",),
    "human": ("person", "rider"),
    "vehicle": ("car", "truck", "bus", "train", "motorcycle", "bicycle"),
}
MEAN_SIZES: Final[Mapping[str, float]] = {
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}
"""Mean pixels of an object of each class in the training set, as the official script has them."""

_CATEGORY_OF: Final = {name: category for category, names in CATEGORIES.items() for name in names}
_OBJECT_CATEGORIES: Final = ("human", "vehicle")
_UNSCORED_VEHICLES: Final = ("caravan", "trailer")
"""Void, yet a vehicle where the instance-weighted score of the category looks at a prediction."""


@dataclass(frozen=True, slots=True)
class CityscapesMeasure:
    """Category IoU, iIoU of classes and categories, AP of objects; for Cityscapes' classes."""

    name: str = "cityscapes"
    truth_columns: tuple[str, ...] = ("instances",)
    predicted_columns: tuple[str, ...] = ("instances", "label_space")

    @property
    def image_columns(self) -> tuple[pa.Field, ...]:
        """Nothing: none of these scores is defined on one image."""
        return ()

    def start(self, space: LabelSpace) -> CityscapesGathering:
        """Begin to count.

        Raises:
            UsageError: the space has a class that is none of Cityscapes' 19.
        """
        names = list(space.class_names)
        strange = [name for name in names if name not in _CATEGORY_OF]
        if strange:
            raise UsageError(
                f"the measure 'cityscapes' is of Cityscapes' 19 classes; label space "
                f"{space.name!r} has {', '.join(map(repr, strange[:5]))}: score with "
                "--label-space cityscapes-19, or leave the measure out"
            )
        return CityscapesGathering(names)


class CityscapesGathering:
    """What is counted: pixels by class, sums over objects, and 10 bytes for a predicted object."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        classes = len(names)
        self._things = np.array([name in MEAN_SIZES for name in names], np.bool_)
        # Columns: the classes, no label, a vehicle that is not scored.
        self._pixels = np.zeros((classes, classes + 2), np.int64)
        self._found, self._missed = ExactSums(classes), ExactSums(classes)
        self._matches = ObjectMatches(classes)
        # Of the categories whose classes are all of objects.
        self._category_found = ExactSums(len(_OBJECT_CATEGORIES))
        self._category_missed = ExactSums(len(_OBJECT_CATEGORIES))

    def update(self, pair: LabelPair) -> Mapping[str, float | int | None]:
        """Count one pair.

        Raises:
            InputError: truth has no objects; or a class, run lengths or a score are broken.
        """
        truth, predicted = truth_objects(pair), predicted_objects(pair)
        if truth is None:
            raise no_objects(f"{pair.image_id} (truth)", "cityscapes", "weighs by truth's objects")
        shown = TruthSegments.of(pair, truth, self._things)
        # What can fail comes before what counts: a failed pair leaves nothing behind.
        matches = None if predicted is None else match_image(shown, predicted, self._things)
        table = self._joint(shown, pair)
        where = shown.classes >= 0
        np.add.at(self._pixels, shown.classes[where], table[where])
        self._weigh(shown, table)
        if matches is not None:
            self._matches.add(matches)
        return {}

    def _joint(self, shown: TruthSegments, pair: LabelPair) -> Counts:
        """Count pixels by truth segment and prediction: [S, C + 2], columns as `_pixels`."""
        classes = len(self._names)
        codes = np.where(pair.columns < 0, classes, pair.columns)
        codes[_vehicles(pair.predicted_row.get("label_space")) & (pair.columns < 0)] = classes + 1
        predicted = look_up(pair.predicted, codes.astype(narrowest(classes + 2)))
        counted = count_pairs(shown.map, predicted)
        table = np.zeros((len(shown.classes), classes + 2), np.int64)
        table[counted.truth, counted.predicted] = counted.counts
        return table

    def _weigh(self, shown: TruthSegments, table: Counts) -> None:
        """Add each single object's pixels, found and missed, weighed to its class's mean size."""
        columns = [self._columns(name, seen=True) for name in _OBJECT_CATEGORIES]
        for segment in range(shown.scored + 1, len(table)):
            place, row = int(shown.classes[segment]), table[segment]
            pixels = int(row.sum())
            if place < 0 or not self._things[place] or not pixels:
                continue
            weight = MEAN_SIZES[self._names[place]] / pixels
            self._found.add(place, float(row[place]) * weight)
            self._missed.add(place, float(pixels - row[place]) * weight)
            at = _OBJECT_CATEGORIES.index(_CATEGORY_OF[self._names[place]])
            found = int(row[columns[at]].sum())
            self._category_found.add(at, found * weight)
            self._category_missed.add(at, (pixels - found) * weight)

    def _columns(self, category: str, *, seen: bool) -> list[int]:
        """Return a category's columns of `_pixels`; `seen` adds vehicles that aren't scored."""
        mine = [n for n, name in enumerate(self._names) if _CATEGORY_OF[name] == category]
        return mine + [len(self._names) + 1] * (seen and category == "vehicle")

    def merge(self, other: Self) -> None:
        """Add what another worker counted."""
        self._pixels += other._pixels
        self._found.merge(other._found)
        self._missed.merge(other._missed)
        self._category_found.merge(other._category_found)
        self._category_missed.merge(other._category_missed)
        self._matches.merge(other._matches)

    def figures(self) -> dict[str, Any]:
        """Return the scores; those of objects (`instances`) only if predictions hold objects."""
        iou = {name: self._category_iou(name) for name in CATEGORIES}
        weighed = {
            "iiou_classes": self._class_iious(),
            "iiou_categories": self._category_iious(),
        }
        found: dict[str, Any] = {"iou_categories": iou, **weighed}
        for name, scores in list(found.items()):
            found[f"mean_{name}"] = _mean(scores.values())
        if self._matches.images:
            found["instances"] = self._instances()
        return found

    def _category_iou(self, category: str) -> float | None:
        mine = self._columns(category, seen=False)
        others = [n for n in range(len(self._names)) if n not in mine]
        right = int(self._pixels[np.ix_(mine, mine)].sum())
        wrong = int(self._pixels[np.ix_(others, mine)].sum())
        return _share(right, wrong + int(self._pixels[mine].sum()))

    def _class_iious(self) -> dict[str, float | None]:
        found, missed = self._found.values(), self._missed.values()
        wrong = self._pixels.sum(axis=0)
        return {
            name: _share(found[n], found[n] + missed[n] + int(wrong[n] - self._pixels[n, n]))
            for n, name in enumerate(self._names)
            if self._things[n]
        }

    def _category_iious(self) -> dict[str, float | None]:
        found, missed = self._category_found.values(), self._category_missed.values()
        scores = {}
        for at, name in enumerate(_OBJECT_CATEGORIES):
            mine = self._columns(name, seen=False)
            others = [n for n in range(len(self._names)) if n not in mine]
            wrong = int(self._pixels[np.ix_(others, self._columns(name, seen=True))].sum())
            scores[name] = _share(found[at], found[at] + missed[at] + wrong)
        return scores

    def _instances(self) -> dict[str, Any]:
        """Return average precision, over classes and overlaps; classes that truth lacks are out."""
        table = self._matches.average_precisions()
        places = np.flatnonzero(self._things).tolist()
        return {
            "ap": _mean(table[places].ravel().tolist()),
            "ap50": _mean(table[places, 0].tolist()),
            "images": self._matches.images,
            "unscored": self._matches.unscored,
            "classes": {
                self._names[n]: {
                    "ap": known(float(np.average(table[n]))),
                    "ap50": known(float(table[n, 0])),
                }
                for n in places
            },
        }


@cache
def _vehicles(space: str | None) -> NDArray[np.bool_]:
    """Tell which ids of a built-in label space are vehicles that aren't scored: bool [65536]."""
    flags = np.zeros(1 << 16, np.bool_)
    if space in LABEL_SPACES:
        target = label_space("cityscapes-34")
        unscored = [target.by_name[name].id for name in _UNSCORED_VEHICLES]
        try:
            lut = find_remap(label_space(space), target).lut
        except RemapError:
            return flags
        flags[: len(lut)] = np.isin(lut, unscored)
    return flags


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _mean(values: Iterable[float | None]) -> float | None:
    there = [v for v in values if v is not None and not math.isnan(v)]
    return sum(there) / len(there) if there else None


cityscapes = CityscapesMeasure
"""What `pipeline.metrics.MEASURES` starts from."""
