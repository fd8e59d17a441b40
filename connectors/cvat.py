"""CVAT: tasks in 'CVAT for images 1.1', the tool's own XML.

    annotations.xml   images/train/NAME.jpg   labels.json   classes.tsv   segmill-origins.jsonl

`labels.json` is what CVAT's "Raw" label editor takes, with colours; a task made of images/ takes
annotations.xml as "CVAT 1.1". `write` makes a <mask> of each object, which holds every pixel and
hole; of overlapping objects the smaller has the higher z_order. What a mask shows beside objects is
a mask for each class on top (`connectors.tool_shapes`).

`read` takes <mask>, <polygon> (drawn by pycocotools' rule, as CVAT's own exports do) and <box>
without rotation, which has no pixels. Shapes are drawn by z_order, then in the file's order; shapes
of one group and label are one object. Points, polylines, cuboids, skeletons, ellipses and tags are
kept in `extra` and written back. The record has a mask and objects.

The split is an image's subset, or the first folder of its name, else train. The labels are those of
classes.tsv if it is there, else those of <meta> (`connectors.tool_labels`). Sizes are those of the
image as CVAT shows it, turned by EXIF. Rows keep the identity of the store that was exported
(`connectors.origins`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from connectors import cvat_xml as xml
from connectors.base import Written
from connectors.class_table import NAME as CLASS_TABLE
from connectors.class_table import known_classes, write_classes
from connectors.cvat_shapes import layers_of, nodes_of, own_layer
from connectors.image_files import put_as_shown
from connectors.layout import digest, find_root
from connectors.list_files import OnePlaceEach, one_line
from connectors.origins import origin_of, write_origins
from connectors.tool_images import FOLDER, Lister, check_splits, place_of, shown
from connectors.tool_labels import colour_of, hex_of, labels_of, once, space_of
from connectors.tool_shapes import not_kept, record_of, refuse, shapes_of
from pipeline.errors import SizeMismatch, UnsafePath, UsageError
from pipeline.images import read_header

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from pipeline.files import Tree
    from pipeline.image_header import Header
    from pipeline.label_space import LabelClass, LabelSpace
    from pipeline.loss import Loss
    from pipeline.record import Record, Sample
    from pipeline.trees.sinks import Sink

READER_VERSION: Final = 1
"""Raised by one when the same files give other records: a store then reads them again."""

ANNOTATIONS: Final = "annotations.xml"
LABELS: Final = "labels.json"
_FORMATS: Final = ("jpeg", "png", "bmp", "tiff", "webp", "gif", "ppm")
_KEY: Final = "cvat"


@dataclass(frozen=True, slots=True)
class Cvat:
    """CVAT for images 1.1."""

    format: ClassVar[str] = "cvat"
    native: ClassVar[str | None] = None
    row_bytes: ClassVar[int] = 40_000
    objects_only: ClassVar[bool] = False

    def _root(self, tree: Tree) -> str:
        return find_root(tree, f"an {ANNOTATIONS} of CVAT's", lambda names: ANNOTATIONS in names)

    def label_spaces(self, tree: Tree) -> tuple[LabelSpace, ...]:
        """Return the space of classes.tsv, else that of the labels in the XML."""
        return (_space(tree, _key(tree, self._root(tree))),)

    def facts(self, tree: Tree) -> dict[str, Any]:
        """Return the labels as CVAT knows them, with the attributes that they may have."""
        name = self._root(tree) + ANNOTATIONS
        return {"labels": list(xml.label_nodes(tree, name, tree.entry(name).fingerprint))}

    def list(self, tree: Tree, splits: Collection[str]) -> Iterator[Sample]:
        """Yield the images in the file's order; what follows a break in it is one bad sample."""
        check_splits(splits)
        root = self._root(tree)
        key, lister = _key(tree, root), Lister(tree, root, self.format)
        mark = _space(tree, key).to_json()
        for number, (node, cause) in enumerate(xml.images(tree, root + ANNOTATIONS)):
            name = node[1].get("name", "") if node is not None else ""
            place = place_of(name, node[1].get("subset", "") if node is not None else "")
            if splits and place[1] not in splits and node is not None:
                continue
            cause = cause or ("an <image> without a name" if not name else "")
            if name and not lister.is_new(f"{place[1]}/{name}"):
                cause = f"a second <image> called {name[:80]!r}"
            text = json.dumps(node)
            identity = digest(self.format, READER_VERSION, place[1], mark, text)
            if node is None or cause:
                yield lister.bad(f"{root}{ANNOTATIONS}#{number}", place[1], identity, cause)
                continue
            subset = node[1].get("subset", "")
            found = lister.find(
                [f"{FOLDER}/{name}", f"{FOLDER}/{subset}/{name}", f"{FOLDER}/default/{name}", name]
            )
            payload = [root + ANNOTATIONS, found[0], key, node]
            yield lister.sample(name, place, found, identity, payload)

    def read(self, tree: Tree, sample: Sample) -> Record:
        """Read one image's shapes."""
        if isinstance(sample.payload, str):
            raise refuse(sample.path, sample.payload)
        name, image, key, node = sample.payload
        space, path = _space(tree, key), tree.url_of(name)
        where = f"{path}, image {node[1]['name']!r}"
        head = read_header(tree, image)
        size, extra = _size(head, node, tree.url_of(image), where)
        layers, others = layers_of(node, size, space, where)
        if others:
            extra[_KEY] = others
        return record_of(sample, space, size, layers, path, extra, self.format)

    def write(self, sink: Sink, record: Record, space: LabelSpace) -> Written:
        """Write a record's image; its entry has the XML."""
        stem = f"{record.split}/{one_line(record.image_id)}"
        if not xml.holds(stem):
            raise UnsafePath(repr(stem), "XML cannot hold this name", "rename the image")
        shapes = shapes_of(record, space, own_layer)
        file, cost = put_as_shown(sink, f"{FOLDER}/{stem}", record, _FORMATS)
        name = file.removeprefix(f"{FOLDER}/")
        others = record.extras().get(_KEY, []) if record.extra else []
        if others and record.relabelled:
            cost["shapes_of_other_kinds"], others = len(others), []
        nodes = [*nodes_of(shapes, record, space), *others]
        attributes = {"name": name, "width": record.width, "height": record.height}
        text = "\n".join(f"    {xml.text_of(node)}" for node in nodes)
        opened = xml.text_of(["image", attributes, None, []]).removesuffix("/>")
        entry = [name, origin_of(record, name), opened.removeprefix("<image"), text]
        loss = shapes.loss | cost | not_kept(record)
        return Written(record.image_id, record.split, json.dumps(entry).encode(), loss)

    def finish(
        self, sink: Sink, written: Iterable[Written], space: LabelSpace, facts: Mapping[str, Any]
    ) -> Loss | None:
        """Number the images and write the XML, the labels and the images' identities."""
        places, count = OnePlaceEach(self.format), 0
        for w in written:
            places.check(f"{w.split}/{w.image_id}")
            count += 1
        labels = _labels(space, facts.get(self.format) or {})
        with sink.stream(ANNOTATIONS) as file:
            file.write(_head(labels, count).encode())
            for number, w in enumerate(written):
                _, _, opened, text = json.loads(w.entry)
                inner = f">\n{text}\n  </image>\n" if text else "/>\n"
                file.write(f'  <image id="{number}"{opened}{inner}'.encode())
            file.write(b"</annotations>\n")
        sink.write(LABELS, json.dumps([_raw(n) for n in labels], indent=1).encode() + b"\n")
        write_classes(sink, "", space)
        write_origins(sink, "", (json.loads(w.entry)[1] for w in written))
        return None


