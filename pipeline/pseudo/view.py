"""The hard view of soft labels: which pixels are labels for a reader, and how much they weigh.

    view = View.parse("thresholds.json")
    labels = view.hard(ids, confidence)          # ids, and the ignore index where it is unsure
    weights = view.weights(ids, confidence)      # 0 where ignored

The store keeps what the model said; a view is a reader's choice. Another target or another
calibration needs no model and no writing.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline import masks
from pipeline.errors import UsageError
from pipeline.predict.thresholds import Thresholds
from pipeline.pseudo.calibrate import Calibration
from pipeline.pseudo.held_out import LEVELS
from pipeline.pseudo.rows import confidence_map
from pipeline.record import ClassPixels, File

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.label_space import LabelMap, LabelSpace
    from pipeline.metrics.confusion import Floats
    from pipeline.record import Record

    Confidence = NDArray[np.uint8]

_IDS: Final = 1 << 16
_MOST_BAND: Final = 64
_BORDER: Final = ":border="


@dataclass(frozen=True, slots=True)
class View:
    """What is kept: by a calibration, or by thresholds that a user wrote.

    `band` is the width in pixels of what is ignored on either side of a border between classes.

    Raises:
        UsageError: the band is not in 0..64.
    """

    calibration: Calibration | None = None
    thresholds: Thresholds | None = None
    band: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.band <= _MOST_BAND:
            raise UsageError(f"--view: a border is 0 to {_MOST_BAND} pixels, not {self.band}")

    @classmethod
    def parse(cls, text: str) -> View:
        """Read a calibration's file, or thresholds as `label --min-confidence` takes them.

        Behind either `:border=N` ignores N pixels on either side of a border between classes.

        Raises:
            UsageError: it is neither.
        """
        text, colon, width = text.partition(_BORDER)
        if colon and not width.isdecimal():
            raise UsageError(f"--view: {_BORDER} takes a number of pixels, not {width!r}")
        band = int(width) if colon else 0
        if os.path.isfile(text):
            with open(text, "rb") as file:
                held = file.read()
            if held.lstrip()[:1] == b"{":
                return cls(calibration=Calibration.from_json(held, text), band=band)
        elif text.endswith(".json"):
            raise UsageError(f"--view {text}: there is no such file")
        return cls(thresholds=Thresholds.parse(text), band=band)

    def identity(self) -> str:
        """Return a text that is another one for a view that shows other labels."""
        said = self.calibration.to_json() if self.calibration else str(self.thresholds)
        return hashlib.sha256(f"{self.band}\0{said}".encode()).hexdigest()

    def of(self, space: LabelSpace) -> SpaceView:
        """Return the view of labels in a label space.

        Raises:
            UsageError: the calibration is of another label space.
            UnknownName: a threshold is of no class of it.
        """
        count = len(space.train_ids)
        if self.calibration is None:
            said = self.thresholds or Thresholds()
            keep = np.array([math.ceil(255 * p - 1e-9) for p in said.by_channel(space)], np.int16)
            return SpaceView(space, keep, keep, np.ones((count, LEVELS)), self.band)
        if self.calibration.space != space:
            raise UsageError(
                f"--view: the calibration is of label space {self.calibration.space.name!r}, the "
                f"labels are in {space.name!r}: calibrate on labels of the same model"
            )
        rules = self.calibration.rules
        keep = np.array([rule.keep for rule in rules], np.int16)
        sure = np.array([LEVELS if r.sure is None else r.sure for r in rules], np.int16)
        return SpaceView(space, keep, sure, self.calibration.maps, self.band)


@dataclass(frozen=True, slots=True, eq=False)
class SpaceView:
    """A view of labels in one label space; arrays by class, in the order of `space.train_ids`."""

    space: LabelSpace
    keep: NDArray[np.int16]
    """The least level that is kept; 256 for none."""
    sure: NDArray[np.int16]
    """The least level that weighs 1."""
    maps: Floats
    """The weight of other kept pixels by class and level, [C, 256]."""
    band: int = 0

    def hard(
        self, ids: LabelMap, confidence: Confidence, present: Sequence[int] | None = None
    ) -> LabelMap:
        """Return the ids [H, W] that are labels, and the ignore index elsewhere.

        `present` are the ids that image-level labels name, where there are such: others are not in
        the image. Which class a forbidden pixel belongs to the store does not know, so it is
        ignored.
        """
        least = np.full(_IDS, -1, np.int16)
        least[list(self.space.train_ids)] = self.keep
        if present is not None:
            absent = set(self.space.train_ids) - set(present)
            least[sorted(absent)] = LEVELS
        ignored = confidence < least[ids]
        if self.band:
            ignored |= border(ids, self.band)
        hard: LabelMap = np.where(ignored, ids.dtype.type(self.space.ignore_index), ids)
        return hard

    def weights(
        self, ids: LabelMap, confidence: Confidence, present: Sequence[int] | None = None
    ) -> NDArray[np.float32]:
        """Return each pixel's weight in a loss, float32 [H, W] in 0..1; 0 where ignored."""
        count = len(self.space.train_ids)
        table = np.zeros((count + 1, LEVELS), np.float32)
        levels = np.arange(LEVELS)
        table[:count] = np.where(levels >= self.sure[:, None], 1.0, self.maps)
        position = np.full(_IDS, count, np.int64)
        position[list(self.space.train_ids)] = np.arange(count)
        # What is ignored has no position, unless the ignore index were a class of training.
        kept = self.hard(ids, confidence, present)
        weights: NDArray[np.float32] = table[position[kept], confidence]
        return weights

    # --- of rows of a store -----------------------------------------------------------------------

    def cell(
        self, mask: bytes, confidence: bytes | None, present: Sequence[int] | None, path: str
    ) -> bytes:
        """Return the mask cell that a reader sees; one without confidence is truth, and stays.

        Raises:
            CorruptMask: a cell is damaged.
            SizeMismatch: the two are of different sizes.
        """
        if confidence is None:
            return mask
        ids = masks.decode(mask, path)
        hard = self.hard(ids, confidence_map(confidence, ids.shape, path), present)
        return masks.encode(hard, self.space.cell_palette())

    def record(self, record: Record) -> Record:
        """Return a record whose mask and class counts are the view's; errors as of `cell`."""
        cells = (record.mask, record.confidence)
        mask, sure = (None if cell is None else cell.bytes for cell in cells)
        if mask is None or sure is None:
            return record
        seen = self.cell(mask, sure, record.image_labels, record.image_id)
        return replace(record, mask=File(bytes=seen), classes=self.counted(seen, sure))

    def counted(self, mask: bytes, confidence: bytes) -> tuple[ClassPixels, ...]:
        """Return the class counts of cells."""
        return masks.class_pixels(masks.decode(mask), self.space, masks.decode(confidence))


def border(ids: LabelMap, width: int) -> NDArray[np.bool_]:
    """Return the pixels [H, W] that have another id within `width` pixels, rows or columns.

    >>> border(np.array([[1, 1, 1, 2, 2, 2]], np.uint8), 1).astype(int).tolist()
    [[0, 0, 1, 1, 0, 0]]
    """
    import cv2

    window = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    whole = np.ascontiguousarray(ids)
    different: NDArray[np.bool_] = cv2.dilate(whole, window) != cv2.erode(whole, window)
    return different


def missed(classes: Sequence[ClassPixels], present: Sequence[int] | None) -> list[int]:
    """Return the ids that image-level labels name and no pixel is predicted as."""
    if present is None:
        return []
    found = {c.id for c in classes if c.pixels}
    return [i for i in present if i not in found]
