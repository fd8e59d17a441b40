"""VOC's XML: read into plain lists that JSON holds and that are written back without loss.

An element is `[tag, text]` or `[tag, [children]]`, with a third item for attributes, which VOC does
not use. So a record's extra keeps every element of the file, in its order, known to us or not:
`annotation` holds what lies outside the objects, with None in the objects' place, and each object's
children are the `object` of its instance's extra.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import BadAnnotation
from pipeline.masks import rle_bbox
from pipeline.record import Instance

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from xml.etree import ElementTree

    from pipeline.label_space import LabelSpace
    from pipeline.record import Record

Node = list[Any]

_DEPTH: Final = 16
_NO_XML: Final = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NEW: Final = """\
<annotation>
	<folder>VOC2012</folder>
	<filename>{filename}</filename>
	<source>
		<database>{database}</database>
	</source>
	<size>
		<width>{width}</width>
		<height>{height}</height>
		<depth>3</depth>
	</size>
	<segmented>{segmented}</segmented>
"""
_NEW_OBJECT: Final = """\
	<object>
		<name>{name}</name>
		<pose>Unspecified</pose>
		<truncated>0</truncated>
		<difficult>{difficult}</difficult>
{bndbox}\
	</object>
"""
_NEW_BOX: Final = """\
		<bndbox>
			<xmin>{}</xmin>
			<ymin>{}</ymin>
			<xmax>{}</xmax>
			<ymax>{}</ymax>
		</bndbox>
"""
_CORNERS: Final = ("xmin", "ymin", "xmax", "ymax")


def parse(data: bytes, path: str) -> tuple[list[Node | None], list[list[Node]]]:
    """Return what an annotation holds outside its objects, and each object's children.

    Raises:
        BadAnnotation: it is not XML, not an annotation, or uses entities.
    """
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import ParseError, fromstring

    try:
        root = fromstring(data)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise _bad(path, f"not an XML file that can be read ({error})") from None
    if root.tag != "annotation":
        raise _bad(path, f"an XML file of <{root.tag}>, not of <annotation>")
    outside: list[Node | None] = []
    objects: list[list[Node]] = []
    for element in root:
        node = _node(element, path, 1)
        if element.tag != "object":
            outside.append(node)
            continue
        if not objects:
            outside.append(None)
        objects.append(node[1] if isinstance(node[1], list) else [])
    return outside, objects


def _bad(path: str, cause: str) -> BadAnnotation:
    return BadAnnotation(path, cause, "replace the file, or take it out of Annotations/")


def _node(element: ElementTree.Element, path: str, depth: int) -> Node:
    if depth > _DEPTH:
        raise _bad(path, f"elements are nested more than {_DEPTH} deep")
    children: list[Node] = [_node(child, path, depth + 1) for child in element]
    node: Node = [element.tag, children or (element.text or "").strip()]
    return [*node, dict(element.attrib)] if element.attrib else node


def render(outside: Iterable[Node | None], objects: Iterable[Sequence[Node]]) -> bytes:
    """Return an annotation as XML, indented by tabs as VOC does."""
    from xml.etree import ElementTree

    root = ElementTree.Element("annotation")
    made = [["object", list(children)] for children in objects]
    for node in outside:
        for each in made if node is None else (node,):
            _append(root, each)
    ElementTree.indent(root, "\t")
    text: str = ElementTree.tostring(root, encoding="unicode")
    return f"{text}\n".encode()


def _append(parent: ElementTree.Element, node: Sequence[Any]) -> None:
    from xml.etree.ElementTree import SubElement

    element = SubElement(parent, node[0], node[2] if len(node) > 2 else {})
    if isinstance(node[1], str):
        element.text = _NO_XML.sub("", node[1]) or None
    else:
        for child in node[1]:
            _append(element, child)


def _value(children: Sequence[Node], tag: str) -> Any:
    return next((node[1] for node in children if node[0] == tag), None)


def box_of(children: Sequence[Node], path: str) -> tuple[float, float, float, float] | None:
    """Return an object's box as x, y, w, h; VOC's corners count from 1 and lie inside the object.

    Raises:
        BadAnnotation: a corner is missing or no finite number.
    """
    box = _value(children, "bndbox")
    if box is None:
        return None
    try:
        left, top, right, bottom = (float(_value(box, corner)) for corner in _CORNERS)
        if not math.isfinite((right - left) * (bottom - top)):  # nan, inf, 1e999 or 1e300
            raise ValueError
    except (TypeError, ValueError):
        raise _bad(path, f"a box that is not {', '.join(_CORNERS)} as numbers: {box}") from None
    return left - 1, top - 1, right - left + 1, bottom - top + 1


def merge(
    drawn: Sequence[Instance], objects: Sequence[list[Node]], space: LabelSpace, path: str
) -> tuple[Instance, ...]:
    """Return the instances of an object map and of an annotation, as one where they are one.

    The k-th object of the XML is number k of the map, if both have the same class; the box and area
    are then those of the pixels. Others of the XML become instances with a box alone.
    """
    found = {instance.id: instance for instance in drawn}
    spare = max([*found, len(objects)], default=0)
    for number, children in enumerate(objects, 1):
        name = _value(children, "name")
        known = space.by_name.get(name) if isinstance(name, str) else None
        category = known.id if known else space.ignore_index
        same = found.get(number)
        extra: dict[str, Any] = {"object": children}
        if same is not None and same.category == category:
            box, area, rle, place = same.bbox, same.area, same.rle, number
        else:
            box, area, rle, place = box_of(children, path), None, None, number
            if same is not None:
                spare += 1
                place, extra["order"] = spare, number
        text = json.dumps(extra, sort_keys=True)
        found[place] = Instance(place, category, box, area, rle=rle, extra=text)
    return tuple(found[number] for number in sorted(found))


def annotation_of(record: Record, space: LabelSpace, outside: list[Node | None]) -> bytes:
    """Write the annotation that a record was read with; objects follow their instances' classes."""
    placed = []
    for instance in record.instances or ():
        extra = json.loads(instance.extra) if instance.extra else {}
        if "object" in extra:
            placed.append((extra.get("order", instance.id), _renamed(extra, instance, space)))
    placed.sort(key=lambda item: item[0])
    if placed and None not in outside:
        outside = [*outside, None]
    return render(outside, [children for _, children in placed])


