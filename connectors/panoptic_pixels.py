"""Pixels of COCO's panoptic form: from a PNG of segment ids to mask and objects, and back.

A PNG is 8-bit RGB, segment id = R + 256 G + 65536 B, 0 is void. `segments_info` says of each id its
category, and whether it is a crowd. As in panopticapi, an id in only one of the two, and a category
that no class has, are errors; a stored area or box that the pixels do not have is none.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline import masks
from pipeline.errors import BadAnnotation, CorruptMask
from pipeline.labels import png
from pipeline.labels.regions import Regions
from pipeline.labels.segments import owners, owners_in_mask
from pipeline.record import Instance

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from numpy.typing import NDArray

    from pipeline.label_space import LabelClass, LabelMap, LabelSpace
    from pipeline.record import Record

    SegmentIds = NDArray[np.uint32]
    Info = dict[str, Any]

TOP_ID: Final = (1 << 24) - 1
_MEND: Final = "correct the annotation or the PNG, or leave the image out"
_NAMED: Final = 8
_COLUMNS: Final = ("id", "category_id", "bbox", "area", "iscrowd")
_SHADES: Final = 4096  # tries at a colour near the class's; then any free one


def read_ids(data: bytes, path: str) -> SegmentIds:
    """Return the segment ids of a PNG: [H, W] uint32, 0..2**24 - 1.

    Raises:
        CorruptMask: it is no whole PNG, or not 8-bit RGB.
    """
    import cv2

    file = png.parse(data, path)
    if file.colour != png.RGB or file.depth != 8:
        raise CorruptMask(
            path,
            f"a PNG of mode {file.mode} holds no segment ids",
            "write id = R + 256 G + 65536 B as 8-bit RGB",
        )
    pixels = cv2.cvtColor(png.colours(file, path), cv2.COLOR_RGB2RGBA)
    ids: SegmentIds = pixels.view("<u4")[:, :, 0] & np.uint32(TOP_ID)
    return ids


def write_ids(ids: SegmentIds) -> bytes:
    """Return the PNG of segment ids [H, W]."""
    little = np.ascontiguousarray(ids, dtype="<u4")
    return png.write_colours(little.view(np.uint8).reshape(*ids.shape, 4)[:, :, :3])


@dataclass(frozen=True, slots=True)
class Segments:
    """What the pixels and `segments_info` of one image say.

    `mask` is [H, W] class ids. `things` are the segments of thing classes. `infos` has all segments
    in the order of the file: the id of a thing, and of stuff what the file says, with run lengths
    ("rle") where a class has several segments, as the mask does not tell these apart.
    """

    mask: LabelMap
    things: tuple[Instance, ...]
    infos: list[int | Info]


def read_segments(
    ids: SegmentIds, infos: Any, space: LabelSpace, things: Collection[int], path: str
) -> Segments:
    """Return the class mask and the objects of segment ids [H, W].

    `things` are the classes whose segments are objects.

    Raises:
        BadAnnotation: `segments_info` is malformed, names a category that the space has not, or
            other ids than the pixels.
    """
    known = _by_id(infos, space, path)
    regions = Regions.of(ids)
    places = {int(n): place for place, n in enumerate(regions.numbers)}
    _compare(known.keys(), places.keys() - {0}, path)
    categories = np.full(len(places), space.ignore_index, dtype=space.dtype)
    for number, info in known.items():
        categories[places[number]] = info["category_id"]
    times = Counter(info["category_id"] for info in known.values())
    found: list[Instance] = []
    kept: list[int | Info] = []
    for number, info in known.items():
        place = places[number]
        if info["category_id"] in things:
            found.append(_instance(info, regions, place))
            kept.append(number)
        elif times[info["category_id"]] > 1:
            kept.append(info | {"rle": regions.rle(place)})
        else:
            kept.append(info)
    return Segments(regions.paint(categories), tuple(found), kept)


def _instance(info: Info, regions: Regions, place: int) -> Instance:
    box, area = info.get("bbox"), info.get("area")
    more = {key: value for key, value in info.items() if key not in _COLUMNS}
    return Instance(
        id=info["id"],
        category=info["category_id"],
        bbox=regions.bbox(place) if box is None else (box[0], box[1], box[2], box[3]),
        area=float(regions.areas[place] if area is None else area),
        iscrowd=bool(info.get("iscrowd", 0)),
        rle=regions.rle(place),
        extra=json.dumps({"segment": more}, sort_keys=True) if more else None,
    )


def _by_id(infos: Any, space: LabelSpace, path: str) -> dict[int, Info]:
    """Check `segments_info`, and return the segments by id."""
    if not isinstance(infos, list):
        raise BadAnnotation(path, "segments_info is no list", _MEND)
    known: dict[int, Info] = {}
    for info in infos:
        if not isinstance(info, dict):
            raise BadAnnotation(path, f"a segment is no object: {str(info)[:80]}", _MEND)
        number, category = info.get("id"), info.get("category_id")
        if type(number) is not int or not 0 < number <= TOP_ID:
            cause = f"segment id {str(number)[:40]!r} is no whole number in 1..{TOP_ID}"
            raise BadAnnotation(path, cause, _MEND)
        if number in known:
            raise BadAnnotation(path, f"segment {number} is listed twice", _MEND)
        if (
            type(category) is not int
            or category not in space.by_id
            or category == space.ignore_index
        ):
            cause = f"segment {number} has category {str(category)[:40]!r}, which no class has"
            raise BadAnnotation(path, cause, _MEND)
        _check_numbers(info, path)
        known[number] = info
    return known


def _check_numbers(info: Info, path: str) -> None:
    """Make sure that box, area and crowd flag are numbers, where they are given."""
    box = info.get("bbox")
    fits = box is None or (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)))
    if not fits or not (info.get("area") is None or _is_number(info["area"])):
        cause = f"bbox or area of segment {info['id']} are no numbers"
        raise BadAnnotation(path, cause, _MEND)
    if info.get("iscrowd", 0) not in (0, 1):
        raise BadAnnotation(path, f"iscrowd of segment {info['id']} is not 0 or 1", _MEND)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 1 << 53  # NaN is not


def _compare(listed: Collection[int], drawn: Collection[int], path: str) -> None:
    both = set(listed) & set(drawn)
    for numbers, cause in (
        (set(drawn) - both, "in the PNG but not in segments_info"),
        (set(listed) - both, "in segments_info but not in the PNG"),
    ):
        if numbers:
            named = ", ".join(map(str, sorted(numbers)[:_NAMED])) + ", ..." * (
                len(numbers) > _NAMED
            )
            raise BadAnnotation(path, f"segments {named} are {cause}", _MEND)


# Writing


def is_thing(c: LabelClass, used: Collection[int]) -> bool:
    """Tell whether a class's segments are objects: where the space doesn't say, if objects use it.

    `used` are the classes of objects.
    """
    return c.id in used if c.isthing is None else c.isthing


def same_segments(
    record: Record, infos: Sequence[int | Info], space: LabelSpace
) -> tuple[SegmentIds, list[Info]]:
    """Return a panoptic record's own segment ids [H, W] and their `segments_info`.

    Raises:
        ValueError: the record's mask and objects are not those of its segments any more.
    """
    assert record.mask is not None
    mask = masks.decode(record.mask.bytes or b"", record.image_id)
    things = {i.id: i for i in record.instances or ()}
    stuff = [info for info in infos if isinstance(info, dict)]
    if {n for n in infos if isinstance(n, int)} != set(things):
        raise ValueError("other objects than segments")
    parts = [_piece(info) for info in stuff if "rle" in info]
    drawn = [*(record.instances or ()), *parts]
    numbers = np.array([0, *(i.id for i in drawn)], dtype=np.uint32)
    owner = owners(drawn, mask.shape, record.image_id)
    classes = np.zeros(65536, dtype=np.uint32)
    for info in stuff:
        if "rle" not in info:
            classes[info["category_id"]] = info["id"]
    ids = np.where(owner > 0, numbers[owner], classes[mask])
    regions = Regions.of(ids)
    category = {i.id: i.category for i in drawn} | {i["id"]: i["category_id"] for i in stuff}
    if set(regions.numbers.tolist()) - {0} != category.keys():
        raise ValueError("other pixels than segments")
    shown = [category.get(int(n), space.ignore_index) for n in regions.numbers]
    if not np.array_equal(regions.paint(np.array(shown, dtype=mask.dtype)), mask):
        raise ValueError("other classes than segments")
    return ids, [_info_of(things[n]) if isinstance(n, int) else _stored(n) for n in infos]


def _piece(info: Info) -> Instance:
    return Instance(info["id"], info["category_id"], None, None, rle=info["rle"])


def _stored(info: Info) -> Info:
    return {key: value for key, value in info.items() if key != "rle"}


def _info_of(thing: Instance) -> Info:
    """Return a thing's entry of `segments_info` as it was read."""
    more = json.loads(thing.extra).get("segment", {}) if thing.extra else {}
    return more | {
        "id": thing.id,
        "category_id": thing.category,
        "iscrowd": int(thing.iscrowd),
        "bbox": [_whole(v) for v in thing.bbox or (0, 0, 0, 0)],
        "area": _whole(thing.area or 0),
    }


