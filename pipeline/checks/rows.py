"""What can be wrong with one row: its mask, objects, maps and names. Pure; no image is opened."""

from __future__ import annotations

import json
import math
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from pipeline import masks
from pipeline.errors import BadAnnotation, InputError
from pipeline.record import SPLITS

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.label_space import LabelMap, LabelSpace
    from pipeline.record import Instance, Record

TOLERANCE: Final = 0.25
"""The share of an object's pixels that may be of another class in the mask."""
_BOX_PIXELS, _BOX_SHARE = 5.0, 0.1
"""How far a box's edge may lie from the run lengths': annotators' boxes are loose, and VOC's masks
leave a border out that its boxes hold."""
_OUTSIDE_PIXELS: Final = 1.0  # boxes are drawn to the border's outer edge, from 0 or from 1
_AREA_SHARE: Final = 0.1  # a polygon's area and its pixels differ, most where it is thin
_MOST_NAMED: Final = 5


class Problem(NamedTuple):
    """One thing that is wrong: its kind (`pipeline.checks.findings`), what, and which object's."""

    kind: str
    what: str
    object: int | None = None


class _Drawn(NamedTuple):
    """An object and where its pixels are: column-major positions."""

    instance: Instance
    pixels: NDArray[np.int64]


def row_problems(
    record: Record, spaces: Mapping[str, LabelSpace], tolerance: float = TOLERANCE
) -> Iterator[Problem]:
    """Yield what is wrong with a record, in a fixed order; `spaces` are those of its store."""
    yield from _names(record)
    space = spaces.get(record.label_space)
    if space is None:
        yield Problem("label-space", f"label space {record.label_space!r} is not described")
        return
    if not _is_size(record.height, record.width):
        yield Problem("row", f"height {record.height} and width {record.width} are no image size")
        return
    yield from _labels(record, space)
    mask = yield from _mask(record, space)
    yield from _maps(record)
    if record.instances:
        yield from _objects(record, record.instances, space, mask, tolerance)


def _is_size(*sides: Any) -> bool:
    return all(isinstance(side, int) and side > 0 for side in sides)


def _names(record: Record) -> Iterator[Problem]:
    if not record.image_id:
        yield Problem("row", "the row has no image_id")
    if record.split not in SPLITS:
        yield Problem("split", f"split {record.split!r} is none of {', '.join(SPLITS)}")
    if record.extra:
        try:
            fine = isinstance(json.loads(record.extra), dict)
        except (ValueError, RecursionError):
            fine = False
        if not fine:
            yield Problem("row", "the column `extra` is no JSON object")


def _labels(record: Record, space: LabelSpace) -> Iterator[Problem]:
    stray = [i for i in record.image_labels or () if i not in space.by_id]
    if stray:
        yield Problem("image-labels", f"image labels {_some(stray)} are not in {space.name}")
    bare = record.mask is None and record.instances is None and record.image_labels is None
    if bare and record.split in {"train", "val"}:
        yield Problem("no-label", f"a {record.split} image without mask, objects or image labels")


def _some(values: Sequence[Any]) -> str:
    more = f" and {len(values) - _MOST_NAMED} more" if len(values) > _MOST_NAMED else ""
    return ", ".join(map(str, values[:_MOST_NAMED])) + more


# --- masks ----------------------------------------------------------------------------------------


def _mask(record: Record, space: LabelSpace) -> Generator[Problem, None, LabelMap | None]:
    """Yield what is wrong with the mask; return its ids when they can be compared with objects."""
    if record.mask is None or record.mask.bytes is None:
        return None
    try:
        ids = masks.decode(record.mask.bytes, record.image_id)
    except InputError as error:
        yield Problem("mask-corrupt", f"the mask: {error.cause}")
        return None
    fits = True
    if ids.shape != (record.height, record.width):
        fits = False
        yield Problem("mask-size", f"the mask is {_by(ids.shape)}, the image {_by(_shape(record))}")
    try:
        counts = masks.class_pixels(ids, space, path=record.image_id)
    except InputError as error:
        yield Problem("mask-ids", f"the mask: {error.cause}")
        return None
    if {c.id: c.pixels for c in record.classes or ()} != {c.id: c.pixels for c in counts}:
        yield Problem("classes", "the column `classes` does not say what the mask holds")
    yield from _content({c.id for c in counts}, space)
    return ids if fits else None


