"""One of the label sets that are compared: where its mask cells lie, and what their ids mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import InputError, LabelOutOfRange, SizeMismatch
from pipeline.masks import decode
from pipeline.metrics.confusion import UNDEFINED, Index, count_pairs
from pipeline.tables.rows import rows_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pipeline.label_space import LabelMap
    from pipeline.metrics.confusion import Counts
    from pipeline.store import Store
    from pipeline.tables.rows import RowKey


@dataclass(frozen=True, slots=True)
class Side:
    """One of the label sets: its store, and the scored class of each id of its label spaces."""

    name: str
    store: Store
    index: Mapping[str, Index]
    columns: tuple[str, ...] = ()
    """What measures need of it beside the mask."""

    def cells(self, keys: Iterable[RowKey]) -> dict[RowKey, Cell]:
        """Read the cells of some rows."""
        needed = ["mask.bytes", "label_space", "image.path"]
        found = {}
        for key, row in rows_of(self.store, keys, [*needed, *self.columns]):
            mask, space, path = row[:3]
            asked = dict(zip(self.columns, row[3:], strict=True))
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

    def map(self) -> LabelMap:
        """Return its label map.

        Raises:
            InputError: there is none, or it is damaged.
        """
        if self.mask is None:
            mend = (
                "mIoU is of masks: label it with a semantic or panoptic model; objects alone are "
                "for COCO's tools, by `segmill export --format coco-instances`"
            )
            raise InputError(self.path, f"the {self.side} has no mask", mend)
        return decode(self.mask, f"{self.path} ({self.side})")


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
        return cls(side, cell, cell.map())


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
