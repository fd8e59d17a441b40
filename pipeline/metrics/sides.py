"""One of the label sets that are compared: where its mask cells lie, and what their ids mean."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.errors import InputError, LabelOutOfRange, SizeMismatch
from pipeline.labels.derive import painted
from pipeline.masks import decode
from pipeline.metrics.confusion import UNDEFINED, Index, count_pairs
from pipeline.record import File, Instance, Record
from pipeline.tables.groups import RowGroups
from pipeline.tables.rows import rows_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pipeline.label_space import LabelMap, LabelSpace
    from pipeline.metrics.confusion import Counts
    from pipeline.store import Store
    from pipeline.tables.rows import RowKey


_OBJECTS: Final = "instances"
_SIZE: Final = ("height", "width")


@dataclass(frozen=True, slots=True)
class Side:
    """One of the label sets: its store, and the scored class of each id of its label spaces."""

    name: str
    store: Store
    index: Mapping[str, Index]
    columns: tuple[str, ...] = ()
    """What measures need of it beside the mask."""
    groups: RowGroups = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", RowGroups(self.store))

    def cells(self, keys: Iterable[RowKey]) -> dict[RowKey, Cell]:
        """Read the cells of some rows."""
        needed = ["mask.bytes", "label_space", "image.path"]
        size = [n for n in _SIZE if _OBJECTS in self.columns and n not in self.columns]
        columns = (*self.columns, *size)
        found = {}
        for key, row in rows_of(self.store, keys, [*needed, *columns], self.groups):
            mask, space, path = row[:3]
            asked = dict(zip(columns, row[3:], strict=True))
            found[key] = Cell(self.name, mask, space or "", path or key.image_id, asked)
        return found

    def positions(self, cell: Cell, ids: Index) -> Index:
        """Return the scored class of each id.

        Raises:
            LabelOutOfRange: the cell's label space does not define one of them.
        """
        positions = self.index[cell.space][ids]
        if (positions == UNDEFINED).any():
            strange = np.unique(ids[positions == UNDEFINED])
            raise LabelOutOfRange(
                cell.path,
                f"the {self.name} holds ids that label space {cell.space!r} does not define: "
                f"{', '.join(map(str, strange[:10].tolist()))}",
                "write the mask again in its label space",
            )
        return positions


@dataclass(frozen=True, slots=True)
class Cell:
    """A mask cell as it lies in a store, and the row's columns that measures asked for."""

    side: str
    mask: bytes | None
    space: str
    path: str
    row: Mapping[str, Any]

    @property
    def empty(self) -> bool:
        """Whether it has nothing to score: no mask, nor objects that a measure asked for."""
        return self.mask is None and self.row.get(_OBJECTS) is None

    def map(self, space: LabelSpace) -> LabelMap:
        """Return its label map; objects without a mask paint one, void where none is.

        Raises:
            InputError: there is none, or it is damaged.
        """
        if self.empty:
            mend = (
                "mIoU is of masks: label it with a semantic or panoptic model; objects alone are "
                "for COCO's tools, by `segmill export --format coco-instances`"
            )
            raise InputError(self.path, f"the {self.side} has no mask", mend)
        source = f"{self.path} ({self.side})"
        return self._painted(space, source) if self.mask is None else decode(self.mask, source)

    def _painted(self, space: LabelSpace, source: str) -> LabelMap:
        objects = tuple(Instance(**one) for one in self.row[_OBJECTS])
        height, width = (self.row[name] for name in _SIZE)
        record = Record(source, "", "", File(), "", height, width, space.name, instances=objects)
        ids = painted(record, space)
        return np.full((height, width), space.ignore_index, space.dtype) if ids is None else ids


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """A decoded cell and the side that it is of."""

    side: Side
    cell: Cell
    map: LabelMap

    @classmethod
    def of(cls, side: Side, cell: Cell) -> Labels:
        """Decode a cell.

        Raises:
            InputError: it has no mask, or a damaged one.
        """
        return cls(side, cell, cell.map(side.store.space(cell.space)))


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """The counted pairs of two label maps: ids, their class positions, pixels."""

    first: Index
    second: Index
    row: Index
    column: Index
    counts: Counts

    @classmethod
    def of(cls, first: Labels, second: Labels) -> Compared:
        """Count the pixels of two label maps.

        Raises:
            InputError: their sizes differ, or one holds ids that its label space does not define.
        """
        if first.map.shape != second.map.shape:
            raise SizeMismatch(
                second.cell.path,
                f"the {second.side.name} is {second.map.shape[1]}x{second.map.shape[0]} pixels, "
                f"the {first.side.name} {first.map.shape[1]}x{first.map.shape[0]}",
                "label the image at its own size",
            )
        pairs = count_pairs(first.map, second.map)
        return cls(
            pairs.truth,
            pairs.predicted,
            first.side.positions(first.cell, pairs.truth),
            second.side.positions(second.cell, pairs.predicted),
            pairs.counts,
        )
