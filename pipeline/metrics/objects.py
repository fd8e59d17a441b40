"""COCO's average precision and recall of objects, by their masks.

Lin et al., "Microsoft COCO", ECCV 2014; pycocotools' `COCOeval` (segm) on what the connector
`coco-instances` writes for the same rows gives the same numbers. Truth's areas are those that the
row gives, predictions' those of their pixels; the 100 most certain predictions of a class in an
image count.

Precision needs all predictions in the order of their scores. 28 bytes are kept of each (score,
class, image, rank, right or wrong at 10 thresholds and 4 sizes), and the image's id, so that equal
scores stand in the order of the images' ids, as in COCOeval; no masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from pipeline.errors import BadAnnotation
from pipeline.instances import rle_area, rle_check
from pipeline.metrics.exact_sum import RowStack
from pipeline.metrics.objects_match import AREAS, THRESHOLDS, match, outside
from pipeline.metrics.pair_objects import no_objects, predicted_objects, truth_objects

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa
    from numpy.typing import NDArray

    from pipeline.label_space import LabelSpace
    from pipeline.metrics.confusion import Counts
    from pipeline.metrics.measure import LabelPair
    from pipeline.metrics.pair_objects import Objects
    from pipeline.record import Instance

    Flags = NDArray[np.bool_]
    Floats = NDArray[np.float64]

_MOST: Final = (1, 10, 100)
"""Predictions of a class in an image that count, for the three average recalls."""
_RECALLS: Final = np.linspace(0.0, 1.0, 101)
_STATES: Final = len(AREAS) * len(THRESHOLDS)
_BITS: Final = np.uint64(1) << np.arange(_STATES, dtype=np.uint64)
_ROW: Final = np.dtype(
    [
        ("score", "<f4"),
        ("image", "<u4"),
        ("class", "<u2"),
        ("rank", "<u2"),
        ("right", "<u8"),
        ("wrong", "<u8"),
    ]
)


@dataclass(frozen=True, slots=True)
class ObjectsMeasure:
    """AP and AR of objects, over all classes and of each."""

    name: str = "objects"
    truth_columns: tuple[str, ...] = ("instances",)
    predicted_columns: tuple[str, ...] = ("instances",)

    @property
    def image_columns(self) -> tuple[pa.Field, ...]:
        """Truth objects of the image, without crowds, and how many are found at IoU 0.5."""
        import pyarrow as pa

        return pa.field("objects", pa.int64()), pa.field("objects_found", pa.int64())

    def start(self, space: LabelSpace) -> ObjectsGathering:
        """Begin to count."""
        return ObjectsGathering(list(space.class_names))


class ObjectsGathering:
    """Truth objects by class and size [C, 4], and a row for each predicted object."""

    def __init__(self, names: list[str]) -> None:
        self._names = tuple(names)
        self._truths: Counts = np.zeros((len(names), len(AREAS)), np.int64)
        self._rows = RowStack(_ROW)
        self._ids: list[bytes] = []  # of a few images each, zeros between them
        self._images = self._unscored = 0

    def update(self, pair: LabelPair) -> Mapping[str, float | int | None]:
        """Count one pair; return its truth objects, and those that are found.

        Raises:
            InputError: either side's objects are not known, or broken.
        """
        truth, predicted = truth_objects(pair), predicted_objects(pair)
        for side, held in (("truth", truth), ("prediction", predicted)):
            if held is None:
                raise no_objects(f"{pair.image_id} ({side})", "objects", "matches objects")
        assert truth is not None
        assert predicted is not None
        height, width = pair.truth.shape
        mine, theirs = _Side.of(truth, height, width), _Side.of(predicted, height, width)
        areas = np.array(
            [
                a if i.area is None else i.area
                for i, a in zip(mine.instances, mine.pixels, strict=True)
            ]
        )
        scores = theirs.objects.scores()
        counts = np.zeros_like(self._truths)
        rows = []
        for place in np.unique(np.concatenate([mine.places, theirs.places])).tolist():
            ours = np.flatnonzero(mine.places == place)
            crowd = np.array([mine.instances[n].iscrowd for n in ours], np.bool_)
            counts[place] = (~(crowd | outside(areas[ours]))).sum(axis=1)
            found = np.flatnonzero(theirs.places == place)
            found = found[np.argsort(-scores[found], kind="stable")][: _MOST[-1]]
            if len(found):
                iou = _overlaps(theirs, found, mine, ours, crowd)
                outcome = match(iou, crowd, areas[ours], theirs.pixels[found])
                rows.append(_rows(place, scores[found], outcome.right, outcome.wrong))
        made = np.concatenate([np.empty(0, _ROW), *rows])
        self._truths += counts
        self._unscored += sum(i.score is None for i in theirs.instances)
        self._keep(pair.image_id, made)
        right = int(((made["right"] & _BITS[0]) > 0).sum())
        return {"objects": int(counts[:, 0].sum()), "objects_found": right}

    def _keep(self, image_id: str, rows: NDArray[Any]) -> None:
        if len(rows):
            rows["image"] = self._images
            self._rows.add(rows)
            self._ids.append(image_id.replace("\0", " ").encode() + b"\0")
            self._images += 1

    def merge(self, other: Self) -> None:
        """Add what another worker counted."""
        rows = other._rows.whole().copy()
        rows["image"] += np.uint32(self._images)
        self._rows.add(rows)
        self._ids.append(b"".join(other._ids))
        self._images += other._images
        self._truths += other._truths
        self._unscored += other._unscored

    def figures(self) -> dict[str, Any]:
        """Return the scores; None for classes and sizes of which truth has no object."""
        precision, recall = self._curves()
        whole = precision[:, :, :, 0]
        small = zip(("small", "medium", "large"), range(1, len(AREAS)), strict=True)
        names = [(name, k) for name, k in small]
        return {
            "ap": _mean(whole),
            "ap50": _mean(whole[0]),
            "ap75": _mean(whole[np.flatnonzero(THRESHOLDS == 0.75)]),
            **{f"ap_{name}": _mean(precision[:, :, :, k]) for name, k in names},
            **{f"ar{most}": _mean(recall[:, :, 0, m]) for m, most in enumerate(_MOST)},
            **{f"ar_{name}": _mean(recall[:, :, k, -1]) for name, k in names},
            "unscored": self._unscored,
            "classes": {
                name: {
                    "ap": _mean(whole[:, :, n]),
                    "ap50": _mean(whole[0, :, n]),
                    "ar100": _mean(recall[:, n, 0, -1]),
                    "objects": int(self._truths[n, 0]),
                }
                for n, name in enumerate(self._names)
            },
        }

    def _curves(self) -> tuple[Floats, Floats]:
        """Return precision [10, 101, C, 4] at 101 recalls, and recall [10, C, 4, 3]; -1 is none."""
        classes = len(self._names)
        precision = np.full((len(THRESHOLDS), len(_RECALLS), classes, len(AREAS)), -1.0)
        recall = np.full((len(THRESHOLDS), classes, len(AREAS), len(_MOST)), -1.0)
        rows = self._sorted()
        edges = np.searchsorted(rows["class"], np.arange(classes + 1))
        for place, area in zip(*np.nonzero(self._truths), strict=True):
            mine, truths = rows[edges[place] : edges[place + 1]], int(self._truths[place, area])
            for m, most in enumerate(_MOST):
                right, wrong = _sums(mine[mine["rank"] < most], int(area))
                if right.shape[1]:
                    recall[:, place, area, m] = right[:, -1] / truths
                else:
                    recall[:, place, area, m] = 0.0
                if most == _MOST[-1]:
                    precision[:, :, place, area] = _precisions(right, wrong, truths)
        return precision, recall

    def _sorted(self) -> NDArray[Any]:
        """Return the rows by class; in a class as COCOeval has them, whatever came in first."""
        rows = self._rows.whole()
        ids = b"".join(self._ids).decode().split("\0")[:-1]
        order = np.empty(len(ids), np.int64)
        order[sorted(range(len(ids)), key=lambda n: _id_key(ids[n]))] = np.arange(len(ids))
        return rows[np.lexsort((rows["rank"], order[rows["image"]], -rows["score"], rows["class"]))]


@dataclass(frozen=True, slots=True)
class _Side:
    """One side's objects of scored classes: positions and pixels [N], sound run lengths."""

    objects: Objects
    places: NDArray[np.int64]
    pixels: Floats
    codes: list[dict[str, Any]]

    @property
    def instances(self) -> tuple[Instance, ...]:
        """The objects themselves, in the order of the arrays."""
        return self.objects.instances

    @classmethod
    def of(cls, objects: Objects, height: int, width: int) -> _Side:
        """Check one side.

        Raises:
            BadAnnotation: an object has no run lengths, or they are malformed or of another size.
        """
        kept = objects.chosen(objects.positions >= 0)
        codes, pixels = [], []
        for one in kept.instances:
            if not one.rle:
                raise BadAnnotation(
                    kept.path,
                    f"object {one.id} has no mask, and the measure 'objects' compares masks",
                    "give it one, or leave the object or the measure out",
                )
            rle_check(one.rle, height, width, kept.path)
            codes.append({"size": [height, width], "counts": one.rle.encode()})
            pixels.append(rle_area(one.rle, kept.path))
        return cls(kept, kept.positions, np.array(pixels, np.float64), codes)