def _key(tree: Tree, root: str) -> list[str]:
    """Return what `_space` finds the labels by, in any process."""
    name = root + (CLASS_TABLE if tree.exists(root + CLASS_TABLE) else ANNOTATIONS)
    return [name, tree.entry(name).fingerprint]


def _space(tree: Tree, key: Collection[str]) -> LabelSpace:
    name, fingerprint = key
    if name.endswith(CLASS_TABLE):
        return known_classes(tree, name, fingerprint)
    nodes = xml.label_nodes(tree, name, fingerprint)
    said = ((xml.child_text(n, "name"), colour_of(xml.child_text(n, "color"))) for n in nodes)
    return space_of(once((n, c) for n, c in said if n), Cvat.format, tree.url_of(name))


def _size(
    head: Header, node: xml.Node, image: str, where: str
) -> tuple[tuple[int, int], dict[str, Any]]:
    """Return the image's height and width as CVAT shows it, and what `extra` says of its turn.

    Raises:
        SizeMismatch: the XML says another size.
    """
    if "width" not in node[1] and "height" not in node[1]:
        return shown(head)
    said = xml.whole(node, "height", where), xml.whole(node, "width", where)
    size, extra = shown(head, said)
    if said != size:
        raise SizeMismatch(
            image,
            f"the image has {size[1]}x{size[0]} pixels, {where} says {said[1]}x{said[0]}",
            "put the image that was labelled back",
        )
    return size, extra


def _labels(space: LabelSpace, facts: Mapping[str, Any]) -> list[xml.Node]:
    """Return the labels, those that the source had with their own attributes.

    Raises:
        UsageError: XML cannot hold a class's name.
    """
    own = {xml.child_text(node, "name"): node for node in facts.get("labels", ())}
    found = []
    for c in labels_of(space):
        if not xml.holds(c.name) or not c.name.strip():
            raise UsageError(f"class {c.name!r}: XML cannot hold this name; rename it")
        found.append(_label(c, own.get(c.name)))
    return found


def _label(c: LabelClass, own: xml.Node | None) -> xml.Node:
    kept = [n for n in own[3] if n[0] not in ("name", "color")] if own else []
    kept = kept or [["type", {}, "any", []], ["attributes", {}, None, []]]
    return [
        "label",
        {},
        None,
        [["name", {}, c.name, []], ["color", {}, hex_of(c.colour), []], *kept],
    ]


def _head(labels: list[xml.Node], count: int) -> str:
    lines = [
        '<?xml version="1.0" encoding="utf-8"?>',
        "<annotations>",
        "  <version>1.1</version>",
        "  <meta>",
        "    <task>",
        "      <name>segmill</name>",
        f"      <size>{count}</size>",
        "      <mode>annotation</mode>",
        "      <labels>",
        *(f"        {xml.text_of(node)}" for node in labels),
        "      </labels>",
        "    </task>",
        "  </meta>",
    ]
    return "\n".join(lines) + "\n"


def _raw(node: xml.Node) -> dict[str, Any]:
    """Return a label as CVAT's raw editor takes it."""
    attributes = [n for n in node[3] if n[0] == "attributes"]
    specs = [n for below in attributes for n in below[3] if n[0] == "attribute"]
    return {
        "name": xml.child_text(node, "name"),
        "color": xml.child_text(node, "color"),
        "type": xml.child_text(node, "type") or "any",
        "attributes": [
            {
                "name": xml.child_text(spec, "name"),
                "mutable": xml.child_text(spec, "mutable") == "True",
                "input_type": xml.child_text(spec, "input_type") or "text",
                "default_value": xml.child_text(spec, "default_value") or "",
                "values": (xml.child_text(spec, "values") or "").split("\n"),
            }
            for spec in specs
        ],
    }


CVAT: Final = Cvat()
