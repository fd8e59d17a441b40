"""Records of other formats as images of the 2021 release: masks by level, JSON, instance masks."""

from __future__ import annotations

import json
import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from connectors.ade20k_layers import Patch, layer_png, numbering, spread
from connectors.ade20k_objects import hidden_of, instance_png
from pipeline import masks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from pipeline.label_space import LabelSpace
    from pipeline.record import Instance, Record


_NOTHING: Final = (np.zeros((0, 0), np.bool_), (0, 0))


@dataclass(frozen=True, slots=True)
class _Thing:
    """An object to write: its number in the annotation, level, whole, and what shows of it."""

    id: int
    instance: Instance
    level: int
    part_of: int | None
    pixels: NDArray[np.bool_]  # all of it, hidden or not
    seen: NDArray[np.bool_]
    corner: tuple[int, int]


def new_files(
    record: Record, space: LabelSpace, folder: str
) -> tuple[Iterator[tuple[str, bytes]], dict[str, int]]:
    """Return the label files of a record with mask and objects, and what they cannot express.

    The files are (what follows the image's stem in their name, bytes). Where objects overlap, the
    smaller lies on top, as everywhere; what it covers is hidden (128) in the other's mask.
    """
    instances = record.instances or ()
    ids, renumbered = _ids(instances)
    things = _things(record, ids)
    loss = {
        "instance_ids": renumbered,
        "instance_scores": sum(i.score is not None for i in instances),
        "crowds": sum(i.iscrowd for i in instances),
        "instance_masks": sum(i.rle is None for i in instances),
    }
    return _files(record, space, folder, things), {key: n for key, n in loss.items() if n}


def _ids(instances: Sequence[Instance]) -> tuple[list[int], int]:
    """Return the objects' ids, unique and from 0, and how many were changed for that."""
    ids = [instance.id for instance in instances]
    if len(set(ids)) == len(ids) and all(0 <= i < 1 << 53 for i in ids):
        return ids, 0
    return list(range(len(ids))), sum(i != n for n, i in enumerate(ids))


def _things(record: Record, ids: list[int]) -> list[_Thing]:
    """Cut the objects out, wholes under the smaller ones that cover them; in their order."""
    shape, instances = (record.height, record.width), record.instances or ()
    renamed = dict(zip((i.id for i in instances), ids, strict=True))
    cut = []
    for number, instance in zip(ids, instances, strict=True):
        path = f"{record.image_id}: object {instance.id}"
        pixels, corner = masks.rle_crop(instance.rle, *shape, path) if instance.rle else _NOTHING
        owner = instance.part_of
        part_of = None if owner is None else renamed.get(owner, -1)
        level = 0 if owner is None else _level(instance)
        cut.append(_Thing(number, instance, level, part_of, pixels, pixels, corner))
    order = np.zeros(shape, np.uint32)
    wholes = [(-np.count_nonzero(t.pixels), at) for at, t in enumerate(cut) if not t.level]
    for _, at in sorted(wholes):
        order[_box(cut[at])][cut[at].pixels] = at + 1
    return [
        _Thing(t.id, t.instance, 0, None, t.pixels, order[_box(t)] == at + 1, t.corner)
        if t.level == 0
        else t
        for at, t in enumerate(cut)
    ]


def _level(instance: Instance) -> int:
    level = json.loads(instance.extra or "{}").get("level", 1)
    return min(max(level, 1), 99) if isinstance(level, int) else 1


def _box(thing: _Thing) -> tuple[slice, slice]:
    return Patch(0, 0, 0, thing.pixels, thing.corner).box


def _files(
    record: Record, space: LabelSpace, folder: str, things: list[_Thing]
) -> Iterator[tuple[str, bytes]]:
    shape, codes = (record.height, record.width), numbering(space).to_number
    stem = posixpath.basename(record.image_id)
    assert record.mask is not None
    for level in range(max((t.level for t in things), default=0) + 1):
        here = [t for t in things if t.level == level and t.seen.any()]
        numbers, blue = np.zeros(shape, np.uint16), np.zeros(shape, np.uint8)
        blues = spread(len(here))
        for rank, thing in enumerate(here, 1):
            numbers[_box(thing)][thing.seen] = codes[thing.instance.category]
            blue[_box(thing)][thing.seen] = blues[rank]
        if level == 0:
            numbers = np.take(codes, masks.decode(record.mask.bytes or b"", record.image_id))
        yield f"_parts_{level}.png" if level else "_seg.png", layer_png(numbers, blue)
    items = []
    for at, thing in enumerate(things):
        name = f"{stem}/instance_{thing.id:03d}_{stem}.png" if thing.instance.rle else ""
        items.append(_item(thing, things, at, name, space))
        if name:
            seen, hidden = _run_lengths(thing, shape, record.image_id)
            yield name.removeprefix(stem), instance_png(seen, hidden, shape, record.image_id)
    annotation = {
        "filename": f"{stem}.jpg",
        "folder": folder,
        "imsize": [*shape, 3],
        "source": {"folder": "", "filename": "", "origin": record.dataset},
        "scene": [],
        "object": items,
    }
    yield ".json", json.dumps({"annotation": annotation}, ensure_ascii=False).encode()


def _run_lengths(thing: _Thing, shape: tuple[int, int], path: str) -> tuple[str, str | None]:
    """Return an object's visible run lengths, and those of what was or is now hidden."""
    seen = masks.rle_encode_at(thing.seen, thing.corner, shape)
    covered = thing.pixels & ~thing.seen
    known = hidden_of(thing.instance, path)
    if known is None:
        hidden = masks.rle_encode_at(covered, thing.corner, shape) if covered.any() else None
        return seen, hidden
    everything = masks.rle_decode(known, *shape, path) != 0
    everything[_box(thing)] |= covered
    return seen, masks.rle_encode(everything)


def _item(
    thing: _Thing, things: list[_Thing], at: int, mask: str, space: LabelSpace
) -> dict[str, Any]:
    """Return the JSON of one object, with the keys of the release."""
    name = space.by_id[thing.instance.category].name
    owned = [t.id for t in things if t.part_of == thing.id]
    covered = np.count_nonzero(thing.pixels) > np.count_nonzero(thing.seen)
    return {
        "id": thing.id,
        "name": name,
        "name_ndx": int(numbering(space).to_number[thing.instance.category]),
        "hypernym": [],
        "raw_name": name,
        "attributes": [],
        "depth_ordering_rank": at + 1,
        "occluded": "yes" if covered else "no",
        "crop": "0",
        "parts": {
            "hasparts": owned,
            "ispartof": [] if thing.part_of is None else thing.part_of,
            "part_level": thing.level,
        },
        "instance_mask": mask,
        "polygon": _polygon(thing),
        "saved_date": "",
    }


def _polygon(thing: _Thing) -> dict[str, list[float]]:
    """Return the outline of an object's largest region; that of its box where it has no mask."""
    import cv2

    if thing.pixels.any():
        found, _ = cv2.findContours(
            thing.pixels.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
        )
        points = max(found, key=cv2.contourArea).reshape(-1, 2) + thing.corner[::-1]
        return {"x": points[:, 0].tolist(), "y": points[:, 1].tolist()}
    if thing.instance.bbox is None:
        return {"x": [], "y": []}
    x, y, w, h = thing.instance.bbox
    return {"x": [x, x + w, x + w, x], "y": [y, y, y + h, y + h]}
