"""The objects of a pair of rows, checked, as the measures of objects need them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.errors import BadAnnotation, InputError, LabelOutOfRange
from pipeline.metrics.confusion import UNDEFINED
from pipeline.record import Instance

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.metrics.confusion import Index
    from pipeline.metrics.measure import LabelPair

_TOP_ID: Final = 65535
_NAMED: Final = 10
_MEND_IDS: Final = "fix the objects, or read them with the label space that they were made for"


@dataclass(frozen=True, slots=True)
class Objects:
    """One side's objects in the order of its row, and where to look when they are bad."""

    instances: tuple[Instance, ...]
    positions: NDArray[np.int64]
    """The scored class of each, `VOID` for an object of no scored class."""
    path: str
    """The image and the side, for messages."""

    def those(self, says: Callable[[Instance], object]) -> NDArray[np.bool_]:
        """Tell of each whether something is true of it."""
        return np.array([bool(says(i)) for i in self.instances], dtype=np.bool_)

    def chosen(self, where: NDArray[np.bool_]) -> Objects:
        """Return those that are kept."""
        kept = tuple(i for i, k in zip(self.instances, where.tolist(), strict=True) if k)
        return Objects(kept, self.positions[where], self.path)

    def scores(self) -> NDArray[np.float32]:
        """Return how sure the labeller was of each; 1 for an object without a score.

        Raises:
            BadAnnotation: a score is no finite number.
        """
        found = [1.0 if i.score is None else i.score for i in self.instances]
        for score in found:
            if not math.isfinite(score):
                raise BadAnnotation(
                    self.path, f"an object has the score {score}", "label the image again"
                )
        return np.array(found, dtype=np.float32)


def truth_objects(pair: LabelPair) -> Objects | None:
    """Return the objects of truth; None where the row has none to say of (its column is null).

    Raises:
        LabelOutOfRange: an object's class is not in the row's label space.
    """
    return _objects(pair.truth_row, pair.rows, f"{pair.image_id} (truth)")


def predicted_objects(pair: LabelPair) -> Objects | None:
    """Return the objects of the prediction, as `truth_objects`."""
    return _objects(pair.predicted_row, pair.columns, f"{pair.image_id} (prediction)")


def _objects(row: Mapping[str, Any], index: Index, path: str) -> Objects | None:
    held = row.get("instances")
    if held is None:
        return None
    found = tuple(Instance(**one) if isinstance(one, Mapping) else one for one in held)
    categories = np.array([i.category for i in found], dtype=np.int64)
    bad = (categories < 0) | (categories > _TOP_ID)
    positions = index[np.where(bad, 0, categories)]
    bad |= positions == UNDEFINED
    if bad.any():
        named = ", ".join(map(str, np.unique(categories[bad])[:_NAMED].tolist()))
        raise LabelOutOfRange(
            path, f"objects of classes {named}, which its label space does not define", _MEND_IDS
        )
    return Objects(found, positions, path)


def no_objects(path: str, measure: str, need: str) -> InputError:
    """Return the error of a row whose objects are not known, though the measure needs them."""
    return InputError(
        path,
        f"the row has no objects (its column `instances` is null), and the measure {measure!r} "
        f"{need}",
        "label it with a model that finds objects, or leave the measure out",
    )


def narrowest(values: int) -> type[np.uint8] | type[np.uint16]:
    """Return the pixel type that holds this many values.

    Raises:
        ValueError: 16 bits don't hold them.
    """
    if values > _TOP_ID + 1:
        raise ValueError(f"{values} segments do not fit 16 bits")
    return np.uint8 if values <= 256 else np.uint16
