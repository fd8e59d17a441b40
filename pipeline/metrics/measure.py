"""What a kind of score is: counted on one pair of label maps at a time, added up over parts.

The confusion of classes is always counted (`pipeline.metrics.confusion`); everything dearer -
boundaries, objects, calibration - is a `Measure` that a user asks for. A measure is a picklable
description; a worker starts a `Gathering` from it for each chunk of pairs, feeds it pairs, and
hands the small result back to be merged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from pipeline.metrics.confusion import VOID

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa
    from numpy.typing import NDArray

    from pipeline.label_space import LabelSpace
    from pipeline.metrics.confusion import Index, LabelMap

NO_CLASS = 255
"""The value of `positions` where a pixel has no class: 255, or 65535 with 255 classes or more."""


@dataclass(slots=True)
class LabelPair:
    """One image's truth beside its prediction, decoded, of one size.

    `rows` and `columns` give the scored class of each id of either map (`class_index`), so that
    the two may use different label spaces.
    """

    image_id: str
    truth: LabelMap
    """Ids [H, W]."""
    predicted: LabelMap
    rows: Index
    columns: Index
    space: LabelSpace
    """The classes that are scored: `space.train_ids`, in this order."""
    truth_row: Mapping[str, Any] = field(default_factory=dict)
    """The columns that the measures asked for, in Arrow's Python form."""
    predicted_row: Mapping[str, Any] = field(default_factory=dict)
    _truth_positions: LabelMap | None = None
    _predicted_positions: LabelMap | None = None

    @property
    def truth_positions(self) -> LabelMap:
        """Positions of the scored classes [H, W], uint8 (uint16 with 255 classes or more)."""
        if self._truth_positions is None:
            self._truth_positions = self._positions(self.truth, self.rows)
        return self._truth_positions

    @property
    def predicted_positions(self) -> LabelMap:
        """The same of the prediction; `NO_CLASS` where it gives no label."""
        if self._predicted_positions is None:
            self._predicted_positions = self._positions(self.predicted, self.columns)
        return self._predicted_positions

    def _positions(self, labels: LabelMap, index: Index) -> LabelMap:
        kind = np.uint8 if len(self.space.train_ids) < NO_CLASS else np.uint16
        # VOID wraps around to the highest value.
        table: NDArray[Any] = np.where(index < 0, VOID, index).astype(kind)
        if labels.dtype == kind == np.uint8:
            import cv2

            mapped: LabelMap = cv2.LUT(labels, table[:256])
            return mapped
        found: LabelMap = table[labels]
        return found


class Gathering(Protocol):
    """What a measure has counted so far; picklable, and no larger for more images."""

    def update(self, pair: LabelPair) -> Mapping[str, float | int | None]:
        """Count one pair; return its figures for `per_image.parquet`, by column.

        Raises:
            InputError: a cell that this measure needs is broken; the pair is then a failure.
        """
        ...

    def merge(self, other: Self) -> None:
        """Add what another worker counted; the order must not change the result."""
        ...

    def figures(self) -> dict[str, Any]:
        """Return the scores for `report.json`: plain data, None for a share of nothing."""
        ...


class Measure(Protocol):
    """A kind of score that can be asked for by name."""

    @property
    def name(self) -> str:
        """What `--measure` calls it; the key of its figures in `report.json`."""
        ...

    @property
    def truth_columns(self) -> tuple[str, ...]:
        """The record's columns that it needs from truth, beside the mask."""
        ...

    @property
    def predicted_columns(self) -> tuple[str, ...]:
        """The record's columns that it needs from the prediction."""
        ...

    @property
    def image_columns(self) -> tuple[pa.Field, ...]:
        """The columns that it adds to `per_image.parquet`."""
        ...

    def start(self, space: LabelSpace) -> Gathering:
        """Begin to count, with nothing counted."""
        ...
