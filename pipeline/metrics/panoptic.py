"""Panoptic quality: how well segments of things and of stuff are found and outlined.

Kirillov et al., "Panoptic Segmentation", CVPR 2019. The rules are those of panopticapi, and of the
same code in cityscapesScripts (evalPanopticSemanticLabeling), on the segments that the connector
`coco-panoptic` writes for the same rows: each object of a thing class, and what is left of each
class of the mask. A truth and a predicted segment of one class match if their IoU is above 0.5,
pixels of void truth left out of the union. What is left of a thing class in truth is a crowd, as
are objects marked so: neither found nor missed. An unmatched prediction of which void and a crowd
of its class make up more than half is not counted. Of several crowds of a class in one image the
last counts here, as in panopticapi.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from pipeline.errors import BadAnnotation
from pipeline.labels.segments import look_up, owners_in_mask
from pipeline.metrics.confusion import count_pairs
from pipeline.metrics.exact_sum import ExactSums
from pipeline.metrics.pair_objects import (
    narrowest,
    no_objects,
    predicted_objects,
    truth_objects,
)
from pipeline.metrics.shares import known, mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa
    from numpy.typing import NDArray

    from pipeline.label_space import LabelSpace
    from pipeline.metrics.confusion import Counts, Index, LabelMap, Pairs
    from pipeline.metrics.measure import LabelPair
    from pipeline.metrics.pair_objects import Objects

    Flags = NDArray[np.bool_]

_VOID: Final = 0
_NO_CROWD: Final = 0
_MOST: Final = 65535


@dataclass(frozen=True, slots=True)
class PanopticMeasure:
    """PQ, SQ and RQ, of things, of stuff and of each class."""

    name: str = "panoptic"
    truth_columns: tuple[str, ...] = ("instances",)
    predicted_columns: tuple[str, ...] = ("instances",)

    @property
    def image_columns(self) -> tuple[pa.Field, ...]:
        """The image's own PQ over its classes, and how many segments are missed and wrong."""
        import pyarrow as pa

        return (
            pa.field("panoptic_pq", pa.float64()),
            pa.field("panoptic_missed", pa.int64()),
            pa.field("panoptic_wrong", pa.int64()),
        )

    def start(self, space: LabelSpace) -> PanopticGathering:
        """Begin to count."""
        return PanopticGathering(space)


class PanopticGathering:
    """Matched, missed and wrong segments of each class [C]: no larger for more images."""

    def __init__(self, space: LabelSpace) -> None:
        self._names = space.class_names
        said = [space.by_id[i].isthing for i in space.train_ids]
        self._thing = np.array([bool(s) for s in said], np.bool_)
        self._unsaid = np.array([s is None for s in said], np.bool_)
        classes = len(said)
        self._iou = ExactSums(classes)
        # Rows: matched, wrong, missed.
        self._counts: Counts = np.zeros((3, classes), np.int64)
        self._seen = np.zeros(classes, np.bool_)

    def update(self, pair: LabelPair) -> Mapping[str, float | int | None]:
        """Count one pair; return its own PQ, and its segments that are missed and wrong.

        Raises:
            InputError: objects are not known where there are thing classes; or are broken.
        """
        truth = self._segments(pair.truth, pair.rows, truth_objects(pair), pair, "truth")
        predicted = self._segments(
            pair.predicted, pair.columns, predicted_objects(pair), pair, "prediction"
        )
        found = match_segments(truth, predicted, len(self._names))
        iou = np.zeros(len(self._names))
        for place, value in found.matched:
            self._iou.add(place, value)
            iou[place] += value
        self._counts += found.counts
        self._seen |= truth.things | predicted.things
        quality = _qualities(iou, found.counts)[0]
        return {
            "panoptic_pq": known(mean(quality)),
            "panoptic_missed": int(found.counts[2].sum()),
            "panoptic_wrong": int(found.counts[1].sum()),
        }

    def _segments(
        self, labels: LabelMap, index: Index, objects: Objects | None, pair: LabelPair, side: str
    ) -> Segments:
        if objects is None:
            path = f"{pair.image_id} ({side})"
            if self._thing.any() or self._unsaid.any():
                raise no_objects(path, "panoptic", "tells a thing class's objects apart")
            return Segments.of(labels, index, None, self._thing, self._unsaid)
        return Segments.of(labels, index, objects, self._thing, self._unsaid)

    def merge(self, other: Self) -> None:
        """Add what another worker counted."""
        self._iou.merge(other._iou)
        self._counts += other._counts
        self._seen |= other._seen

    def figures(self) -> dict[str, Any]:
        """Return the scores; a class without a segment anywhere has none, and is in no mean."""
        values = _qualities(self._iou.values(), self._counts)
        things = self._thing | (self._unsaid & self._seen)
        names = ("pq", "sq", "rq")
        found = {
            name: {key: known(v[n]) for key, v in zip(names, values, strict=True)}
            | dict(zip(("tp", "fp", "fn"), self._counts[:, n].tolist(), strict=True))
            for n, name in enumerate(self._names)
        }
        parts = {"things": things, "stuff": ~things}
        return {
            **_means(values, np.ones_like(things)),
            **{name: _means(values, where) for name, where in parts.items()},
            "classes": found,
        }


