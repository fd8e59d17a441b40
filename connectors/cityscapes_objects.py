"""instanceIds: 16-bit maps of class * 1000 + number, and the plain class where nothing is counted.

The plain id of a class whose objects are counted elsewhere is a group of them: one instance with
iscrowd, whose id is the class's. Numbers have gaps, where an object is wholly covered; they are
kept.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline import masks
from pipeline.errors import BadAnnotation, CorruptMask, LabelOutOfRange, SizeMismatch
from pipeline.labels.regions import Regions
from pipeline.record import Instance

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from pipeline.label_space import LabelMap, LabelSpace
    from pipeline.record import Instance, Record

PER_CLASS: Final = 1000
"""Objects of one class that an image may hold; also what a class id is multiplied by."""

_TOP: Final = 65535
_SLIVER: Final = 0.001
"""Share of the pixels on which labelIds and instanceIds may disagree; then labelIds count."""

_NONE: Final = 255  # what `_classes` says of values that are no 8-bit class


def classes_of(values: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Return the labelIds that instanceIds imply: [H, W] uint8; 255 for values of no class."""
    # Arithmetic takes a fifth of the time of a look-up in 65,536 entries.
    plain = np.minimum(values, _NONE)
    return np.where(values < PER_CLASS, plain, values // PER_CLASS).astype(np.uint8)


def is_thing(category: int, space: LabelSpace) -> bool:
    """Tell whether the objects of a class are counted."""
    known = space.by_id.get(category)
    return known is not None and bool(known.isthing)


def read_values(data: bytes, path: str) -> NDArray[np.uint16]:
    """Return the values of an instanceIds file: [H, W] uint16.

    Raises:
        CorruptMask: it is damaged, or has 8 bits, into which the values do not fit.
    """
    values = masks.read_label(data, path)
    if values.dtype != np.uint16:
        raise CorruptMask(
            path,
            "object numbers of 8 bits: instanceIds are class * 1000 + number and need 16",
            "restore the 16-bit file; an image editor or an 8-bit loader may have spoilt it",
        )
    return values.astype(np.uint16, copy=False)


def objects_of(
    values: NDArray[np.uint16], ids: LabelMap, space: LabelSpace, path: str
) -> tuple[tuple[Instance, ...], int]:
    """Return the objects and groups of instanceIds, and on how many pixels labelIds say otherwise.

    Raises:
        SizeMismatch: the two maps differ in size.
        LabelOutOfRange: a value is of no class.
        BadAnnotation: the maps disagree on more than a sliver of the pixels.
    """
    if values.shape != ids.shape:
        raise SizeMismatch(
            path,
            f"instanceIds have {values.shape[1]}x{values.shape[0]} pixels, labels "
            f"{ids.shape[1]}x{ids.shape[0]}",
            "replace one of the two",
        )
    differs = classes_of(values) != ids
    stray = int(np.count_nonzero(differs))
    if stray > _SLIVER * ids.size:
        check(values, space, path)
        raise BadAnnotation(
            path,
            f"{stray} pixels are of another class than labelIds say",
            "restore the two files from one release, or draw both from polygons.json",
        )
    if stray:
        values = np.where(differs, ids, values).astype(np.uint16)
    regions = Regions.of(values)
    _check(regions.numbers.tolist(), space, path)
    found = []
    for place, value in enumerate(regions.numbers.tolist()):
        group = value < PER_CLASS
        if group and not is_thing(value, space):
            continue
        category = value if group else value // PER_CLASS
        found.append((place, value, category, group))
    return regions.instances(found), stray


def check(values: NDArray[np.uint16], space: LabelSpace, path: str) -> None:
    """Make sure that every value of instanceIds is of a class of the space.

    Raises:
        LabelOutOfRange: it is not; the message lists the values.
    """
    _check(np.flatnonzero(np.bincount(values.ravel())).tolist(), space, path)


def _check(values: list[int], space: LabelSpace, path: str) -> None:
    known = {*space.ids, space.ignore_index}
    bad = [v for v in values if (v if v < PER_CLASS else v // PER_CLASS) not in known]
    if bad:
        raise LabelOutOfRange(
            path,
            f"values {', '.join(map(str, bad[:20]))} are of no class of label space "
            f"{space.name!r}; expected a class id, or class * 1000 + number",
            "fix the file, or read it with the classes that it was made for",
        )


def draw(
    record: Record, ids: LabelMap, space: LabelSpace
) -> tuple[NDArray[np.uint16], dict[str, int]]:
    """Return instanceIds [H, W] of a record's objects over its labels, and what was lost.

    Pixels whose label is of another class than the object keep their label, so that both maps
    agree as the official tools take for granted.

    Raises:
        BadAnnotation: run lengths are malformed, or of another size.
    """
    plain = ids.astype(np.uint16)
    objects, loss = _numbered(record.instances or (), space)
    if not objects:
        return plain, loss
    height, width = ids.shape
    drawn = masks.object_map_from_instances(objects, height, width, record.image_id)
    drawn = drawn.astype(np.uint16, copy=False)
    ours = (classes_of(drawn) == ids) & (drawn > 0)
    values = np.where(ours, drawn, plain)
    cut = _cut(objects, values, int(np.count_nonzero(ours)), record.image_id)
    return values, loss | ({"instance_masks": cut} if cut else {})


def _cut(objects: list[Instance], values: NDArray[np.uint16], shown: int, path: str) -> int:
    """Count the objects of which other objects, or other labels, cover a part."""
    areas = [masks.rle_area(o.rle or "", path) for o in objects]
    if sum(areas) == shown:
        return 0
    left = np.bincount(values.ravel(), minlength=_TOP + 1)
    return sum(int(left[o.id]) != area for o, area in zip(objects, areas, strict=True))


def _numbered(
    instances: Iterable[Instance], space: LabelSpace
) -> tuple[list[Instance], dict[str, int]]:
    """Return the objects that can be drawn, their id the value in the map, and what was lost."""
    kept: list[Instance] = []
    others: list[Instance] = []
    groups: set[int] = set()
    lost: Counter[str] = Counter()
    taken: set[int] = set()
    for instance in instances:
        lost["instance_scores"] += instance.score is not None
        if instance.part_of is not None or instance.rle is None:
            lost["instances" if instance.rle is None else "instance_parts"] += 1
        elif instance.iscrowd:
            one = is_thing(instance.category, space) and instance.category not in groups
            groups.add(instance.category)
            lost["instances"] += not one
            lost["instance_ids"] += one and instance.id != instance.category
        elif _is_own_number(instance) and instance.id not in taken:
            taken.add(instance.id)
            kept.append(instance)
        else:
            others.append(instance)
    free: dict[int, Iterator[int]] = {}
    for instance in others:
        if instance.category not in free:
            free[instance.category] = _free_values(instance.category, taken, space)
        value = next(free[instance.category], None)
        lost["instances" if value is None else "instance_ids"] += 1
        if value is not None:
            kept.append(replace(instance, id=value))
    return kept, {name: n for name, n in lost.items() if n}


def _is_own_number(instance: Instance) -> bool:
    return PER_CLASS <= instance.id <= _TOP and instance.id // PER_CLASS == instance.category


def _free_values(category: int, taken: set[int], space: LabelSpace) -> Iterator[int]:
    """Return the free values of a class; none where its objects cannot be told apart.

    Class 0 leaves no room: its numbers would be other classes' ids. Those of a class above 65 do
    not fit 16 bits; its objects are lost, its pixels are not.
    """
    known = space.by_id.get(category)
    if category == 0 or known is None or known.isthing is False:
        return iter(())
    start = category * PER_CLASS
    return (v for v in range(start, min(start + PER_CLASS, _TOP + 1)) if v not in taken)
