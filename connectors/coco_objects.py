"""COCO's annotations as instances, and instances as annotations.

An instance keeps its annotation's own text in `extra`, under `coco`, with all keys and digits: the
polygons, keypoints, captions and whatever else a file holds. Written back, the text stays as it is
but for what the instance changed: category, id, box, area, crowd flag. Run lengths are computed
from polygons by pycocotools' rule; the text's own segmentation is what is written back.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NoReturn

from connectors.coco_categories import unpack_ids
from pipeline import masks
from pipeline.errors import BadAnnotation
from pipeline.record import Instance

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.record import Record

PART_OF: Final = "segmill_part_of"
"""The key of an annotation that names the id of the object which it is a part of."""

_MEND: Final = "correct the annotation or leave it out"
_MOST: Final = 1 << 53  # numbers in JSON are exact up to here in most readers


def wrap(key: str, text: str, **said: Any) -> str:
    """Return an `extra` that holds a JSON text as it is, and what else there is to say."""
    rest = "".join(f"{json.dumps(k)}: {json.dumps(v)}, " for k, v in said.items() if v is not None)
    return f'{{{rest}"{key}": {text}}}'


def unwrap(key: str, extra: str | None) -> tuple[str, dict[str, Any]] | None:
    """Return the JSON text in an `extra` and its object; None when there is none."""
    start = f'"{key}": '
    if not extra or start not in extra:
        return None
    text = extra[extra.index(start) + len(start) : -1]
    try:
        said = json.loads(text)
        if extra.startswith("{" + start) and isinstance(said, dict):
            return text, said
    except ValueError:  # put together by another program
        said = None
    whole = json.loads(extra).get(key)
    if not isinstance(whole, dict):
        return None
    return (text if said == whole else json.dumps(whole, ensure_ascii=False)), whole


@dataclass(frozen=True, slots=True)
class Place:
    """What an annotation must fit: its image, and the categories' ids (`pack_ids`)."""

    path: str
    image_id: int
    height: int
    width: int
    categories: str

    def read_all(
        self, texts: Sequence[str], others: Mapping[str, Sequence[str]]
    ) -> tuple[tuple[Instance, ...], dict[str, Any]]:
        """Return an image's instances, and what the files beside theirs say that fits none.

        Annotations of keypoints go to the instance of the same id, less what it says itself.

        Raises:
            BadAnnotation: see `read`.
        """
        parsed = [_parse(text, self.path) for text in texts]
        masks.rle_unpack_ahead([c for said in parsed if (c := _compressed(said)) is not None])
        instances = [self.read(text, said) for text, said in zip(texts, parsed, strict=True)]
        rest: dict[str, Any] = {}
        for kind, held in others.items():
            for text in held:
                said = _parse(text, self.path)
                if not (kind == "person_keypoints" and _attach(instances, texts, said)):
                    rest.setdefault(kind, []).append(said)
        return tuple(instances), rest

    def read(self, text: str, said: dict[str, Any]) -> Instance:
        """Return the instance of an annotation's text, which says `said`.

        Raises:
            BadAnnotation: a key is missing or of the wrong type, the category is none, polygons or
                run lengths are malformed or do not fit the image.
        """
        where = f"{self.path}, annotation {said.get('id')!r}"
        number, category = self._whole(said, "id", where), self._whole(said, "category_id", where)
        if said.get("image_id") != self.image_id:
            _bad(where, f"image_id {said.get('image_id')!r} where {self.image_id} was found")
        if category not in unpack_ids(self.categories):
            _bad(where, f"category_id {category} is not among the categories")
        crowd = said.get("iscrowd", 0)
        if crowd not in (0, 1):
            _bad(where, f"iscrowd is {crowd!r}, not 0 or 1")
        box, shape = _box(said.get("bbox"), where), said.get("segmentation")
        if box is None and not shape:
            _bad(where, "neither segmentation nor bbox")
        whole = said.get(PART_OF)
        return Instance(
            id=number,
            category=category,
            bbox=box,
            area=None if said.get("area") is None else _number(said["area"], "area", where),
            iscrowd=bool(crowd),
            rle=self._run_lengths(shape, where),
            score=_number(said["score"], "score", where) if _has_score(said) else None,
            extra=wrap("coco", text, part_of=whole if type(whole) is int else None),
        )

    def _whole(self, said: dict[str, Any], key: str, where: str) -> int:
        value = said.get(key)
        if type(value) is not int or abs(value) > _MOST:
            _bad(where, f"{key} is {str(value)[:40]!r}, not a whole number")
        return value

    def _run_lengths(self, shape: Any, where: str) -> str | None:
        if shape is None or shape == []:
            return None
        if isinstance(shape, list):
            for polygon in shape:
                if not isinstance(polygon, list) or not set(map(type, polygon)) <= {int, float}:
                    _bad(where, "segmentation is no list of polygons, flat lists of numbers")
            try:
                return masks.polygons_to_rle(shape, self.height, self.width, where)
            except OverflowError:
                _bad(where, "a polygon far outside the image")
        if not isinstance(shape, dict):
            _bad(where, "segmentation is neither polygons nor run lengths")
        size, counts = shape.get("size"), shape.get("counts")
        if size != [self.height, self.width]:
            _bad(where, f"run lengths of size {size}, of an image {[self.height, self.width]}")
        if isinstance(counts, list):
            return masks.rle_from_runs(counts, self.height, self.width, where)
        if not isinstance(counts, str) or not counts.isascii():
            _bad(where, "counts is neither a list of numbers nor COCO's compressed text")
        masks.rle_check(counts, self.height, self.width, where)
        return counts


