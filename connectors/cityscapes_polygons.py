"""polygons.json: drawn into maps as the official tools draw, and traced from maps.

Objects are drawn in their order, later ones over earlier ones, by PIL's polygon without an
outline; deleted ones and `license plate` (id -1) are left out. A label that is no class and ends
in `group` is a group of the class before it.

Traced polygons are the outer outlines of each region, larger ones first, so that what lies in a
hole is drawn over it; the pieces of one object are joined. Drawn again they differ from the map on
0.02 % of the pixels at most (nine real frames), and objects are numbered anew. They say that they
are traced (`tracedBy`): the maps count, and the text is not kept when it is read.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from connectors.cityscapes_objects import PER_CLASS, is_thing
from pipeline.errors import BadAnnotation, SizeMismatch
from pipeline.labels.regions import Regions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.label_space import LabelSpace

TRACED: Final = "tracedBy"
COUNTED: Final = "instances"
"""The key of traced polygons that says whether the objects were known; it is true or false."""

_GROUP: Final = "group"
_UNLABELED: Final = "unlabeled"
_NEVER_DRAWN: Final = "license plate"
_FAR: Final = 16  # an outline may leave the image by this many image sides; PIL walks all of it
_Polygon: TypeAlias = "list[list[int]]"
_MEND: Final = "restore the file from its release, or leave it out"


def parse(data: bytes, sizes: Sequence[tuple[int, int]], path: str) -> tuple[str, dict[str, Any]]:
    """Return the text of a polygons.json and what it holds, checked to be one of the image's size.

    Raises:
        BadAnnotation: not UTF-8 JSON of the kind.
        SizeMismatch: it is of an image of another size than the (height, width) that it may have.
    """
    try:
        text = data.decode("utf-8-sig")
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadAnnotation(path, f"not JSON ({error})", _MEND) from None
    if not isinstance(content, dict) or not isinstance(content.get("objects"), list):
        raise BadAnnotation(path, "not an object with a list called 'objects'", _MEND)
    said = (content.get("imgHeight"), content.get("imgWidth"))
    if said not in sizes:
        raise SizeMismatch(
            path,
            f"polygons of an image {said[1]}x{said[0]}, the image has {sizes[0][1]}x{sizes[0][0]}",
            "replace one of the two",
        )
    for thing in content["objects"]:
        if not isinstance(thing, dict) or not isinstance(thing.get("label"), str):
            raise BadAnnotation(path, "an object without a label", _MEND)
        if not isinstance(thing.get("polygon"), list):
            raise BadAnnotation(path, f"object {thing['label']!r} has no polygon", _MEND)
    return text, content


def draw(content: dict[str, Any], space: LabelSpace, path: str) -> NDArray[np.uint16]:
    """Return the instanceIds [H, W] that the polygons of `parse` draw.

    Raises:
        BadAnnotation: a label of no class, a polygon that is none, or too many objects of a class.
    """
    from PIL import Image, ImageDraw

    height, width = int(content["imgHeight"]), int(content["imgWidth"])
    counted = content.get(COUNTED) is not False
    names = {c.name: c.id for c in space.classes}
    names = {_UNLABELED: space.ignore_index, _NEVER_DRAWN: -1} | names
    image = Image.new("I", (width, height), names[_UNLABELED])
    pen = ImageDraw.Draw(image)
    counts: Counter[int] = Counter()
    for thing in content["objects"]:
        if thing.get("deleted"):
            continue
        category, group = _class_of(thing["label"], names, path)
        if category < 0:
            continue
        value = category
        if counted and category and not group and is_thing(category, space):
            value = category * PER_CLASS + counts[category]
            counts[category] += 1
        pen.polygon(_points(thing, height, width, path), fill=value)
    many = [c for c, n in counts.items() if n > PER_CLASS or c * PER_CLASS + n > 65536]
    if many:
        cause = f"more objects of class {many[0]} than 16 bits can number"
        raise BadAnnotation(path, cause, "leave objects out")
    return np.array(image).astype(np.uint16)


def _class_of(label: str, names: dict[str, int], path: str) -> tuple[int, bool]:
    if label in names:
        return names[label], False
    single = label.removesuffix(_GROUP)
    if single != label and single in names:
        return names[single], True
    raise BadAnnotation(path, f"label {label!r} is of no class", "correct the label")


def _points(thing: dict[str, Any], height: int, width: int, path: str) -> list[tuple[float, float]]:
    """Return an object's points, checked before C code sees them."""
    polygon, label = thing["polygon"], thing["label"]
    if len(polygon) < 3:
        cause = f"a polygon of {label!r} with {len(polygon)} points; it needs 3 or more"
        raise BadAnnotation(path, cause, "correct it, or mark the object as deleted")
    try:
        points = np.array(polygon, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        points = np.empty(0)
    far = _FAR * max(height, width)
    if points.ndim != 2 or points.shape[1] != 2 or not (np.abs(points) <= far).all():
        cause = f"a polygon of {label!r} has points that are not x, y in or near the image"
        raise BadAnnotation(path, cause, "correct it, or mark the object as deleted")
    return [(x, y) for x, y in points.tolist()]


def trace(values: NDArray[np.uint16], space: LabelSpace, *, counted: bool) -> bytes:
    """Return a polygons.json whose drawing is nearly the map of instanceIds [H, W].

    `counted` is False where nothing is known of objects: the map is then a class map.
    """
    outlines: list[tuple[float, str, _Polygon]] = []
    regions = Regions.of(values)
    for place, value in enumerate(regions.numbers.tolist()):
        label = _label(value, space, counted=counted)
        x, y, w, h = (int(side) for side in regions.bbox(place))
        here = values[y : y + h, x : x + w] == value
        pieces = _outlines(here, x, y)
        if value >= PER_CLASS:
            pieces = [_joined(pieces)]
        outlines += [(size, label, points) for size, points in pieces]
    outlines.sort(key=lambda outline: -outline[0])
    height, width = values.shape
    content = {
        TRACED: "segmill",
        COUNTED: counted,
        "imgHeight": height,
        "imgWidth": width,
        "objects": [{"label": label, "polygon": points} for _, label, points in outlines],
    }
    return json.dumps(content, separators=(",", ":")).encode()


def _label(value: int, space: LabelSpace, *, counted: bool) -> str:
    category = value if value < PER_CLASS else value // PER_CLASS
    known = space.by_id.get(category)
    if known is None:
        return _UNLABELED
    group = counted and value < PER_CLASS and is_thing(category, space)
    return f"{known.name}{_GROUP}" if group else known.name


def _outlines(here: NDArray[np.bool_], x: int, y: int) -> list[tuple[float, _Polygon]]:
    """Return the outer outlines of a region that lies at x, y, with the area that each encloses."""
    import cv2

    pieces, tree = cv2.findContours(
        here.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y)
    )
    found = []
    for piece, place in zip(pieces, tree[0], strict=True):
        if place[3] < 0:  # holes have a parent
            points = piece[:, 0].tolist()
            points += [points[-1]] * (3 - len(points))
            found.append((float(cv2.contourArea(piece)), points))
    return found


def _joined(pieces: list[tuple[float, _Polygon]]) -> tuple[float, _Polygon]:
    """Return the pieces of one object as one outline that goes there and back between them.

    Each polygon counts as an object of its own. What hides the way between the pieces is mostly
    smaller, and drawn over it.
    """
    pieces = sorted(pieces, key=lambda piece: -piece[0])
    size, points = pieces[0]
    start = points[0]
    for _, piece in pieces[1:]:
        points = [*points, start, *piece, piece[0]]
    return size, points
