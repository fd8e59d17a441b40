"""COCO's matching of predicted objects to truth, one class of one image, all thresholds at once.

The rules of pycocotools' `COCOeval.evaluateImg`, without its loops over thresholds, areas and pairs
that do not overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]

THRESHOLDS: Final = np.linspace(0.5, 0.95, 10)
AREAS: Final = ((0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10))
"""All, small, medium and large objects, by pixels; both ends belong to a range."""

_LEAST: Final = np.minimum(THRESHOLDS, 1 - 1e-10)
_LOW: Final = np.array([low for low, _ in AREAS])[:, None]
_HIGH: Final = np.array([high for _, high in AREAS])[:, None]


def outside(areas: Floats) -> Flags:
    """Tell for each range which areas [N] are not in it: [4, N]."""
    return (areas < _LOW) | (areas > _HIGH)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether predictions are right, or wrong: [D, 4, 10] by area and threshold; else ignored."""

    right: Flags
    wrong: Flags


def match(iou: Floats, crowd: Flags, truth_areas: Floats, areas: Floats) -> Outcome:
    """Match predictions, the most certain first, to truth.

    `iou` is [D, G], against crowds the share of the prediction; `crowd` [G]; areas [G] and [D].
    A prediction takes the truth it overlaps most, the last of equals; one that counts goes before
    any that is ignored, a crowd or of another size. Crowds may be taken again.
    """
    ignored = crowd | outside(truth_areas)
    far = outside(areas).T
    right = np.zeros((len(areas), len(AREAS), len(THRESHOLDS)), np.bool_)
    wrong = np.repeat(~far[:, :, None], len(THRESHOLDS), axis=2)
    taken = np.zeros((len(AREAS), len(THRESHOLDS), len(crowd)), np.bool_)
    near = iou >= _LEAST[0]
    for d in np.flatnonzero(near.any(axis=1)).tolist():
        columns = np.flatnonzero(near[d])[::-1]  # reversed: of equals, argmax finds the first
        values = iou[d, columns]
        free = (values >= _LEAST[:, None]) & (~taken[:, :, columns] | crowd[columns])
        counts = free & ~ignored[:, None, columns]
        first = np.where(counts.any(axis=2)[:, :, None], counts, free)
        pick = np.where(first, values, -1.0).argmax(axis=2)
        found = free.any(axis=2)
        area, threshold = np.nonzero(found)
        chosen = columns[pick[area, threshold]]
        taken[area, threshold, chosen] = True
        right[d, area, threshold] = ~ignored[area, chosen]
        wrong[d, area, threshold] = False
    return Outcome(right, wrong)