def _parse(text: str, path: str) -> dict[str, Any]:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadAnnotation(path, f"an annotation is no JSON ({error})", _MEND) from None
    if not isinstance(said, dict):
        raise BadAnnotation(path, "an annotation that is no object", _MEND)
    return said


def _compressed(said: dict[str, Any]) -> str | None:
    """Return the run lengths of an annotation that has them as COCO's compressed text."""
    shape = said.get("segmentation")
    counts = shape.get("counts") if isinstance(shape, dict) else None
    return counts if isinstance(counts, str) and counts.isascii() else None


def _attach(instances: list[Instance], texts: Sequence[str], said: dict[str, Any]) -> bool:
    """Put the keypoints of an annotation to the instance of its id, if there is one."""
    for at, instance in enumerate(instances):
        if instance.id == said.get("id"):
            own = json.loads(texts[at])
            more = {key: value for key, value in said.items() if own.get(key, ...) != value}
            if own.keys() <= said.keys():  # else the annotation could not be put together again
                extra = wrap("coco", texts[at], part_of=instance.part_of, person_keypoints=more)
                instances[at] = replace(instance, extra=extra)
                return True
    return False


def _has_score(said: dict[str, Any]) -> bool:
    return said.get("score") is not None


def _bad(where: str, cause: str) -> NoReturn:
    raise BadAnnotation(where, cause, _MEND)


def _number(value: Any, key: str, where: str) -> float:
    if type(value) not in (int, float) or not abs(value) <= _MOST:  # nor NaN
        _bad(where, f"{key} is {str(value)[:40]}, not a number")
    return float(value)


def _box(value: Any, where: str) -> tuple[float, float, float, float] | None:
    if value is None or value == []:
        return None
    if not isinstance(value, list) or len(value) != 4:
        _bad(where, f"bbox is no list of x, y, width, height: {str(value)[:60]}")
    x, y, width, height = (_number(v, "a number of bbox", where) for v in value)
    return x, y, width, height


def own_annotation(instance: Instance, image_id: int | None) -> str | None:
    """Return the text that an instance of COCO's was read from, with what has changed since.

    None when it has none: the instance was added later.
    """
    found = unwrap("coco", instance.extra)
    if found is None or type(found[1].get("image_id")) is not int:
        return None
    text, said = found
    changed: dict[str, Any] = {}
    if image_id is not None and said["image_id"] != image_id:
        changed["image_id"] = image_id
    if said.get("category_id") != instance.category:
        changed["category_id"] = instance.category
    if said.get("id") != instance.id:
        changed["id"] = instance.id
    if bool(said.get("iscrowd", 0)) != instance.iscrowd:
        changed["iscrowd"] = int(instance.iscrowd)
    if said.get("area") != instance.area:
        changed["area"] = instance.area
    box = said.get("bbox") or None
    if box != (None if instance.bbox is None else [*instance.bbox]):
        changed["bbox"] = None if instance.bbox is None else [*instance.bbox]
    return json.dumps(said | changed, ensure_ascii=False) if changed else text


def new_annotation(instance: Instance, record: Record) -> str | None:
    """Return an annotation less its ids: `"category_id": 3, ...}`; None for an object of no place.

    Pixels are written as compressed run lengths, which keep holes. Area and box come from them
    where the instance has none.
    """
    rle, box, area = instance.rle, instance.bbox, instance.area
    shape: Any = []
    if rle:
        shape = {"size": [record.height, record.width], "counts": rle}
        box = box or masks.rle_bbox(rle, record.height, record.width, record.image_id)
        area = float(masks.rle_area(rle, record.image_id)) if area is None else area
    elif box is None:
        return None
    elif area is None:
        area = box[2] * box[3]
    said: dict[str, Any] = {
        "category_id": instance.category,
        "segmentation": shape,
        "area": area,
        "bbox": list(box),
        "iscrowd": int(instance.iscrowd),
    }
    if instance.score is not None:
        said["score"] = instance.score
    try:
        return json.dumps(said, allow_nan=False)[1:]
    except ValueError:
        cause = f"object {instance.id}: its box, area or score is no finite number"
        raise BadAnnotation(record.image_id, cause, _MEND) from None
