"""What `write` leaves of a record for `finish`: its JSON, with ids where it has its own.

An entry is lines of text: a header, the image, its annotations. An image or annotation that has no
id yet is a JSON object less its brace and its ids (`"category_id": 3, ...}`).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from connectors.base import Written
from connectors.coco_images import claim_of, image_of
from connectors.coco_layout import BESIDE, FOLDER, split_of
from connectors.coco_objects import new_annotation, own_annotation, unwrap
from connectors.image_files import SUFFIXES, not_expressed, put_image
from connectors.list_files import one_line
from pipeline.files import read_url
from pipeline.labels.derive import with_instances

if TYPE_CHECKING:
    from pipeline.label_space import LabelSpace
    from pipeline.record import Instance, Record
    from pipeline.trees.sinks import Sink

_NOT_HELD: Final = ("mask", "image_labels", "confidence", "depth")


def entry_of(sink: Sink, record: Record, space: LabelSpace, format: str) -> Written:
    """Write a record's image and return its entry."""
    name, own = one_line(record.image_id), record.dataset == format
    extra = record.own(format)
    found = unwrap("image", record.extra) if own else None
    kept, loss = _with_objects(record, space)
    tail = extra.get("file")
    if not isinstance(tail, str) or split_of(tail) != record.split:
        tail = FOLDER[record.split]
    file, cost = _put(sink, f"{tail}/{name}", record, extra.get("suffix"))
    loss |= cost
    image, image_id, claim = _image(kept, file[len(tail) + 1 :], found)
    head: dict[str, Any] = {
        "kind": "image_info" if kept.instances is None else "instances",
        "tail": tail,
        "name": file[len(tail) + 1 :],
        "image_id": image_id,
        "claim": claim,
    }
    objects = _objects(kept, head, loss, own=own)
    others = {kind: extra[kind] for kind in BESIDE if isinstance(extra.get(kind), list)}
    _keypoints(kept, others, own=own)
    if others:
        head["beside"] = {
            kind: [json.dumps(o, ensure_ascii=False) for o in held] for kind, held in others.items()
        }
    lines = [json.dumps(head), image, *objects]
    data = "\n".join(lines).encode("utf-8", "backslashreplace")
    return Written(name, record.split, data, {k: n for k, n in loss.items() if n})


def _with_objects(record: Record, space: LabelSpace) -> tuple[Record, dict[str, int]]:
    """Return the record with objects, those of its mask if it has no other, and what is lost."""
    kept = with_instances(record, space)
    loss = not_expressed(record, *_NOT_HELD)
    if kept is not record:
        loss.pop("mask", None)
        loss["objects_from_mask_regions"] = len(kept.instances or ())
    return kept, loss


def _put(sink: Sink, stem: str, record: Record, suffix: Any) -> tuple[str, dict[str, int]]:
    if not isinstance(suffix, str):
        return put_image(sink, stem, record, tuple(SUFFIXES))
    data = record.image.bytes
    if data is None:
        data = read_url(record.image.path or record.image_id)
    sink.write(stem + suffix, data)
    return stem + suffix, {}


def _image(
    record: Record, file_name: str, found: tuple[str, dict[str, Any]] | None
) -> tuple[str, int | None, int | None]:
    """Return the image's JSON, its id where that is in it, and the id that it claims."""
    if found is None or type(found[1].get("id")) is not int:
        image = image_of(record, file_name)
        claim = claim_of(image, record.image_id)
        image.pop("id", None)
        return json.dumps(image, ensure_ascii=False)[1:], None, claim
    said = {"file_name": file_name, "height": record.height, "width": record.width}
    text, own = found
    if any(own.get(key) != value for key, value in said.items()):
        text = json.dumps(own | said, ensure_ascii=False)
    return text, own["id"], own["id"]


def _objects(record: Record, head: dict[str, Any], loss: dict[str, int], *, own: bool) -> list[str]:
    """Return the annotations; note in the header their ids and which are parts of which."""
    texts: list[str] = []
    ids: list[int | None] = []
    place: dict[int, int] = {}
    parts: dict[int, int] = {}
    for instance in record.instances or ():
        text = own_annotation(instance, head["image_id"]) if own else None
        number = None if text is None else instance.id
        text = new_annotation(instance, record) if text is None else text
        if text is None:
            loss["objects_without_box"] = loss.get("objects_without_box", 0) + 1
            continue
        place.setdefault(instance.id, len(texts))
        if instance.part_of is not None:
            parts[len(texts)] = instance.part_of
        ids.append(number)
        texts.append(text)
        _count_loss(instance, loss, own=number is not None)
    head["ids"] = ids
    known = {at: place[whole] for at, whole in parts.items() if whole in place}
    if known:
        head["parts"] = known
    if len(known) < len(parts):
        loss["parts_of_objects"] = len(parts) - len(known)
    return texts


def _count_loss(instance: Instance, loss: dict[str, int], *, own: bool) -> None:
    if not own and instance.extra and set(json.loads(instance.extra)) - {"part_of"}:
        loss["instance_attributes"] = loss.get("instance_attributes", 0) + 1


def _keypoints(record: Record, others: dict[str, Any], *, own: bool) -> None:
    """Add the annotations of keypoints, which are those of instances and a little more."""
    for instance in record.instances or ():
        if own and instance.extra and '"person_keypoints": ' in instance.extra:
            more = json.loads(instance.extra).get("person_keypoints")
            text = own_annotation(instance, None)
            if isinstance(more, dict) and text:
                said = json.loads(text) | more
                if record.relabelled:  # their file keeps its own categories
                    said["category_id"] = json.loads(instance.extra)["coco"].get("category_id")
                others.setdefault("person_keypoints", []).append(said)