def _renamed(extra: dict[str, Any], instance: Instance, space: LabelSpace) -> list[Node]:
    """Return an object's children under the name that its class has in this space."""
    children: list[Node] = extra["object"]
    known = space.by_id.get(instance.category)
    if known is None or instance.category == space.ignore_index:
        return children  # VOC's other names (head, hand, ...) have no class
    return [["name", known.name] if node[0] == "name" else node for node in children]


def new_annotation(record: Record, space: LabelSpace, *, segmented: bool) -> bytes:
    """Write an annotation for a record of another format: a box and a class for each instance.

    Instances of number 0 are background.

    `segmented` says whether the image has a mask. A crowd is called difficult, the flag by which
    VOC leaves objects out of its score.
    """
    head = _NEW.format(
        filename=_escaped(f"{record.image_id}.jpg"),
        database=_escaped(record.dataset or "unknown"),
        width=record.width,
        height=record.height,
        segmented=int(segmented),
    )
    objects = []
    for instance in record.instances or ():
        if not instance.id:
            continue
        known = space.by_id.get(instance.category)
        box = instance.bbox
        if box is None and instance.rle:
            box = rle_bbox(instance.rle, record.height, record.width, record.image_id)
        objects.append(
            _NEW_OBJECT.format(
                name=_escaped(known.name if known else "void"),
                difficult=int(instance.iscrowd),
                bndbox=_NEW_BOX.format(*_corners(box)) if box is not None else "",
            )
        )
    return "".join((head, *objects, "</annotation>\n")).encode()


def _corners(box: tuple[float, float, float, float]) -> tuple[str, ...]:
    x, y, w, h = box
    return tuple(f"{value:.15g}" for value in (x + 1, y + 1, x + w, y + h))


def _escaped(text: str) -> str:
    text = _NO_XML.sub("", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
