"""Truth cut into segments as Cityscapes' instanceIds are: single objects, and classes without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.errors import BadAnnotation
from pipeline.labels.segments import look_up, owners
from pipeline.metrics.confusion import VOID
from pipeline.metrics.pair_objects import narrowest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.metrics.confusion import LabelMap
    from pipeline.metrics.measure import LabelPair
    from pipeline.metrics.pair_objects import Objects

    Table = NDArray[np.unsignedinteger[Any]]

_MOST: Final = 65535


@dataclass(frozen=True, slots=True)
class TruthSegments:
    """A map of segments [H, W]: 0..C-1 a class's pixels that no single object has, C void, then
    the single objects.

    A single object keeps the pixels where the mask has its class; where objects overlap, the
    smaller one lies on top. Groups (crowds), parts, objects of stuff and objects
    without run lengths are none.
    """

    map: LabelMap
    classes: NDArray[np.int64]
    """The class position of each segment, `VOID` for void: [S]."""
    scored: int
    """C, the number of scored classes."""

    @classmethod
    def of(cls, pair: LabelPair, objects: Objects, things: NDArray[np.bool_]) -> TruthSegments:
        """Cut one image; `things` [C] are the classes whose objects are told apart.

        Raises:
            BadAnnotation: run lengths are malformed, or of another size; or too many objects.
        """
        scored = len(things)
        kept = (objects.positions < 0) | things[objects.positions]
        kept &= objects.those(lambda i: i.rle and not i.iscrowd and i.part_of is None)
        single = objects.chosen(kept)
        first, count = scored + 1, len(single.instances)
        if first + count > _MOST:
            raise BadAnnotation(
                objects.path, f"{count} objects do not fit a 16-bit map", "leave objects out"
            )
        kind = narrowest(first + count)
        plain = look_up(pair.truth, np.where(pair.rows < 0, scored, pair.rows).astype(kind))
        classes = np.concatenate([np.arange(scored), [VOID], single.positions])
        if count:
            owner = owners(single.instances, pair.truth.shape, objects.path)
            categories = [0, *(i.category for i in single.instances)]
            narrow = np.uint8 if max(categories) < 256 else np.uint16
            claimed: Table = np.array(categories, narrow)
            ours = (look_up(owner, claimed) == pair.truth) & (owner > 0)
            numbers: Table = np.arange(first - 1, first + count).astype(kind)
            np.copyto(plain, look_up(owner, numbers), where=ours)
        return cls(plain, classes, scored)
