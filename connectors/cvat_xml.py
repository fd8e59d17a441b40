"""CVAT's XML, an image at a time: elements as plain lists that JSON holds, and their text.

A node is [tag, attributes, text, children]. The labels stand in <meta>, which comes first; every
<image> is whole in itself, so that of a file that is cut off all images before the cut are read.
"""

from __future__ import annotations

import re
from contextlib import closing
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from connectors.tool_shapes import refuse
from pipeline.errors import LayoutError
from pipeline.masks import rle_encode_at

if TYPE_CHECKING:
    from collections.abc import Iterator
    from xml.etree.ElementTree import Element

    from numpy.typing import NDArray

    from pipeline.files import Tree

Node = list[Any]

_DEPTH: Final = 8
_MEND: Final = "export the task again"
_NO_XML: Final = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def holds(text: str) -> bool:
    """Tell whether XML can hold a text: most control characters it cannot."""
    return _NO_XML.search(text) is None


@lru_cache(maxsize=32)
def label_nodes(tree: Tree, name: str, fingerprint: str) -> tuple[Node, ...]:
    """Return the <label> elements of a file's <meta>.

    Raises:
        LayoutError: the file does not begin with one, or is not XML.
    """
    del fingerprint  # tells a file's versions apart
    path = tree.url_of(name)
    for node, cause in _elements(tree, name, "meta"):
        if node is None:
            raise LayoutError(f"{path}: {cause}; {_MEND}")
        labels = [found for found in _below(node) if found[0] == "label"]
        return tuple(n for n in labels if child_text(n, "parent") is None)  # a skeleton's joints
    raise LayoutError(f"{path}: no <meta> with the labels: not a file of CVAT's; {_MEND}")


def _below(node: Node) -> Iterator[Node]:
    for child in node[3]:
        yield child
        yield from _below(child)


def child_text(node: Node, tag: str) -> str | None:
    """Return the text of a node's first child of a tag."""
    return next((child[2] for child in node[3] if child[0] == tag), None)


def images(tree: Tree, name: str) -> Iterator[tuple[Node | None, str]]:
    """Yield the <image> elements of a file; where it breaks, None and the cause, and no more.

    Raises:
        LayoutError: it holds the tracks of a video task.
    """
    for node, cause in _elements(tree, name, "image"):
        if node is not None and node[0] == "track":
            raise LayoutError(
                f"{tree.url_of(name)}: tracks, as in 'CVAT for video'; export 'CVAT for images 1.1'"
            )
        yield node, cause


def _elements(tree: Tree, name: str, tag: str) -> Iterator[tuple[Node | None, str]]:
    """Yield the children of the top level that have a tag, and tracks; nothing else is held."""
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import ParseError, iterparse

    depth, root = 0, None
    with closing(tree.open(name)) as file:
        try:
            for event, element in iterparse(file, events=("start", "end")):
                depth += 1 if event == "start" else -1
                if root is None:
                    root = element
                    if root.tag != "annotations":
                        yield None, f"a file of <{root.tag}>, not of <annotations>"
                        return
                if event == "end" and depth == 1:
                    if element.tag in (tag, "track"):
                        yield _node(element), ""
                    root.clear()
        except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
            yield None, f"the file is cut off or not XML ({error})"


def _node(element: Element, depth: int = 0) -> Node:
    below = [_node(child, depth + 1) for child in element] if depth < _DEPTH else []
    text = (element.text or "").strip()
    return [str(element.tag), dict(element.attrib), text or None, below]


def text_of(node: Node) -> str:
    """Return a node as XML."""
    tag, attributes, text, children = node
    said = "".join(f" {key}={quoteattr(str(value))}" for key, value in attributes.items())
    inner = escape(text or "") + "".join(text_of(child) for child in children)
    return f"<{tag}{said}>{inner}</{tag}>" if inner else f"<{tag}{said}/>"


def number(node: Node, key: str, where: str) -> float:
    """Return an attribute that is a number.

    Raises:
        BadAnnotation: it is absent, or none.
    """
    try:
        value = float(node[1][key])
    except (KeyError, ValueError):
        value = float("nan")
    if not abs(value) < 1e9:  # nor NaN
        raise refuse(where, f"<{node[0]}> whose {key} is {str(node[1].get(key))[:40]!r}, no number")
    return value


def whole(node: Node, key: str, where: str, default: str | None = None) -> int:
    """Return an attribute that is a whole number.

    Raises:
        BadAnnotation: it is absent, or none.
    """
    said = node[1].get(key, default)
    try:
        value = int(said)
    except (TypeError, ValueError):
        value = 1 << 40
    if abs(value) >= 1 << 40:
        raise refuse(where, f"<{node[0]}> whose {key} is {str(said)[:40]!r}, no whole number")
    return value


def points_of(node: Node, where: str) -> list[float]:
    """Return a polygon's points: x, y, x, y, ...

    Raises:
        BadAnnotation: they are malformed, or fewer than three.
    """
    said = str(node[1].get("points", ""))
    try:
        pairs = [pair.split(",") for pair in said.split(";")]
        flat = [float(value) for pair in pairs for value in pair]
    except ValueError:
        pairs, flat = [], []
    if len(pairs) < 3 or any(len(pair) != 2 for pair in pairs):
        raise refuse(where, f"a polygon of fewer than 3 points x,y;...: {said[:60]!r}")
    return flat


# Run lengths go along the rows of the shape's own box, and start with a run of zeros.


def decode_mask(node: Node, size: tuple[int, int], where: str) -> str:
    """Return a <mask>'s pixels as compressed COCO run lengths of the image [H, W].

    Raises:
        BadAnnotation: its box does not lie in the image, or the runs don't add up to the box.
    """
    left, top = whole(node, "left", where), whole(node, "top", where)
    width, height = whole(node, "width", where), whole(node, "height", where)
    inside = left >= 0 and top >= 0 and left + width <= size[1] and top + height <= size[0]
    if not (inside and width > 0 and height > 0):
        raise refuse(
            where,
            f"a mask at {left}, {top} of {width}x{height} pixels, in an image of "
            f"{size[1]}x{size[0]}",
        )
    said = str(node[1].get("rle", ""))
    try:
        runs = [int(run) for run in said.split(",")]
    except ValueError:
        raise refuse(where, f"a mask whose rle is no list of numbers: {said[:60]!r}") from None
    if min(runs) < 0 or sum(runs) != width * height:
        raise refuse(
            where, f"a mask whose run lengths add up to {sum(runs)}, not to {width}x{height} pixels"
        )
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, np.array(runs, dtype=np.int64))
    return rle_encode_at(flat.reshape(height, width), (top, left), size)


def encode_mask(crop: NDArray[np.bool_]) -> str:
    """Return the pixels of a box, bool [h, w], as CVAT's rle."""
    flat = np.concatenate(([False], crop.ravel()))
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    runs = np.diff(edges, prepend=0, append=crop.size)
    return ", ".join(map(str, runs.tolist()))
