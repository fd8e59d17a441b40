"""annotation2Dfinal/index.json: the outlines that the annotators drew.

`objects` is a list of {name} or null; `frames` has one frame, whose `polygon` is a list of {x, y,
object} or null, where `object` counts from 0. Points may lie outside the image; an object may have
several outlines, or none. Some of the dataset's files are no JSON.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from connectors.sunrgbd_seg import class_of
from pipeline import masks
from pipeline.errors import BadAnnotation
from pipeline.record import Instance

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pipeline.label_space import LabelMap, LabelSpace

INDEX: Final = "annotation2Dfinal/index.json"
_SHARE: Final = 0.5
"""Of an object's pixels that must lie in an outline, as others may hide the rest of the outline."""
_MOST_POINTS: Final = 20_000


@dataclass(frozen=True, slots=True)
class Outlines:
    """An annotation's objects: name and polygons by number; `skipped` counts what is no outline."""

    objects: dict[int, tuple[str, list[list[float]]]]
    skipped: int


def parse(data: bytes, path: str) -> Outlines:
    """Read the outlines of an annotation; nulls are no error, they are objects taken back.

    Raises:
        BadAnnotation: it is no JSON, or of another structure.
    """
    try:
        said = json.loads(data)
        listed, drawn = _lists(said)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        cause = f"not an annotation that can be read ({str(error)[:200]})"
        raise BadAnnotation(path, cause, "correct the file; its outlines are left out") from None
    names = {
        number: item["name"]
        for number, item in enumerate(listed)
        if isinstance(item, dict) and isinstance(item.get("name"), str)
    }
    found: dict[int, tuple[str, list[list[float]]]] = {}
    skipped = 0
    for item in drawn:
        if item is None:
            continue
        number, points = _outline(item)
        if points is None or number not in names:
            skipped += 1
        else:
            found.setdefault(number, (names[number], []))[1].append(points)
    return Outlines(found, skipped)


def _lists(said: Any) -> tuple[list[Any], list[Any]]:
    if not isinstance(said, dict):
        raise TypeError(f"it is a {type(said).__name__}, not an object")
    drawn: list[Any] = []
    for frame in _list(said.get("frames")):
        if frame is not None:
            drawn += _list(frame.get("polygon"))
    return _list(said.get("objects")), drawn


def _list(value: Any) -> list[Any]:
    """Return a list; the tool that wrote the files made lists of one a bare object at times."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _outline(item: Any) -> tuple[int, list[float] | None]:
    """Return a polygon's object and its points, flat x, y; None for no polygon."""
    if not isinstance(item, dict) or type(item.get("object")) is not int:
        return -1, None
    x, y = item.get("x"), item.get("y")
    if not isinstance(x, list) or not isinstance(y, list) or len(x) != len(y):
        return -1, None
    if not 3 <= len(x) <= _MOST_POINTS or not all(type(v) in (int, float) for v in (*x, *y)):
        return -1, None
    try:
        points = [float(v) for pair in zip(x, y, strict=True) for v in pair]
    except OverflowError:
        return -1, None
    return item["object"], points if all(map(math.isfinite, points)) else None


def joined(
    instances: Sequence[Instance],
    drawn: LabelMap,
    outlines: Outlines,
    space: LabelSpace,
    path: str,
) -> tuple[tuple[Instance, ...], int]:
    """Return the objects of pixels and of outlines, as one where they are one, and how many fail.

    They are one if they have the same name and half of the object's pixels lie in its outline; an
    object of pixels takes the outline that fits best, and several may share one, as the annotators
    drew things of one kind as one object at times. Pixels, box and area stay as they are. Outlines
    left over become objects of their own; those of no class, or all outside the image, do not.
    """
    height, width = drawn.shape
    failed, shapes = 0, {}
    for number, (name, polygons) in outlines.objects.items():
        if class_of(name, space) == space.ignore_index:
            continue
        try:
            rle = masks.polygons_to_rle(polygons, height, width, path)
        except BadAnnotation:
            failed += 1
            continue
        if masks.rle_area(rle):
            shapes[number] = rle
        else:
            failed += 1
    pairs = _pairs(instances, drawn, shapes, outlines)
    merged = [_with_object(i, pairs.get(i.id)) for i in instances]
    spare = max((i.id for i in instances), default=0)
    taken = set(pairs.values())
    for number in sorted(set(shapes) - taken):
        spare += 1
        name, rle = outlines.objects[number][0], shapes[number]
        merged.append(
            Instance(
                id=spare,
                category=class_of(name, space),
                bbox=masks.rle_bbox(rle, height, width),
                area=float(masks.rle_area(rle)),
                rle=rle,
                extra=json.dumps({"name": name, "object": number}, sort_keys=True),
            )
        )
    return tuple(merged), failed


def _pairs(
    instances: Iterable[Instance], drawn: LabelMap, shapes: dict[int, str], outlines: Outlines
) -> dict[int, int]:
    """Return the outline that fits each object of pixels best, by their ids."""
    by_id = {i.id: i for i in instances}
    names = {i.id: json.loads(i.extra or "{}").get("name") for i in by_id.values()}
    best: dict[int, tuple[float, int]] = {}
    for number, rle in shapes.items():
        name = outlines.objects[number][0]
        if name not in names.values():
            continue
        inside = masks.rle_decode(rle, *drawn.shape) != 0
        common = np.bincount(drawn[inside])
        size = int(common.sum())
        for at in np.flatnonzero(common).tolist():
            if at and names[at] == name:
                shared, area = int(common[at]), by_id[at].area or 0.0
                if shared >= _SHARE * area:
                    fit = (shared / (size + area - shared), -number)
                    best[at] = max(best.get(at, fit), fit)
    return {at: -number for at, (_, number) in best.items()}


def _with_object(instance: Instance, number: int | None) -> Instance:
    if number is None:
        return instance
    extra = json.loads(instance.extra or "{}") | {"object": number}
    return replace(instance, extra=json.dumps(extra, sort_keys=True))
