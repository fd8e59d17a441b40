"""YOLO's label files: lines as layers and objects, and records as lines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from connectors.tool_labels import is_object
from connectors.tool_shapes import Layer, own_of, picture, refuse, shapes_of
from connectors.yolo_seg_polygons import draw, join, text_of, trace
from pipeline import masks
from pipeline.record import Instance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from connectors.tool_shapes import Shapes
    from pipeline.label_space import LabelMap, LabelSpace
    from pipeline.record import Record

KEY: Final = "yolo-seg"
_BOX: Final = 4
_LEAST: Final = 6
_LOW, _HIGH = -0.01, 1.01
"""How far coordinates may leave the image: as far as Ultralytics lets them."""


def layers_of(
    text: str, names: Sequence[int], size: tuple[int, int], where: str, space: LabelSpace
) -> list[Layer]:
    """Return the shapes of a label file, of an image [H, W]; `names` are the classes by index.

    Raises:
        BadAnnotation: a line is malformed, or leaves the image, or its class is none.
    """
    layers: list[Layer] = []
    for number, line in enumerate(text.splitlines(), 1):
        said = line.split()
        if not said:
            continue
        place = f"{where}, line {number}"
        category = names[_index(said[0], len(names), place)]
        values = _values(said[1:], place)
        coordinates = " ".join(said[1:])
        if len(values) == _BOX:
            across, down, w, h = (values * np.array([*size[::-1], *size[::-1]])).tolist()
            rle, box, area = None, (across - w / 2, down - h / 2, w, h), w * h
        else:
            rle = draw(values.reshape(-1, 2), size)
            box, area = masks.rle_bbox(rle, *size), float(masks.rle_area(rle))
        instance = None
        if is_object(space, category):
            extra = json.dumps({KEY: [coordinates]})
            instance = Instance(len(layers) + 1, category, box, area, rle=rle, extra=extra)
        layers.append(Layer(category, rle, instance, order=-int(area) if rle else 0))
    return layers


def _index(text: str, count: int, where: str) -> int:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (value.is_integer() and 0 <= value < count):
        raise refuse(where, f"class {text[:40]!r}, not a whole number from 0 to {count - 1}")
    return int(value)


def _values(said: list[str], where: str) -> NDArray[np.float64]:
    try:
        values = np.array([float(v) for v in said], dtype=np.float64)
    except ValueError:
        raise refuse(where, "a coordinate that is no number") from None
    if len(values) != _BOX and (len(values) < _LEAST or len(values) % 2):
        raise refuse(where, f"{len(values)} numbers; a polygon has x, y of 3 points or more")
    if not ((values >= _LOW) & (values <= _HIGH)).all():  # nor NaN
        raise refuse(where, "a coordinate outside the image, 0 to 1")
    return values


@dataclass(frozen=True, slots=True)
class Lines:
    """A record's label file, without its last line break, and what it loses."""

    text: str
    loss: dict[str, int]


def lines_of(record: Record, space: LabelSpace, index: dict[int, int]) -> Lines:
    """Return a record's objects and regions as lines; `index` has the number of each class.

    Raises:
        InputError: run lengths or the mask are bad, or of classes that the space does not have.
    """
    shapes = shapes_of(record, space, lambda _: None)
    writer = _Writer(record, index, shapes)
    for instance, _ in shapes.objects:
        writer.add_object(instance)
    for region in shapes.regions:
        writer.add_region(region.category, region.rle)
    intended = _intended(record, space, shapes)
    if intended is not None:
        size = record.height, record.width
        drawn = sorted(writer.drawn, key=lambda d: -masks.rle_area(d[1]))
        changed = int(np.count_nonzero(picture(drawn, size, space) != intended))
        writer.count("pixels_changed_by_polygons", changed)
    return Lines("\n".join(writer.lines), shapes.loss)


def _intended(record: Record, space: LabelSpace, shapes: Shapes) -> LabelMap | None:
    """Return the picture that the lines should paint; None where there is none."""
    if record.mask is not None and record.mask.bytes is not None:
        return masks.decode(record.mask.bytes, record.image_id)
    ordered = sorted(shapes.objects, key=lambda o: o[1])
    drawn = [(i.category, i.rle) for i, _ in ordered if i.rle]
    return picture(drawn, (record.height, record.width), space) if drawn else None


class _Writer:
    def __init__(self, record: Record, index: dict[int, int], shapes: Shapes) -> None:
        self.lines: list[str] = []
        self.drawn: list[tuple[int, str]] = []
        self._record, self._index, self._loss = record, index, shapes.loss
        self._size = record.height, record.width

    def count(self, name: str, count: int = 1) -> None:
        """Book a loss."""
        if count:
            self._loss[name] = self._loss.get(name, 0) + count

    def add_object(self, instance: Instance) -> None:
        """Write an object as one line, its parts joined."""
        if instance.category not in self._index:
            return  # counted with the shapes
        own = own_of(instance, KEY)
        if own and isinstance(own[0], str):
            self._add(instance.category, own[0])
            return
        if instance.extra and set(json.loads(instance.extra)) - {"part_of"}:
            self.count("instance_attributes")
        if not instance.rle:
            self.count("objects_of_no_place")
            return
        outlines = trace(instance.rle, self._size, self._record.image_id)
        self.count("holes", outlines.holes)
        self.count("objects_joined_from_parts", len(outlines.parts) > 1)
        if outlines.parts:
            self._add(instance.category, text_of(join(outlines.parts), self._size))
        else:
            self.count("objects_of_no_place")

    def add_region(self, category: int, rle: str) -> None:
        """Write a class's region, a line for each of its pieces."""
        if category not in self._index:
            return  # its pixels are counted as changed, but where nothing covers them anyway
        outlines = trace(rle, self._size, self._record.image_id)
        self.count("holes", outlines.holes)
        for part in outlines.parts:
            self._add(category, text_of(part, self._size))

    def _add(self, category: int, coordinates: str) -> None:
        self.lines.append(f"{self._index[category]} {coordinates}")
        values = np.array(coordinates.split(), dtype=np.float64)
        if len(values) != _BOX:
            self.drawn.append((category, draw(values.reshape(-1, 2), self._size)))
