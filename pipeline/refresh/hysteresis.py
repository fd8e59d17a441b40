"""Which label a pixel keeps from one night to the next: last night's, unless the new one is better.

    settled = settle(old, old_sure, new, new_sure, margin=0.1, agree=agree, ignore_index=255)

Every model errs in other places, so that a night's labels differ from the last ones where neither
is better. Such flips are noise to whoever trains on them. A pixel changes where the new label's
confidence exceeds the old one's by a margin (hysteresis: Canny 1986 for edges), or where the
teachers agree on the new label.

- Where last night had no label, tonight's stands, whatever its confidence.
- Where tonight has none, last night's is kept: void says nothing against a label.
- Where both say the same, the confidence is tonight's.

A label that is kept keeps its confidence. One that a model was very sure of is thus hardly ever
outdone by confidence alone: `agree` is what changes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.errors import UsageError
from pipeline.pseudo.held_out import LEVELS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.label_space import LabelMap, LabelSpace
    from pipeline.metrics.confusion import Floats

    Confidence = NDArray[np.uint8]

MARGIN: Final = 0.1
_IDS: Final = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class Settled:
    """A night's labels of one image, after hysteresis."""

    ids: LabelMap
    """[H, W], uint8, or uint16 where one of the nights had 16 bits."""
    confidence: Confidence
    """uint8 [H, W]: of the label that stands."""
    flipped: NDArray[np.bool_]
    """bool [H, W]: another label took last night's place."""
    gained: int
    """Pixels that had no label last night and have one now."""
    held: int
    """Pixels that kept last night's label against another one, or against none."""

    @property
    def changed(self) -> int:
        """The number of pixels whose label is another one than last night's."""
        return int(np.count_nonzero(self.flipped)) + self.gained


def settle(
    old_ids: LabelMap,
    old_confidence: Confidence,
    new_ids: LabelMap,
    new_confidence: Confidence,
    *,
    margin: float = MARGIN,
    agree: NDArray[np.bool_] | None = None,
    ignore_index: int,
) -> Settled:
    """Return the labels that stand tonight.

    Ids are uint8 or uint16 [H, W]; confidences uint8 [H, W], round(255 p). Both must mean the same:
    two models' confidences are calibrated first, each by its own held-out truth (`Scale`).

    `margin` is in 0..1: 0 takes the new label where it is as sure as the old one, 1 never by its
    confidence. `agree` [H, W] is where the teachers agree on the new label.

    The result does not change when the same new labels are settled against it once more.

    Raises:
        UsageError: the margin is not in 0..1.
        ValueError: the maps are of different shapes, or a confidence has not 8 bits.
    """
    check_margin(margin)
    _check(old_ids, old_confidence, new_ids, new_confidence, agree)
    had, has = old_ids != ignore_index, new_ids != ignore_index
    better = _outdone(old_confidence, new_confidence, margin)
    if agree is not None:
        better |= agree
    better &= has
    other = old_ids != new_ids
    held = other & had & ~better
    return Settled(
        ids=_chosen(held, old_ids, new_ids),
        confidence=_chosen(held, old_confidence, new_confidence),
        flipped=other & had & better,
        gained=int(np.count_nonzero(has & ~had)),
        held=int(np.count_nonzero(held)),
    )


def check_margin(margin: float) -> None:
    """Make sure that the margin is in 0..1.

    Raises:
        UsageError: it is not.
    """
    if not 0 <= margin <= 1:
        raise UsageError(f"hysteresis: a margin is a difference of confidences, 0..1, not {margin}")


def _outdone(old: Confidence, new: Confidence, margin: float) -> NDArray[np.bool_]:
    """Return where the new confidence is the margin or more above the old one; at 1, nowhere."""
    if margin == 1:
        return np.zeros(old.shape, np.bool_)
    step = np.uint8(math.ceil(255 * margin - 1e-9))
    # In eight bits throughout, which is some ten times faster: sums that wrap round are left out.
    outdone: NDArray[np.bool_] = (new >= old + step) & (old <= np.uint8(255) - step)
    return outdone


def _chosen(first: NDArray[np.bool_], a: Any, b: Any) -> Any:
    """Return `a` where `first`, else `b`: as np.where, several times faster for narrow integers."""
    kind = np.result_type(a, b)
    return b ^ ((a ^ b) & -first.astype(kind))


def _check(
    old_ids: LabelMap,
    old_confidence: Confidence,
    new_ids: LabelMap,
    new_confidence: Confidence,
    agree: NDArray[np.bool_] | None,
) -> None:
    maps = [old_ids, old_confidence, new_ids, new_confidence]
    shapes = {m.shape for m in (*maps, *([] if agree is None else [agree]))}
    if len(shapes) != 1:
        raise ValueError(f"maps of several shapes, {sorted(shapes)}: another image, no hysteresis")
    for sure in (old_confidence, new_confidence):
        if sure.dtype != np.uint8:
            raise ValueError(f"confidence is uint8, not {sure.dtype}")


# --- confidences that mean the same ---------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """One model's levels of confidence, and the calibrated probabilities that they stand for.

    `settle` compares probabilities, and a store keeps the levels of one model, which its
    thresholds are of. A label that is kept from another model is written on this one's scale:

        kept = tonight.level(ids, last_night.probability(ids, confidence))
    """

    space: LabelSpace
    up: NDArray[np.uint8]
    """round(255 q) by class and level, [C + 1, 256]; the last row is of no class."""
    down: NDArray[np.uint8]
    """The level whose q is nearest, the lowest of several, [C + 1, 256]."""

    @classmethod
    def of(cls, space: LabelSpace, maps: Floats) -> Scale:
        """Return the scale of a calibration's `maps` [C, 256]: q by class and level."""
        itself = np.arange(LEVELS, dtype=np.float64)[None] / 255
        rows = np.concatenate([np.asarray(maps, np.float64), itself])
        up: NDArray[np.uint8] = np.rint(255 * rows).astype(np.uint8)
        wanted = itself[0][None, :, None]
        down = np.concatenate([np.abs(row[None, None, :] - wanted).argmin(axis=2) for row in rows])
        return cls(space, up, down.astype(np.uint8))

    def probability(self, ids: LabelMap, levels: Confidence) -> Confidence:
        """Return round(255 q) of each pixel, uint8 [H, W]."""
        return self._through(self.up, ids, levels)

    def level(self, ids: LabelMap, probability: Confidence) -> Confidence:
        """Return each pixel's level on this scale, uint8 [H, W], of round(255 q)."""
        return self._through(self.down, ids, probability)

    def _through(self, table: NDArray[np.uint8], ids: LabelMap, values: Confidence) -> Confidence:
        count = len(self.space.train_ids)
        first = np.full(_IDS, count * LEVELS, np.int32)
        first[list(self.space.train_ids)] = np.arange(count, dtype=np.int32) * LEVELS
        place = first[ids]
        place += values
        found: Confidence = table.ravel()[place]
        return found
