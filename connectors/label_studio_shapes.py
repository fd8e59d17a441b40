"""Label Studio's results as layers and objects, and objects as results."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from connectors import label_studio_rle
from connectors.label_studio_tasks import label_of
from connectors.tool_labels import id_of, is_object, name_of
from connectors.tool_shapes import Layer, own_of, refuse
from pipeline import masks
from pipeline.errors import SizeMismatch
from pipeline.record import Instance

if TYPE_CHECKING:
    from connectors.tool_shapes import Shapes
    from pipeline.label_space import LabelSpace
    from pipeline.record import Record

KEY: Final = "label-studio"
BRUSH, POLYGON, BOX = "brush", "polygon", "box"
"""The names of the tags in the configuration that `export` writes."""

_FRAME: Final = ("id", "from_name", "to_name", "original_width", "original_height",
                 "image_rotation")  # fmt: skip


def layers_of(
    results: list[Any], size: tuple[int, int], space: LabelSpace, where: str
) -> tuple[list[Layer], list[Any]]:
    """Return the shapes of an annotation, of an image [H, W]; and the results of other kinds.

    Raises:
        InputError: a shape is malformed, of another size, or has no class.
    """
    layers, others = list[Layer](), list[Any]()
    count = 0
    for result in results:
        said = label_of(result)
        if said is None:
            others.append(result)
            continue
        labels = said[1]
        if len(labels) != 1 or not isinstance(labels[0], str):
            raise refuse(where, f"a shape with {len(labels)} labels, not one text: {labels!r:.60}")
        category = id_of(space, labels[0], where)
        place = f"{where}, a shape of {labels[0][:40]!r}"
        _check_size(result, size, place)
        rle, box = _pixels(result["value"], size, place)
        instance = None
        if is_object(space, category):
            count += 1
            extra = json.dumps({KEY: [_kept(result)]})
            area = box[2] * box[3] if rle is None else float(masks.rle_area(rle))
            instance = Instance(count, category, box, area, rle=rle, extra=extra)
        layers.append(Layer(category, rle, instance))
    return layers, others


def _kept(result: dict[str, Any]) -> dict[str, Any]:
    """Return what of a result the run lengths do not say."""
    value = {k: v for k, v in result["value"].items() if k not in ("rle", "format")}
    return {k: v for k, v in result.items() if k not in _FRAME} | {"value": value}


def _check_size(result: dict[str, Any], size: tuple[int, int], where: str) -> None:
    said = result.get("original_height"), result.get("original_width")
    if said != size:
        raise SizeMismatch(
            where,
            f"labelled on {said[1]}x{said[0]} pixels, the image has {size[1]}x{size[0]}",
            "put the image that was labelled back",
        )
    if result.get("image_rotation") not in (None, 0):
        raise refuse(where, f"labelled on an image turned by {result['image_rotation']!r} degrees")


def _pixels(
    value: dict[str, Any], size: tuple[int, int], where: str
) -> tuple[str | None, tuple[float, float, float, float]]:
    if "rle" in value:
        rle = masks.rle_encode(label_studio_rle.decode(value["rle"], size, where))
    elif "points" in value:
        points = _points(value["points"], size, where)
        across, down = points[::2], points[1::2]
        if max(across) <= 0 or max(down) <= 0 or min(across) >= size[1] or min(down) >= size[0]:
            raise refuse(where, "a polygon outside the image")
        rle = masks.polygons_to_rle([points], *size, where)
    else:
        x, y, w, h = (_number(value.get(key), where) / 100 for key in ("x", "y", "width", "height"))
        if w < 0 or h < 0:
            raise refuse(where, f"a box of {w:g}x{h:g} of the image")
        return None, (x * size[1], y * size[0], w * size[1], h * size[0])
    return rle, masks.rle_bbox(rle, *size)


def _points(said: Any, size: tuple[int, int], where: str) -> list[float]:
    """Return a polygon, given in percent, in pixels: x, y, x, y, ..."""
    good = isinstance(said, list) and all(isinstance(p, list) and len(p) == 2 for p in said)
    if not good or len(said) < 3:
        raise refuse(where, "a polygon that is no list of 3 points [x, y] or more")
    return [
        _number(value, where) / 100 * side
        for point in said
        for value, side in zip(point, size[::-1], strict=True)
    ]


def _number(value: Any, where: str) -> float:
    if type(value) not in (int, float) or not abs(value) < 1e9:  # nor NaN
        raise refuse(where, f"{str(value)[:40]!r} where a number is expected")
    return float(value)


def own_layer(instance: Instance) -> int | None:
    """Return 0 for an object of Label Studio's: they lie in the list's order."""
    return 0 if own_of(instance, KEY) else None


def results_of(shapes: Shapes, record: Record, space: LabelSpace) -> list[dict[str, Any]]:
    """Return a record's shapes as results, the nearest last; count objects of no place."""
    results: list[dict[str, Any]] = []
    scored = record.provenance.kind != "truth"
    for instance, _ in sorted(shapes.objects, key=lambda o: o[1]):
        made = _result(instance, name_of(space, instance.category), record)
        if made is None:
            shapes.loss["objects_of_no_place"] = shapes.loss.get("objects_of_no_place", 0) + 1
            continue
        if scored and instance.score is not None:
            made["score"] = instance.score
        results.append(made)
        own = own_of(instance, KEY)
        if not own and instance.extra and set(json.loads(instance.extra)) - {"part_of"}:
            shapes.loss["instance_attributes"] = shapes.loss.get("instance_attributes", 0) + 1
    results += [_brush({}, name_of(space, r.category), r.rle, record) for r in shapes.regions]
    return [_framed(result, number, record) for number, result in enumerate(results, 1)]


def _result(instance: Instance, label: str, record: Record) -> dict[str, Any] | None:
    own = own_of(instance, KEY)
    if own and isinstance(own[0], dict) and isinstance(own[0].get("value"), dict):
        kept = own[0]
        kind = (label_of(kept) or ("brushlabels", []))[0]
        if "points" in kept["value"] or "x" in kept["value"]:
            return kept | {"value": kept["value"] | {kind: [label]}}
        if instance.rle:
            return _brush(kept, label, instance.rle, record)
    if instance.rle and masks.rle_area(instance.rle, record.image_id):
        return _brush({}, label, instance.rle, record)
    if instance.bbox is None or not (instance.bbox[2] > 0 and instance.bbox[3] > 0):
        return None
    x, y, w, h = instance.bbox
    across, down = 100 / record.width, 100 / record.height
    place = {"x": x * across, "y": y * down, "width": w * across, "height": h * down, "rotation": 0}
    return {"type": "rectanglelabels", "value": place | {"rectanglelabels": [label]}}


def _brush(kept: dict[str, Any], label: str, rle: str, record: Record) -> dict[str, Any]:
    region = masks.rle_decode(rle, record.height, record.width, record.image_id) != 0
    value = kept.get("value", {}) | {"format": "rle", "rle": label_studio_rle.encode(region)}
    kind = "labels" if "labels" in value else "brushlabels"
    return {"type": "brushlabels"} | kept | {"value": value | {kind: [label]}}


def _framed(result: dict[str, Any], number: int, record: Record) -> dict[str, Any]:
    value = result["value"]
    name = BRUSH if "rle" in value else POLYGON if "points" in value else BOX
    frame = {
        "id": f"s{number}",
        "from_name": name,
        "to_name": "image",
        "original_width": record.width,
        "original_height": record.height,
        "image_rotation": 0,
    }
    return frame | result
