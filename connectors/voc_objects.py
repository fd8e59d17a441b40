"""SegmentationObject: a palette PNG in which every object of an image has a number, 255 is void."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline import masks
from pipeline.errors import CorruptMask, SizeMismatch
from pipeline.label_space import voc_colour
from pipeline.labels import png

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.label_space import LabelMap
    from pipeline.record import Instance, Record

BORDER: Final = 255
MOST_OBJECTS: Final = 254
"""Eight bits, less 0 for none and 255 for void."""


@cache
def voc_palette() -> bytes:
    """Return VOC's palette, 256 RGB entries."""
    return b"".join(bytes(voc_colour(index)) for index in range(256))


def read_object_map(data: bytes, path: str, shape: tuple[int, int]) -> LabelMap:
    """Return the object numbers [H, W] of a palette, grey or RGB file.

    Raises:
        InputError: it is damaged, of another size than the class mask, or in other colours.
    """
    if data[:8] == png.SIGNATURE and len(data) > 25 and data[25] in (png.RGB, 6):
        numbers = _numbers_of_colours(masks.read_colour_label(data, path), path)
    else:
        numbers = masks.read_label(data, path)
    if numbers.shape != shape:
        raise SizeMismatch(
            path,
            f"the object mask has {numbers.shape[1]}x{numbers.shape[0]} pixels, the class mask "
            f"{shape[1]}x{shape[0]}",
            "replace one of the two",
        )
    return numbers


def _numbers_of_colours(rgb: NDArray[np.uint8], path: str) -> LabelMap:
    palette = np.frombuffer(voc_palette(), np.uint8).reshape(256, 3).astype(np.uint32)
    codes = palette @ np.array([1, 256, 65536], np.uint32)
    order = np.argsort(codes)
    wanted = rgb.astype(np.uint32) @ np.array([1, 256, 65536], np.uint32)
    at = np.minimum(np.searchsorted(codes[order], wanted), 255)
    if (codes[order][at] != wanted).any():
        raise CorruptMask(
            path,
            "an RGB object mask with colours that are not in VOC's palette",
            "write object numbers in one channel",
        )
    return order[at].astype(np.uint8)


def numbered(
    instances: Sequence[Instance], ground: int | None, *, keep: bool
) -> tuple[Instance, ...]:
    """Return the instances under numbers of which 8 bits hold the first 254.

    `keep` leaves numbers as they are when they fit; otherwise they count from 1, in order, as the
    objects of an annotation do. Those whose class is `ground`, the background, are number 0: they
    cover what lies below them, and are no objects.
    """
    ids = [instance.id for instance in instances]
    fit = all(0 < i.id <= MOST_OBJECTS for i in instances if i.rle)
    if keep and fit and len(set(ids)) == len(ids):
        return tuple(instances)
    numbers = count(1)
    return tuple(
        replace(instance, id=0 if instance.category == ground else next(numbers))
        for instance in instances
    )


def _without_mask(instance: Instance, height: int, width: int) -> Instance:
    box = instance.bbox
    if box is None and instance.rle:
        box = masks.rle_bbox(instance.rle, height, width)
    return replace(instance, rle=None, bbox=box)


def within_eight_bits(
    instances: Sequence[Instance], height: int, width: int
) -> tuple[Instance, ...]:
    """Return numbered instances; those past the 254th keep their box and lose their pixels."""
    return tuple(
        instance
        if instance.id <= MOST_OBJECTS or not instance.rle
        else _without_mask(instance, height, width)
        for instance in instances
    )


def draw(
    record: Record, drawing: masks.Drawing, unsure: NDArray[np.bool_] | None, void: str | None
) -> tuple[NDArray[np.uint8], dict[str, int]]:
    """Return the object map of numbered instances, and how many are partly or wholly covered.

    `drawing` is of the record's instances. Void is where `void`, run lengths, says; without them,
    where the class mask is void (`unsure`, None for nowhere) and no object lies.

    Raises:
        BadAnnotation: run lengths are malformed, or of another size.
    """
    numbers = drawing.map((i.id if i.rle else 0 for i in drawing.objects), 0, np.uint8)
    if void is not None:
        border = masks.rle_decode(void, record.height, record.width, record.image_id) != 0
    else:
        border = None if unsure is None else unsure & (numbers == 0)
    if border is not None:
        np.copyto(numbers, BORDER, where=border)
    parts = [i.rle for i in record.instances or () if i.rle and i.part_of is not None]
    covered = drawing.covered() + sum(masks.rle_area(rle) > 0 for rle in parts)
    return numbers, ({"instances_covered": covered} if covered else {})
