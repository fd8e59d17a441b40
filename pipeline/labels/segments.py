"""Segments of an image from its mask and its objects: who owns a pixel where the two disagree.

The rule of everything panoptic here, what is written and what is scored.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.instances import object_map_from_instances

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.label_space import LabelMap
    from pipeline.record import Instance

    Owners = NDArray[np.unsignedinteger[Any]]


def look_up(labels: LabelMap, table: NDArray[np.unsignedinteger[Any]]) -> LabelMap:
    """Return `table`, which covers every value, at every pixel [H, W].

    8-bit maps go through OpenCV, which lets go of the interpreter's lock.

    >>> look_up(np.array([[0, 2]], np.uint8), np.arange(10, 266).astype(np.uint8))
    array([[10, 12]], dtype=uint8)
    """
    if labels.dtype == table.dtype == np.uint8 and labels.size:
        import cv2

        full = np.zeros(256, np.uint8)  # OpenCV takes no shorter one
        full[: len(table)] = table[:256]
        return np.asarray(cv2.LUT(labels, full))
    found: LabelMap = np.take(table, labels)
    return found


def owners(objects: Sequence[Instance], shape: tuple[int, ...], path: str) -> Owners:
    """Return the map [H, W] of who is on top: 0 for none, else position in `objects` + 1.

    Smaller objects lie on top; parts of objects are drawn as objects.

    Raises:
        BadAnnotation: run lengths are malformed, or of another size; or over 65,535 objects.
    """
    numbered = [replace(o, id=n, extra=None) for n, o in enumerate(objects, 1)]
    return object_map_from_instances(numbered, shape[0], shape[1], path)


def owners_in_mask(
    objects: Sequence[Instance], mask: LabelMap, real: NDArray[np.bool_], path: str
) -> Owners:
    """Return the map of owners in which no object has pixels of another class: 0 for none.

    The mask decides: an object keeps the pixels that the mask gives its class, or an id that is not
    `real` (bool [65536]), such as void. Where the object on top loses a pixel, the topmost one of
    the pixel's own class has it.

    Raises:
        BadAnnotation: as `owners`.
    """
    owner = owners(objects, mask.shape, path)
    if not objects:
        return owner
    categories = [0, *(o.category for o in objects)]
    wide = np.min_scalar_type(max(categories))  # a category may be beyond what the mask can hold
    claimed = np.array(categories, dtype=np.result_type(mask.dtype, wide))
    wrong = (look_up(owner, claimed) != mask) & (owner > 0)
    if not wrong.any():
        return owner
    wrong &= look_up(mask, real.view(np.uint8)).view(np.bool_)
    for category in np.unique(mask[wrong]).tolist():
        here = wrong & (mask == category)
        mine = [n for n, o in enumerate(objects, 1) if o.category == category]
        numbers = np.array([0, *mine], dtype=owner.dtype)
        below = owners([objects[n - 1] for n in mine], mask.shape, path)
        owner[here] = numbers[below[here]]
    return owner
