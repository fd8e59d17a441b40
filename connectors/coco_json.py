"""COCO's JSON files as streams: instances, stuff, panoptic, captions, keypoints.

    {"info": {...}, "licenses": [...], "images": [{...}, ...],
     "annotations": [{...}, ...], "categories": [{...}, ...]}

`annotations/instances_train2017.json` has 450 MB, 118,287 images and 860,001 annotations, in no
order. Such files are read in blocks, an element at a time, and written the same way. The keys of
the top level may come in any order. Elements keep their own text, so that their numbers are written
back with the digits that they had; of a file with line breaks, spaces between tokens are dropped.

    for key, value, text in scan(tree, name): ...      # images and annotations one by one
    facts_of(tree, name)["categories"]                 # all but images and annotations
    for group in by_image(tree, name): ...             # each image with its annotations
    write_json(sink, name, [("info", info), ("images", Stream(texts)), ...])

A file that is cut off or no JSON raises LayoutError with the byte offset: of its last annotations
nobody knows which image lost some, so none of its images counts as read.
"""

from __future__ import annotations

import json
import re
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from connectors.coco_sort import Grouped, group
from connectors.json_text import BLOCK, JsonText

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import BinaryIO

    from pipeline.files import Tree
    from pipeline.trees.sinks import Sink

__all__ = [
    "Element",
    "Grouped",
    "Stream",
    "by_image",
    "ends_of",
    "facts_of",
    "outline",
    "scan",
    "write_json",
]

STREAMED: Final = ("images", "annotations")
"""The arrays that are read an element at a time."""

_SPACE: Final = re.compile(r"[ \t\n\r]*")
_NEXT_KEY: Final = re.compile(r'\][ \t\n\r]*,(?=[ \t\n\r]*")')
_TAIL: Final = 1 << 20  # LVIS's 1203 categories are 300 KB
_BRACES: Final = 64  # of objects in an annotation


class Element(NamedTuple):
    """One element of `images` or `annotations`, or another value of the top level, by its key."""

    key: str
    value: Any
    text: str


@dataclass(frozen=True, slots=True)
class Stream:
    """An array for `write_json`: the texts of its elements, in UTF-8."""

    texts: Iterable[bytes]


def _fields(text: JsonText) -> Iterator[str]:
    """Yield the keys of the top level, each of which comes once, up to the file's end."""
    if text.peek() == "[":
        raise text.wrong("a list: detection results, not a dataset")
    seen = set[str]()
    for key in text.fields():
        if key in seen:
            raise text.wrong(f"a second {key!r}")
        seen.add(key)
        yield key
    if text.peek():
        raise text.wrong("text after the end")


def scan(tree: Tree, name: str, *, block: int = BLOCK) -> Iterator[Element]:
    """Yield the elements of `images` and `annotations`, and every other value of the top level.

    All come in the file's order; an array without elements yields nothing.

    Raises:
        LayoutError: the file is cut off, no JSON, or no object that holds arrays of these names.
    """
    with closing(tree.open(name)) as file:
        text = JsonText(file, tree.url_of(name), block)
        for key in _fields(text):
            if key in STREAMED:
                for value, own in text.values():
                    yield Element(key, value, own)
            else:
                yield Element(key, *text.value())


@lru_cache(maxsize=32)
def _outline(tree: Tree, name: str, fingerprint: str) -> tuple[tuple[str, Any], ...]:
    del fingerprint  # tells a file's versions apart
    found: dict[str, Any] = {}
    with closing(tree.open(name)) as file:
        text = JsonText(file, tree.url_of(name), BLOCK)
        for key in _fields(text):
            if key == "annotations" and "images" in found:
                here = file.tell()
                rest = _behind_annotations(file, tree.entry(name).size)
                if rest is not None:
                    return (*found.items(), (key, None), *rest)
                file.seek(here)
            found[key] = None
            if key not in STREAMED:
                found[key], _ = text.value()
            else:
                for _ in text.values():
                    pass
    return tuple(found.items())


def _behind_annotations(file: BinaryIO, size: int) -> list[tuple[str, Any]] | None:
    """Return the keys and values that follow the annotations, from the file's end alone.

    What reads as `], "key": value, ... }` up to the very end has its keys at the top level, if the
    file is JSON at all; and the `]` closes the annotations if an object with an image_id is before
    it. None when the end does not look like that: then the whole file has to be read.
    """
    file.seek(max(0, size - _TAIL))
    data = b""
    while block := file.read(_TAIL):
        data += block
    text = data.decode("utf-8", "replace")
    for match in _NEXT_KEY.finditer(text):
        pairs = _pairs(text, match.end())
        if pairs is not None:
            return pairs if _ends_annotation(text, match.start()) else None
    return None