def _whole(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value


@dataclass(slots=True)
class Drawn:
    """Segments made for a record of another format: ids [H, W], their infos, what was lost."""

    ids: SegmentIds
    infos: list[Info]
    loss: dict[str, int] = field(default_factory=dict)
    used: tuple[int, ...] = ()  # classes of the objects

    def count(self, name: str, number: int) -> None:
        """Book a loss."""
        if number:
            self.loss[name] = self.loss.get(name, 0) + number


def new_segments(record: Record, space: LabelSpace) -> Drawn:
    """Return the segments of a record that has a mask, and perhaps objects.

    Where objects overlap, smaller ones lie on top. The mask decides: an object keeps the pixels
    that the mask gives its class, or void. Pixels of a stuff class that no object has are one
    segment; so are those of a thing class, marked as a crowd. Every class but the ignore index
    counts, void ones included. Ids are colours near the class's own.

    Raises:
        InputError: mask or run lengths are damaged, or there are more objects than 65,535.
    """
    assert record.mask is not None
    mask = masks.decode(record.mask.bytes or b"", record.image_id)
    whole = [i for i in record.instances or () if i.part_of is None]
    used = {i.category for i in whole}
    objects = [i for i in whole if i.rle and is_thing(space.by_id[i.category], used)]
    real = np.zeros(65536, dtype=np.bool_)
    real[list(space.train_ids)] = True
    owner = owners_in_mask(objects, mask, real, record.image_id)
    # Numbers: 0 void, 1.. objects, then one for each class.
    rest = np.zeros(65536, dtype=np.uint32)
    others = [c for c in space.classes if c.id != space.ignore_index]
    rest[[c.id for c in others]] = np.arange(len(others)) + len(objects) + 1
    regions = Regions.of(np.where(owner > 0, owner, rest[mask]))
    made = [_new_info(int(n), objects, others, used) for n in regions.numbers if n]
    offset = len(regions.numbers) - len(made)
    _number(made, space, used)
    ids = np.zeros(len(regions.numbers), dtype=np.uint32)
    for place, info in enumerate(made, offset):
        ids[place] = info["id"]
        info["bbox"] = [int(v) for v in regions.bbox(place)]
        info["area"] = int(regions.areas[place])
    drawn = Drawn(regions.paint(ids), made, used=tuple(sorted(used)))
    _book(drawn, record, objects, whole, space, used)
    kept = {int(n) for n in regions.numbers}
    drawn.count("instances_covered", sum(n not in kept for n in range(1, len(objects) + 1)))
    for place, number in enumerate(regions.numbers.tolist()):
        if 0 < number <= len(objects):
            rle = objects[number - 1].rle or ""
            cut = masks.rle_area(rle, record.image_id) > regions.areas[place]
            drawn.count("instances_cut", int(cut))
        elif number:
            drawn.count("things_not_separated", made[place - offset]["iscrowd"])
    return drawn


def _new_info(
    number: int, objects: Sequence[Instance], others: Sequence[LabelClass], used: Collection[int]
) -> Info:
    if number <= len(objects):
        one = objects[number - 1]
        return {"id": 0, "category_id": one.category, "iscrowd": int(one.iscrowd)}
    c = others[number - len(objects) - 1]
    return {"id": 0, "category_id": c.id, "iscrowd": int(is_thing(c, used))}


def _number(infos: Iterable[Info], space: LabelSpace, used: Collection[int]) -> None:
    """Give each segment an id whose colour is near its class's; stuff chooses first."""
    taken = {0}
    shades: dict[int, Iterable[int]] = {}
    for info in sorted(infos, key=lambda i: is_thing(space.by_id[i["category_id"]], used)):
        c = space.by_id[info["category_id"]]
        series = shades.setdefault(c.id, iter(_shades(c.colour)))
        info["id"] = next(iter(n for n in series if n not in taken))
        taken.add(info["id"])


def _shades(colour: tuple[int, int, int]) -> Iterable[int]:
    """Yield ids: the colour's own, some near it, then all."""
    for n in range(_SHADES):
        # Steps and spans without a common divisor walk through the whole cube around the colour.
        steps = (0, 0, 0) if n == 0 else (n * 37 % 61 - 30, n * 23 % 59 - 29, n * 31 % 53 - 26)
        red, green, blue = (min(255, max(0, v + s)) for v, s in zip(colour, steps, strict=True))
        yield red | green << 8 | blue << 16
    yield from count(1)


def _book(
    drawn: Drawn,
    record: Record,
    objects: Sequence[Instance],
    whole: Sequence[Instance],
    space: LabelSpace,
    used: Collection[int],
) -> None:
    drawn.count("parts", len(record.instances or ()) - len(whole))
    drawn.count("instances_without_masks", sum(not i.rle for i in whole))
    drawn.count(
        "instances_of_stuff",
        sum(bool(i.rle) and not is_thing(space.by_id[i.category], used) for i in whole),
    )
    drawn.count("instance_scores", sum(i.score is not None for i in objects))