def _overlaps(
    theirs: _Side, found: NDArray[np.int64], mine: _Side, ours: NDArray[np.int64], crowd: Flags
) -> Floats:
    """Return IoU [D, G]; against a crowd, the share of the prediction that lies on it."""
    if not len(ours):
        return np.zeros((len(found), 0))
    from pycocotools import mask

    iou: Floats = mask.iou(
        [theirs.codes[n] for n in found], [mine.codes[n] for n in ours], crowd.astype(int).tolist()
    )
    return iou


def _rows(place: int, scores: NDArray[np.float32], right: Flags, wrong: Flags) -> NDArray[Any]:
    rows = np.empty(len(scores), _ROW)
    rows["score"], rows["class"], rows["image"] = scores, place, 0
    rows["rank"] = np.arange(len(scores))
    rows["right"] = right.reshape(len(scores), _STATES) @ _BITS
    rows["wrong"] = wrong.reshape(len(scores), _STATES) @ _BITS
    return rows


def _sums(rows: NDArray[Any], area: int) -> tuple[Floats, Floats]:
    """Return how many predictions are right, and wrong, up to each: [10, n]."""
    bits = _BITS[area * len(THRESHOLDS) :][: len(THRESHOLDS), None]
    right, wrong = ((rows[name] & bits) > 0 for name in ("right", "wrong"))
    return np.cumsum(right, axis=1).astype(np.float64), np.cumsum(wrong, axis=1).astype(np.float64)


def _precisions(right: Floats, wrong: Floats, truths: int) -> Floats:
    """Return the precision at each of 101 recalls, 0 where it isn't reached: [10, 101]."""
    found = np.zeros((len(right), len(_RECALLS)))
    if right.shape[1]:
        precision = right / (wrong + right + np.spacing(1))
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        for k, recall in enumerate(right / truths):
            at = np.searchsorted(recall, _RECALLS, side="left")
            reached = at < len(recall)
            found[k, reached] = precision[k, at[reached]]
    return found


def _id_key(image_id: str) -> tuple[int, int, str]:
    """Sort numbers as COCO sorts its numeric ids; other ids after them, as text."""
    if image_id.isascii() and image_id.isdigit():
        number = image_id.lstrip("0")
        return 0, len(number), number
    return 1, 0, image_id


def _mean(values: Floats) -> float | None:
    known = values[values > -1]
    return float(np.mean(known)) if known.size else None


objects = ObjectsMeasure
"""What `pipeline.metrics.MEASURES` starts from."""
