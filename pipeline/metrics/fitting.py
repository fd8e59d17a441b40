"""Which of the measures of `--measure all` these stores and this label space can answer."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.metrics.objects_held import check_confidence, check_objects, holds_objects

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from pipeline.label_space import LabelSpace
    from pipeline.metrics.measure import Measure
    from pipeline.store import Store


def fitting(
    measures: Iterable[Measure],
    optional: Collection[str],
    space: LabelSpace,
    truth: Store,
    prediction: Store,
) -> tuple[tuple[Measure, ...], dict[str, str]]:
    """Return the measures that can be taken, and why each of the others cannot, by name.

    Only those named in `optional` may be left out.

    Raises:
        UsageError: one that was asked for by its name needs what the stores don't hold.
    """
    measures = tuple(measures)
    named = [m for m in measures if m.name not in optional]
    check_objects(named, space, truth, prediction)
    check_confidence(named, prediction)
    sides = {"truth": truth, "prediction": prediction}
    objects_of = cache(lambda side: holds_objects(sides[side]))
    left_out = {}
    for measure in measures:
        if measure.name in optional:
            try:
                measure.start(space)
                check_objects([measure], space, truth, prediction, objects_of)
                check_confidence([measure], prediction)
            except UsageError as error:
                left_out[measure.name] = str(error)
    return tuple(m for m in measures if m.name not in left_out), left_out