def _pairs(text: str, at: int) -> list[tuple[str, Any]] | None:
    """Read `"key": value, ...}` up to the end of a text; None when it is something else."""
    decode, pairs, mark = json.JSONDecoder().raw_decode, list[tuple[str, Any]](), ","
    try:
        while mark == ",":
            key, at = decode(text, _after(text, at))
            at = _after(text, at)
            if not isinstance(key, str) or text[at] != ":":
                return None
            value, at = decode(text, _after(text, at + 1))
            pairs.append((key, value))
            at = _after(text, at) + 1
            mark = text[at - 1]
    except (ValueError, IndexError, RecursionError):
        return None
    whole = mark == "}" and _after(text, at) == len(text)
    return pairs if whole and not {key for key, _ in pairs} & {*STREAMED} else None


def _after(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _ends_annotation(text: str, end: int) -> bool:
    decode, at = json.JSONDecoder().raw_decode, end
    for _ in range(_BRACES):
        at = text.rfind("{", 0, at)
        if at < 0:
            break
        try:
            value, stop = decode(text, at)
        except (ValueError, RecursionError):
            continue
        if _after(text, stop) == end:
            return isinstance(value, dict) and "image_id" in value
    return False


def outline(tree: Tree, name: str) -> tuple[tuple[str, Any], ...]:
    """Return a file's top-level keys with their values, in order; None for images and annotations.

    A process reads a file once for it, in most cases without the annotations; whether these are
    whole is found out by `by_image`.

    Raises:
        LayoutError: see `scan`.
    """
    return _outline(tree, name, tree.entry(name).fingerprint)


def ends_of(tree: Tree, name: str) -> tuple[tuple[str, Any], ...]:
    """Return the categories of a file and what lies around them, as `outline` does, for less.

    The file's end is read, and its start only where that has no categories, up to where they are:
    the images of a big file, tens of megabytes, are mostly neither.

    Raises:
        LayoutError: see `scan`.
    """
    with closing(tree.open(name)) as file:
        rest = _behind_annotations(file, tree.entry(name).size)
        if rest is not None and any(key == "categories" for key, _ in rest):
            return tuple(rest)
        file.seek(0)
        text = JsonText(file, tree.url_of(name), BLOCK)
        found: list[tuple[str, Any]] = []
        for key in _fields(text):
            if key not in STREAMED:
                found.append((key, text.value()[0]))
                if key == "categories":
                    break
            else:
                for _ in text.values():
                    pass
    return (*found, *(rest or ()))


def facts_of(tree: Tree, name: str) -> dict[str, Any]:
    """Return what a file holds beside images and annotations, by key, in the file's order.

    Raises:
        LayoutError: see `scan`.
    """
    return {key: value for key, value in outline(tree, name) if key not in STREAMED}


def by_image(
    tree: Tree, name: str, beside: Sequence[str] = (), *, block: int = BLOCK
) -> Iterator[Grouped]:
    """Yield each image of a file, in the file's order, with its annotations, in the file's order.

    `beside` names files of the same images, captions or keypoints, whose annotations come along;
    their own images and facts are not read. Groups without an image follow: annotations that name
    an image that is not there. Everything is sorted on disk, in about the size of the files; in
    memory are 24 bytes an image.

    Raises:
        LayoutError: see `scan`; nothing has been yielded then.
    """
    sizes = [tree.entry(one).size for one in (name, *beside)]
    streams = [scan(tree, one, block=block) for one in (name, *beside)]
    yield from group(streams, sum(sizes))


def write_json(sink: Sink, name: str, parts: Iterable[tuple[str, Any]]) -> None:
    """Write one JSON object, key by key; a `Stream` is written element by element.

    Spaces are those of COCO's own files: one behind each comma and colon.
    """
    with sink.stream(name) as file:
        mark = b"{"
        for key, value in parts:
            file.write(mark + json.dumps(key).encode() + b": ")
            if isinstance(value, Stream):
                _write_stream(file, value.texts)
            else:
                file.write(
                    json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")
                )
            mark = b", "
        file.write(b"{}" if mark == b"{" else b"}")


def _write_stream(file: BinaryIO, texts: Iterable[bytes]) -> None:
    mark = b"["
    for text in texts:
        file.write(mark + text)
        mark = b", "
    file.write(b"[]" if mark == b"[" else b"]")
