"""Whether stores hold what measures cannot do without, objects or confidence: asked at first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pipeline.label_space import LabelSpace
    from pipeline.metrics.measure import Measure
    from pipeline.store import Store

NEEDED: Final = {
    "cityscapes": ("truth",),
    "objects": ("truth", "prediction"),
    "panoptic": ("truth", "prediction"),
}
"""Which sides must hold objects for a measure. AP is a part of `cityscapes` that is left out where
predictions hold none."""


def check_objects(
    measures: Iterable[Measure],
    space: LabelSpace,
    truth: Store,
    prediction: Store,
    known: Callable[[str], bool] | None = None,
) -> None:
    """Make sure that a store of which objects are asked holds any row that tells of objects.

    An empty list of objects is an answer; null is none. It stops at the first row that has one.
    Panoptic quality needs none where every scored class is stuff. `known` answers for a side
    instead of its store, for who asks several times.

    Raises:
        UsageError: a store has none; the message names the measures.
    """
    stuff = all(space.by_id[i].isthing is False for i in space.train_ids)
    names = [m.name for m in measures if not (stuff and m.name == "panoptic")]
    for side, store in (("truth", truth), ("prediction", prediction)):
        asking = [name for name in names if side in NEEDED.get(name, ())]
        if asking and not (known(side) if known else holds_objects(store)):
            raise UsageError(
                f"{store.url}: no row of the {side} tells of objects (column `instances`), which "
                f"--measure {', '.join(asking)} needs; label with a model that finds objects, or "
                "leave the measure out"
            )


def check_confidence(measures: Iterable[Measure], prediction: Store) -> None:
    """Make sure that a store of which calibration is asked holds any confidence map.

    It stops at the first row that has one; a row that lacks one is a failure of its own.

    Raises:
        UsageError: there is none.
    """
    if not any("confidence" in m.predicted_columns for m in measures):
        return
    if not holds(prediction, "confidence.bytes", 16):
        raise UsageError(
            f"{prediction.url}: no prediction has a confidence map, which --measure calibration "
            "needs; label with --confidence, or leave the measure out"
        )


def holds_objects(store: Store) -> bool:
    """Tell whether any row of a store tells of its image's objects."""
    return holds(store, "instances.category")


def holds(store: Store, column: str, batch_rows: int = 4096) -> bool:
    """Tell whether any row of a store has a value in the column; stops at the first."""
    batches = store.scan([column], batch_rows=batch_rows)
    return any(batch.column(0).null_count < batch.num_rows for batch in batches)
