"""Measures of labels against truth: pure counting, and accumulators that add up."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from pipeline.errors import UnknownName

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pipeline.metrics.measure import Measure

MEASURES: Final[Mapping[str, str]] = {
    "boundary": "pipeline.metrics.boundary:Boundary",
    "calibration": "pipeline.metrics.calibration:Calibration",
    "cityscapes": "pipeline.metrics.cityscapes:cityscapes",
    "objects": "pipeline.metrics.objects:objects",
    "panoptic": "pipeline.metrics.panoptic:panoptic",
}
"""Kinds of score that cost more than counting pixels: each name's factory, imported on use."""


def measures(names: Iterable[str]) -> tuple[Measure, ...]:
    """Return the measures of these names, each once, in the order of `MEASURES`; "all" is all.

    Raises:
        UnknownName: there is no such measure.
    """
    asked = set(names)
    for name in sorted(asked - MEASURES.keys() - {"all"}):
        raise UnknownName("measure", name, [*MEASURES, "all"])
    found = []
    for name, place in MEASURES.items():
        if name in asked or "all" in asked:
            module, _, factory = place.partition(":")
            found.append(getattr(import_module(module), factory)())
    return tuple(found)
