"""The annotations of COCO-Stuff's JSON: one for each class of an image, in compressed run lengths.

Official files have ids 92 to 182, and 183 `other` for all things as one; area and box are those of
the pixels.
"""

from __future__ import annotations

import json
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from connectors.coco_categories import categories_of, pack_ids
from connectors.coco_images import ImageIds, claim_of, said_of
from connectors.coco_json import Stream, write_json
from connectors.coco_layout import FOLDER
from connectors.coco_objects import Place
from connectors.list_files import OnePlaceEach
from pipeline import masks
from pipeline.labels.regions import Regions
from pipeline.loss import Loss
from pipeline.record import SPLITS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from connectors.base import Written
    from pipeline.label_space import LabelMap, LabelSpace
    from pipeline.record import Record
    from pipeline.trees.sinks import Sink

_STUFF: Final = range(92, 183)
_OTHER: Final = 183
_FROM_PIXELS: Final = frozenset({"segmentation", "area", "bbox", "image_id"})


def mask_of(texts: Sequence[str], space: LabelSpace, size: tuple[int, int], path: str) -> LabelMap:
    """Return the class ids [H, W] of an image's annotations; smaller ones lie on top.

    Raises:
        BadAnnotation: one is malformed, of another size, or of a category that the space has not.
    """
    place = Place(path, _image_of(texts), size[0], size[1], pack_ids(space))
    return masks.paint(place.read_all(texts, {})[0], *size, space, path=path)


def extra_of(texts: Sequence[str]) -> dict[str, Any]:
    """Return what a mask cannot hold of an image's annotations."""
    kept = [json.loads(text) for text in without_pixels(texts)]
    return {"annotations": kept} if kept else {}


def without_pixels(texts: Sequence[str]) -> list[str]:
    """Return annotations without what the mask says again."""
    kept = ({k: v for k, v in json.loads(t).items() if k not in _FROM_PIXELS} for t in texts)
    return [json.dumps(said) for said in kept]


def _image_of(texts: Sequence[str]) -> int:
    return int(json.loads(texts[0])["image_id"]) if texts else 0


def annotations_of(
    record: Record, space: LabelSpace, said: Sequence[Mapping[str, Any]], *, only_stuff: bool
) -> tuple[list[str], list[int | None], dict[str, int]]:
    """Return a record's annotations without their ids, the ids they had (None: none), and the loss.

    `said` is what an earlier JSON had of them. `only_stuff`: all classes that are no stuff are
    183, as in the official files.
    """
    if record.mask is None or record.mask.bytes is None:
        return [], [], {}
    regions = Regions.of(_numbers(space, only_stuff)[masks.decode(record.mask.bytes)])
    first: dict[str, Mapping[str, Any]] = {}
    for one in said:
        first.setdefault(str(one.get("category_id")), one)
    texts, found = list[str](), 0
    claims: list[int | None] = []
    for place, number in enumerate(regions.numbers.tolist()):
        if not number:
            continue
        old = dict(first.pop(str(number - 1), {}))
        found += bool(old)
        claims.append(claim_of(old, ""))
        old.pop("id", None)
        shape = {"counts": regions.rle(place), "size": [regions.height, regions.width]}
        new = {
            "segmentation": shape,
            "area": float(regions.areas[place]),
            "iscrowd": 0,
            "bbox": list(regions.bbox(place)),
            "category_id": number - 1,
        }
        texts.append(json.dumps(new | old, ensure_ascii=False))
    lost = len(said) - found
    return texts, claims, {"annotations": lost} if lost else {}


def _numbers(space: LabelSpace, only_stuff: bool) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Return a table from ids to category + 1, 0 for no annotation."""
    table = np.zeros(65536, dtype=np.uint32)
    for number in space.ids:
        stuff = not only_stuff or number in _STUFF
        table[number] = (number if stuff else _OTHER) + 1
    table[space.ignore_index] = 0
    return table


def write_files(
    sink: Sink,
    written: Iterable[Written],
    space: LabelSpace,
    facts: Mapping[str, Any],
    *,
    only_stuff: bool,
) -> Loss:
    """Write a JSON for each split; `facts` has what the sources say of themselves."""
    places, loss = OnePlaceEach("coco-stuff"), Loss()
    images: dict[str, ImageIds] = {}
    objects: dict[str, ImageIds] = {}
    empty = True
    for w in written:
        places.check(f"{w.split}/{w.image_id}")
        empty = False
        if w.entry:
            claim, claims = json.loads(w.entry.partition(b"\n")[0])
            images.setdefault(w.split, ImageIds()).add(claim)
            for one in claims:
                objects.setdefault(w.split, ImageIds()).add(one)
    for split in ["train"] if empty else [s for s in SPLITS if s in images]:
        said = said_of(facts, "coco-stuff", split)
        numbers = images.get(split, ImageIds()), objects.get(split, ImageIds())
        wanted = (*_STUFF, _OTHER) if only_stuff else None
        parts: tuple[tuple[str, Any], ...] = (
            ("info", said.get("info", {})),
            ("images", Stream(_images(written, split, numbers[0]))),
            ("licenses", said.get("licenses", [])),
            ("categories", categories_of(space, said.get("categories"), (), wanted)),
            ("annotations", Stream(_annotations(written, split, *numbers))),
        )
        known = {key for key, _ in parts}
        more = ((key, value) for key, value in said.items() if key not in known)
        write_json(sink, f"annotations/stuff_{FOLDER[split]}.json", chain(parts, more))
        for name, ids in zip(("image_ids", "annotation_ids"), numbers, strict=True):
            if ids.changed():
                loss.attributes[name] = loss.attributes.get(name, 0) + ids.changed()
    return loss


def _entries(
    written: Iterable[Written], split: str, ids: ImageIds
) -> Iterator[tuple[list[bytes], list[int | None], int]]:
    """Yield each entry's lines, what its annotations claim, and the image's id."""
    number = ids.assign()
    for w in written:
        if w.split == split and w.entry:
            lines = w.entry.split(b"\n")
            claim, claims = json.loads(lines[0])
            yield lines, claims, number(claim)


def _images(written: Iterable[Written], split: str, ids: ImageIds) -> Iterator[bytes]:
    for lines, _, number in _entries(written, split, ids):
        yield b'{"id": %d, ' % number + lines[1][1:]


def _annotations(
    written: Iterable[Written], split: str, images: ImageIds, objects: ImageIds
) -> Iterator[bytes]:
    number_of = objects.assign()
    for lines, claims, image in _entries(written, split, images):
        for text, claim in zip(filter(None, lines[2:]), claims, strict=True):
            yield b'{"id": %d, "image_id": %d, ' % (number_of(claim), image) + text[1:]
