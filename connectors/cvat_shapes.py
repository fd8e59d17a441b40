"""CVAT's shapes as layers and objects, and objects as shapes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from connectors import cvat_xml as xml
from connectors.tool_labels import id_of, is_object, name_of
from connectors.tool_shapes import Layer, own_of, refuse, union
from pipeline import masks
from pipeline.record import Instance

if TYPE_CHECKING:
    from connectors.tool_shapes import Shapes
    from pipeline.label_space import LabelSpace
    from pipeline.record import Record

_KEY: Final = "cvat"
_PLACE: Final = ("rle", "left", "top", "width", "height")


def layers_of(
    image: xml.Node, size: tuple[int, int], space: LabelSpace, where: str
) -> tuple[list[Layer], list[xml.Node]]:
    """Return the shapes of an <image>, of height and width `size`; and elements of other kinds.

    Raises:
        BadAnnotation: a shape is malformed, does not lie in the image, or has no class.
    """
    layers, others = list[Layer](), list[xml.Node]()
    groups: dict[tuple[int, int], list[int]] = {}
    nodes: list[xml.Node] = []
    for node in image[3]:
        rotated = node[0] == "box" and node[1].get("rotation", "0").strip("0.") != ""
        if node[0] not in ("mask", "polygon", "box") or rotated:
            others.append(node)
            continue
        label = node[1].get("label", "")
        category = id_of(space, label, where)
        order = xml.whole(node, "z_order", where, "0")
        rle = _run_lengths(node, size, f"{where}, <{node[0]}> of {label[:40]!r}")
        group = xml.whole(node, "group_id", where, "0")
        groups.setdefault((group, category) if group else (-1 - len(nodes), category), []).append(
            len(nodes)
        )
        nodes.append(node)
        layers.append(Layer(category, rle, None, order))
    found = 0
    for (_, category), members in groups.items():
        if is_object(space, category):
            found += 1
            parts = [nodes[at] for at in members]
            rles = [layers[at].rle or "" for at in members]
            layers[members[0]].instance = _instance(found, category, parts, rles, size, where)
    return layers, others


def _run_lengths(node: xml.Node, size: tuple[int, int], where: str) -> str | None:
    if node[0] == "box":
        return None
    if node[0] == "mask":
        return xml.decode_mask(node, size, where)
    points = xml.points_of(node, where)
    across, down = points[::2], points[1::2]
    if max(across) <= 0 or max(down) <= 0 or min(across) >= size[1] or min(down) >= size[0]:
        raise refuse(where, f"a polygon outside the image of {size[1]}x{size[0]} pixels")
    return masks.polygons_to_rle([points], *size, where)


def _instance(
    number: int,
    category: int,
    parts: list[xml.Node],
    rles: list[str],
    size: tuple[int, int],
    where: str,
) -> Instance:
    drawn = [rle for rle in rles if rle]
    rle = union(drawn, size) if drawn else None
    if rle:
        box, area = masks.rle_bbox(rle, *size), float(masks.rle_area(rle))
    else:
        box, area = _box(parts[0], where)
    single = len(parts) == 1 and parts[0][0] == "mask"
    said = [[parts[0][0], _unplaced(parts[0][1]), *parts[0][2:]]] if single else parts
    return Instance(number, category, box, area, rle=rle, extra=json.dumps({_KEY: said}))


def _unplaced(attributes: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in attributes.items() if key not in _PLACE}


def _box(node: xml.Node, where: str) -> tuple[tuple[float, float, float, float], float]:
    left, top, right, bottom = (xml.number(node, k, where) for k in ("xtl", "ytl", "xbr", "ybr"))
    if right < left or bottom < top:
        raise refuse(where, f"a box from {left}, {top} to {right}, {bottom}")
    return (left, top, right - left, bottom - top), (right - left) * (bottom - top)


def own_layer(instance: Instance) -> int | None:
    """Return the z_order that an object of CVAT's was read with."""
    own = own_of(instance, _KEY)
    if not own:
        return None
    try:
        return int(own[0][1].get("z_order", 0))
    except (ValueError, TypeError, IndexError, AttributeError):
        return 0


def nodes_of(shapes: Shapes, record: Record, space: LabelSpace) -> list[xml.Node]:
    """Return the elements of a record's shapes; objects of no place are counted in their loss."""
    nodes: list[xml.Node] = []
    source = "manual" if record.provenance.kind == "truth" else "auto"
    for instance, layer in shapes.objects:
        own = own_of(instance, _KEY)
        if own and not (len(own) == 1 and own[0][0] == "mask"):
            label = name_of(space, instance.category)
            nodes += [[n[0], n[1] | {"label": label}, *n[2:]] for n in own]
            continue
        fresh = {"source": source, "occluded": "0", "z_order": str(layer)}
        kept = own[0] if own else ["mask", fresh, None, []]
        attributes = kept[1] | {"label": name_of(space, instance.category)}
        made = _mask(attributes, kept, instance.rle, record) if instance.rle else None
        made = made or _made_box(attributes, instance)
        if made is None:
            shapes.loss["objects_of_no_place"] = shapes.loss.get("objects_of_no_place", 0) + 1
        else:
            nodes.append(made)
            if not own and instance.extra and set(json.loads(instance.extra)) - {"part_of"}:
                count = shapes.loss.get("instance_attributes", 0)
                shapes.loss["instance_attributes"] = count + 1
    for region in shapes.regions:
        attributes = {
            "label": name_of(space, region.category),
            "source": source,
            "occluded": "0",
            "z_order": str(shapes.top),
        }
        made = _mask(attributes, ["mask", {}, None, []], region.rle, record)
        nodes += [made] if made else []
    return nodes


def _mask(
    attributes: dict[str, Any], kept: xml.Node, rle: str | None, record: Record
) -> xml.Node | None:
    assert rle is not None
    crop, (top, left) = masks.rle_crop(rle, record.height, record.width, record.image_id)
    if not crop.size:
        return None
    placed = {
        "rle": xml.encode_mask(crop),
        "left": str(left),
        "top": str(top),
        "width": str(crop.shape[1]),
        "height": str(crop.shape[0]),
    }
    return ["mask", attributes | placed, *kept[2:]]


def _made_box(attributes: dict[str, Any], instance: Instance) -> xml.Node | None:
    if instance.bbox is None or not (instance.bbox[2] > 0 and instance.bbox[3] > 0):
        return None
    x, y, w, h = instance.bbox
    corners = {"xtl": x, "ytl": y, "xbr": x + w, "ybr": y + h}
    return ["box", attributes | {key: repr(value) for key, value in corners.items()}, None, []]
