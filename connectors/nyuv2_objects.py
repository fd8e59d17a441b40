"""NYU's objects: pairs of a class and a number within it, made into instances and back.

An instance's id is 256 times its class plus its number, 1..255. Number 0 is no object.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from pipeline import masks
from pipeline.labels.regions import Regions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.label_space import LabelMap
    from pipeline.record import Instance

    Numbers: TypeAlias = NDArray[np.uint8]

STEP: Final = 256
"""Numbers of one class: 8 bits in the dataset."""


def instances_of(
    labels: LabelMap, numbers: Numbers, ignore: int
) -> tuple[tuple[Instance, ...], dict[str, str]]:
    """Return the objects of two maps [H, W], and where unlabelled pixels have a number.

    The second is run lengths by number, for a record's extra: pixels of no class are no object, yet
    must come back.
    """
    present = np.flatnonzero(np.bincount(labels.ravel()))
    rank = np.zeros(int(present[-1]) + 1, np.int32)
    rank[present] = np.arange(len(present)) * STEP
    pairs = rank[labels] + numbers
    counts = np.bincount(pairs.ravel())
    held = np.flatnonzero(counts)
    index = np.zeros(len(counts), np.uint8 if len(held) <= STEP else np.uint16)
    index[held] = np.arange(len(held))
    regions = Regions.of(index[pairs])
    found: list[tuple[int, int, int, bool]] = []
    unlabelled: dict[str, str] = {}
    for place, pair in enumerate(held.tolist()):
        category, number = int(present[pair // STEP]), pair % STEP
        if number and category == ignore:
            unlabelled[str(number)] = regions.rle(place)
        elif number:
            found.append((place, category * STEP + number, category, False))
    return regions.instances(found), unlabelled


def numbers_of(
    instances: Sequence[Instance],
    labels: LabelMap,
    ignore: int,
    unlabelled: Mapping[str, str],
    path: str,
) -> tuple[Numbers, dict[str, int]]:
    """Return the map of numbers [H, W] beside a class map, and what it cannot hold.

    Objects keep their numbers when all ids are such pairs, otherwise they are numbered within their
    class, in order. Pixels where the class map has another class than the object are left out.

    Raises:
        BadAnnotation: run lengths are malformed, or of another size.
    """
    drawn = [i for i in instances if i.rle and i.part_of is None]
    given = _numbered(drawn)
    order = [replace(instance, id=at + 1, extra=None) for at, instance in enumerate(drawn)]
    height, width = labels.shape
    index = masks.object_map_from_instances(order, height, width, path)
    values = np.array([0, *given], np.uint8)
    owner = np.array([-1, *(i.category for i in drawn)], np.int32)
    index[owner[index] != labels] = 0
    kept = np.bincount(index.ravel(), minlength=len(values))[1:].tolist()
    numbers = np.take(values, index)
    for number, rle in unlabelled.items():
        region = masks.rle_decode(rle, height, width, path) != 0
        numbers[region & (labels == ignore)] = int(number)
    areas = [masks.rle_area(i.rle or "", path) for i in drawn]
    loss = {
        "instances": len(instances)
        - sum(n > 0 and pixels > 0 for n, pixels in zip(given, kept, strict=True)),
        "instance_masks": sum(0 < k < a for k, a in zip(kept, areas, strict=True)),
        "instance_ids": sum(
            n > 0 and i.id != i.category * STEP + n for i, n in zip(drawn, given, strict=True)
        ),
        "instance_scores": sum(i.score is not None for i in drawn),
        "crowds": sum(i.iscrowd for i in drawn),
    }
    return numbers, {name: n for name, n in loss.items() if n}


def _numbered(instances: Sequence[Instance]) -> list[int]:
    """Return each object's number within its class; 0 where the class has no number left."""
    ids = [i.id for i in instances]
    if len(set(ids)) == len(ids) and all(
        i.id // STEP == i.category and i.id % STEP for i in instances
    ):
        return [i % STEP for i in ids]
    taken: Counter[int] = Counter()
    numbers = []
    for instance in instances:
        taken[instance.category] += 1
        number = taken[instance.category]
        numbers.append(number if number < STEP else 0)
    return numbers