@dataclass(frozen=True, slots=True)
class Segments:
    """A map of segments [H, W], 0 void, and the class position and crowd flag of each."""

    map: LabelMap
    classes: NDArray[np.int64]
    crowd: Flags
    things: Flags
    """The classes [C] that are things, in this image."""

    @classmethod
    def of(
        cls, labels: LabelMap, index: Index, objects: Objects | None, thing: Flags, unsaid: Flags
    ) -> Segments:
        """Cut one side of a pair.

        `thing` [C] are the classes of objects; those in `unsaid` are, where objects use them.

        Raises:
            BadAnnotation: run lengths are malformed, or of another size; or too many objects.
        """
        scored, things = len(thing), thing.copy()
        single, owner = None, None
        if objects is not None:
            whole = objects.chosen(objects.those(lambda i: i.part_of is None))
            used = np.zeros(scored, np.bool_)
            used[whole.positions[whole.positions >= 0]] = True
            things |= unsaid & used
            # Objects of no scored class hide others, though they are void.
            drawn = (whole.positions < 0) | things[whole.positions]
            single = whole.chosen(drawn & whole.those(lambda i: i.rle))
            owner = owners_in_mask(single.instances, labels, index >= 0, single.path)
        positions = np.empty(0, np.int64) if single is None else single.positions
        first = len(positions) + 1
        if first + scored > _MOST:
            path = "" if single is None else single.path
            cause = f"{len(positions)} objects do not fit a 16-bit map"
            raise BadAnnotation(path, cause, "leave objects out")
        kind = narrowest(first + scored)
        rest: NDArray[np.unsignedinteger[Any]] = np.where(index < 0, _VOID, index + first)
        shown = look_up(labels, rest.astype(kind))
        if owner is not None and len(positions):
            numbers = np.where(positions < 0, _VOID, np.arange(1, first))
            own = look_up(owner, np.concatenate([[0], numbers]).astype(kind))
            np.copyto(shown, own, where=owner > 0)
        crowds = [] if single is None else [i.iscrowd for i in single.instances]
        return cls(
            shown,
            np.concatenate([[-1], positions, np.arange(scored)]),
            np.concatenate([[False], np.array(crowds, np.bool_), things]),
            things,
        )


@dataclass(frozen=True, slots=True)
class Matched:
    """One image: class position and IoU of each match; how many match, are wrong, missed [3, C]."""

    matched: tuple[tuple[int, float], ...]
    counts: Counts


def match_segments(truth: Segments, predicted: Segments, classes: int) -> Matched:
    """Match the segments of one image by the panoptic rules."""
    pairs = count_pairs(truth.map, predicted.map)
    mine, theirs = _areas(pairs.truth, pairs, truth), _areas(pairs.predicted, pairs, predicted)
    on_void = np.zeros_like(theirs)
    void = pairs.truth == _VOID
    on_void[pairs.predicted[void]] = pairs.counts[void]
    t, p, shared = pairs.truth, pairs.predicted, pairs.counts
    same = (t != _VOID) & (p != _VOID) & (truth.classes[t] == predicted.classes[p])
    same &= ~truth.crowd[t]
    t, p, shared = t[same], p[same], shared[same]
    iou = shared / (theirs[p] + mine[t] - shared - on_void[p])
    hit = iou > 0.5
    counts: Counts = np.zeros((3, classes), np.int64)
    _count(counts[0], truth.classes[t[hit]])
    missed = (mine > 0) & ~truth.crowd
    missed[[_VOID, *t[hit]]] = False
    _count(counts[2], truth.classes[missed])
    wrong = theirs > 0
    wrong[[_VOID, *p[hit]]] = False
    ignored = on_void + _on_crowd(truth, predicted, pairs, mine, classes)
    wrong[wrong] = ~(ignored[wrong] / theirs[wrong] > 0.5)
    _count(counts[1], predicted.classes[wrong])
    matched = zip(truth.classes[t[hit]].tolist(), iou[hit].tolist(), strict=True)
    return Matched(tuple(matched), counts)


def _areas(numbers: Index, pairs: Pairs, segments: Segments) -> Counts:
    # float64 adds counts exactly up to 2**53 pixels.
    sums = np.bincount(numbers, pairs.counts, minlength=len(segments.classes))
    return sums.astype(np.int64)


def _count(into: Counts, places: NDArray[np.int64]) -> None:
    into += np.bincount(places, minlength=len(into))


def _on_crowd(
    truth: Segments, predicted: Segments, pairs: Pairs, areas: Counts, classes: int
) -> Counts:
    """Count each prediction's pixels on the last crowd of its class that truth shows: [S]."""
    last = np.full(classes, _NO_CROWD, np.int64)
    crowds = np.flatnonzero(truth.crowd & (areas > 0))
    last[truth.classes[crowds]] = crowds  # of several, the last is assigned last
    found = np.zeros(len(predicted.classes), np.int64)
    place = predicted.classes[pairs.predicted]
    here = (pairs.predicted != _VOID) & (pairs.truth != _VOID) & (last[place] == pairs.truth)
    found[pairs.predicted[here]] = pairs.counts[here]
    return found


def _qualities(
    iou: NDArray[np.float64], counts: Counts
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return PQ, SQ and RQ of each class [C]; nan for a class without a segment."""
    right, wrong, missed = counts
    whole = np.where(counts.sum(axis=0) > 0, right + 0.5 * wrong + 0.5 * missed, np.nan)
    quality = np.where(right > 0, iou / np.maximum(right, 1), 0.0)
    return iou / whole, np.where(np.isnan(whole), np.nan, quality), right / whole


def _means(values: tuple[NDArray[np.float64], ...], where: Flags) -> dict[str, float | None]:
    return {k: known(mean(v[where])) for k, v in zip(("pq", "sq", "rq"), values, strict=True)}


panoptic = PanopticMeasure
"""What `pipeline.metrics.MEASURES` starts from."""