def _content(present: set[int], space: LabelSpace) -> Iterator[Problem]:
    trained = present & set(space.train_ids)
    if not trained:
        yield Problem("mask-void", "no pixel of the mask has a class")
    elif {space.by_id[i].name for i in trained} == {"background"}:
        yield Problem("mask-background", "the mask shows nothing but background")


def _by(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _shape(record: Record) -> tuple[int, int]:
    return record.height, record.width


def _maps(record: Record) -> Iterator[Problem]:
    """Check the confidence and the depth map."""
    if record.confidence is not None and record.confidence.bytes is not None:
        try:
            shape = masks.decode(record.confidence.bytes, record.image_id).shape
        except InputError as error:
            yield Problem("confidence", f"the confidence map: {error.cause}")
        else:
            yield from _same_size("confidence", shape, record)
    if record.depth is not None and record.depth.bytes is not None:
        from pipeline import depth

        try:
            shape = depth.decode(record.depth.bytes, record.image_id)[0].shape
        except InputError as error:
            yield Problem("depth", f"the depth map: {error.cause}")
        else:
            yield from _same_size("depth", shape, record)


def _same_size(kind: str, shape: tuple[int, ...], record: Record) -> Iterator[Problem]:
    if shape != _shape(record):
        yield Problem(kind, f"the {kind} map is {_by(shape)}, the image {_by(_shape(record))}")


# --- objects --------------------------------------------------------------------------------------


def _objects(
    record: Record,
    instances: Sequence[Instance],
    space: LabelSpace,
    mask: LabelMap | None,
    tolerance: float,
) -> Iterator[Problem]:
    ids = Counter(i.id for i in instances)
    twice = sorted(number for number, count in ids.items() if count > 1)
    if twice:
        yield Problem("instance-id", f"objects share the ids {_some(twice)}", twice[0])
    drawn: list[_Drawn] = []
    for instance in instances:
        yield from _fields(instance, ids, space)
        yield from _outside(instance, record)
        pixels = yield from _pixels(instance, record)
        if pixels is not None:
            drawn.append(_Drawn(instance, pixels))
            yield from _box(instance, pixels, record.height)
    if mask is not None:
        yield from _against_mask(drawn, mask, space, tolerance)


def _fields(instance: Instance, ids: Counter[int], space: LabelSpace) -> Iterator[Problem]:
    if instance.category not in (*space.ids, space.ignore_index):
        what = f"object {instance.id}: class {instance.category} is not in {space.name}"
        yield Problem("instance-class", what, instance.id)
    try:
        whole = instance.part_of
    except (ValueError, TypeError, AttributeError, RecursionError):
        yield Problem("instance-malformed", f"object {instance.id}: bad `extra`", instance.id)
        return
    if whole is not None and whole not in ids:
        what = f"object {instance.id} is a part of object {whole}, which is not there"
        yield Problem("instance-part", what, instance.id)


def _numbers(box: Sequence[Any] | None) -> tuple[float, float, float, float] | None:
    """Return a box that is four finite numbers, not of negative size; else None."""
    if box is None or len(box) != 4 or not all(isinstance(v, (int, float)) for v in box):
        return None
    x, y, w, h = map(float, box)
    return (x, y, w, h) if all(map(math.isfinite, (x, y, w, h))) and min(w, h) >= 0 else None


def _outside(instance: Instance, record: Record) -> Iterator[Problem]:
    if instance.bbox is None:
        return
    box = _numbers(instance.bbox)
    if box is None:
        what = f"object {instance.id}: box {list(instance.bbox)} is not x, y, w, h"
        yield Problem("instance-malformed", what, instance.id)
        return
    x, y, w, h = box
    over = max(-x, -y, x + w - record.width, y + h - record.height)
    if over > _OUTSIDE_PIXELS:
        what = f"object {instance.id}: its box leaves the image by {over:g} pixels"
        yield Problem("instance-outside", what, instance.id)


def _pixels(
    instance: Instance, record: Record
) -> Generator[Problem, None, NDArray[np.int64] | None]:
    """Yield what is wrong with the run lengths; return the positions of the object's pixels."""
    if not instance.rle:
        box = _numbers(instance.bbox)
        if box is None or not box[2] * box[3]:
            what = f"object {instance.id} has neither run lengths nor a box"
            yield Problem("instance-empty", what, instance.id)
        return None
    try:
        pixels = positions(instance.rle, record.height * record.width)
    except BadAnnotation as error:
        yield Problem("instance-rle", f"object {instance.id}: {error.cause}", instance.id)
        return None
    if not len(pixels):
        yield Problem("instance-empty", f"object {instance.id} has no pixel", instance.id)
        return None
    return pixels


def positions(counts: str, size: int) -> NDArray[np.int64]:
    """Return the column-major positions of an object's pixels, ascending.

    Raises:
        BadAnnotation: the run lengths are malformed, or not of an image with `size` pixels.
    """
    runs = np.array(masks.rle_runs(counts), np.int64)
    if int(runs.sum()) != size:
        cause = f"run lengths of {int(runs.sum())} pixels for an image of {size}"
        raise BadAnnotation("run lengths", cause, "correct the annotation")
    starts, lengths = (np.cumsum(runs) - runs)[1::2], runs[1::2]
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


def _box(instance: Instance, pixels: NDArray[np.int64], height: int) -> Iterator[Problem]:
    """Compare the box and the area with the pixels."""
    rows = pixels % height
    edges = np.array(
        [pixels[0] // height, rows.min(), pixels[-1] // height + 1, rows.max() + 1], np.float64
    )
    width, tall = edges[2:] - edges[:2]
    box = _numbers(instance.bbox)
    if box is not None:
        x, y, w, h = box
        off = float(np.abs(edges - [x, y, x + w, y + h]).max())
        if off > max(_BOX_PIXELS, _BOX_SHARE * max(width, tall)):
            what = f"object {instance.id}: its box and its run lengths are {off:g} pixels apart"
            yield Problem("instance-box", what, instance.id)
    if instance.area is not None and not abs(instance.area - len(pixels)) <= (
        _AREA_SHARE * len(pixels) + 2 * (width + tall)
    ):
        what = f"object {instance.id}: area {instance.area:g}, its run lengths {len(pixels)} pixels"
        yield Problem("instance-area", what, instance.id)


@lru_cache(maxsize=32)
def _void(space: LabelSpace) -> NDArray[np.bool_]:
    """Return, for every value of a mask, whether it says nothing about the class."""
    void = np.ones(1 << 16, np.bool_)
    void[list(space.train_ids)] = False
    return void


def _against_mask(
    drawn: Sequence[_Drawn], mask: LabelMap, space: LabelSpace, tolerance: float
) -> Iterator[Problem]:
    """Yield the objects that the mask gives to another class.

    A part lies on its whole and a crowd is loose: neither is compared. Void pixels say nothing, and
    a pixel that another object of the mask's class covers is explained by that overlap.
    """
    flat = np.ascontiguousarray(mask.T).ravel()
    void = _void(space)
    for one in drawn:
        listed = one.instance.category in space.by_id
        if one.instance.iscrowd or _is_part(one.instance) or not listed:
            continue
        values = flat[one.pixels]
        wrong = (values != one.instance.category) & ~void[values]
        if np.count_nonzero(wrong) > tolerance * len(values):
            wrong[wrong] = ~_explained(one.pixels[wrong], values[wrong], drawn)
            share = np.count_nonzero(wrong) / len(values)
            if share > tolerance:
                theirs = np.bincount(values[wrong]).argmax()
                yield Problem(
                    "instance-mask",
                    f"object {one.instance.id} is {_called(one.instance.category, space)}, but "
                    f"the mask gives {share:.0%} of its pixels to other classes, most to "
                    f"{_called(int(theirs), space)}",
                    one.instance.id,
                )


def _is_part(instance: Instance) -> bool:
    try:
        return instance.part_of is not None
    except (ValueError, TypeError, AttributeError, RecursionError):
        return False


def _called(number: int, space: LabelSpace) -> str:
    known = space.by_id.get(number)
    return known.name if known else f"class {number}"


def _explained(
    pixels: NDArray[np.int64], values: NDArray[Any], drawn: Sequence[_Drawn]
) -> NDArray[np.bool_]:
    """Tell of each pixel whether an object of the mask's class covers it."""
    explained = np.zeros(len(pixels), np.bool_)
    for other in drawn:
        same = values == other.instance.category
        if same.any():
            explained[same] |= np.isin(pixels[same], other.pixels, assume_unique=True)
    return explained
