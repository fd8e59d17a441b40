"""COCO's annotation files from the entries of records: numbered, then written in one stream each.

Ids that records of COCO's have stay, but for those that another of the file had first; see
`ImageIds`.
"""

from __future__ import annotations

import json
import struct
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from connectors.coco_categories import KEY, named_categories, space_of
from connectors.coco_images import ImageIds
from connectors.coco_json import Stream, write_json
from connectors.coco_layout import ANNOTATIONS, FOLDER
from connectors.coco_objects import PART_OF
from connectors.list_files import OnePlaceEach
from pipeline.errors import LayoutError
from pipeline.loss import Loss
from pipeline.trees.temporary import temporary_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import BinaryIO

    from connectors.base import Written
    from pipeline.label_space import LabelSpace
    from pipeline.trees.sinks import Sink

_ORDER: Final = ("info", "licenses", "images", "annotations", "categories")
_SIZE: Final = struct.Struct("<I")


def finish(
    sink: Sink, written: Iterable[Written], space: LabelSpace, facts: Mapping[str, Any]
) -> Loss | None:
    """Write every annotation file; `facts` has the sources' own keys and values by file."""
    places, files, loss = OnePlaceEach("COCO"), dict[tuple[str, str], _File](), Loss()
    with ExitStack() as stack:
        for w in written:
            head = json.loads(w.entry.partition(b"\n")[0])
            places.check(f"{head['tail']}/{head['name']}")
            key = head["kind"], head["tail"]
            if key not in files:
                spool = stack.enter_context(temporary_file("coco"))
                files[key] = _File(spool)
            files[key].add(head, w.entry)
        del places  # 24 bytes an image
        if not files:
            _write(sink, ("instances", FOLDER["train"]), None, space, facts)
        for key in sorted(files):
            kind, tail = key
            # A reader takes image_info for a copy of the images of instances.
            if kind == "image_info" and ("instances", tail) in files:
                stem = tail.rstrip("0123456789")
                tail = f"{stem}-unlabelled{tail[len(stem) :]}"
            files[key].count(loss)
            _write(sink, (kind, tail), files[key], space, facts)
    return loss if loss.any else None


class _File:
    """One annotation file's entries, on disk."""

    def __init__(self, spool: BinaryIO) -> None:
        self._spool = spool
        self._images, self._objects = ImageIds(), ImageIds()
        self.own = False
        self.beside: dict[str, None] = {}

    def add(self, head: dict[str, Any], entry: bytes) -> None:
        """Keep an entry."""
        self._images.add(head["claim"])
        for number in head["ids"]:
            self._objects.add(number)
        self.own |= head["image_id"] is not None
        self.beside |= dict.fromkeys(head.get("beside", ()))
        self._spool.write(_SIZE.pack(len(entry)) + entry)

    def count(self, loss: Loss) -> None:
        """Count the ids that change."""
        changed = {"image_ids": self._images.changed(), "annotation_ids": self._objects.changed()}
        for name, count in changed.items():
            if count:
                loss.attributes[name] = loss.attributes.get(name, 0) + count

    def _entries(self) -> Iterator[tuple[dict[str, Any], list[bytes], int]]:
        """Yield each entry's header and lines, and the image's id."""
        self._spool.seek(0)
        number = self._images.assign()
        while size := self._spool.read(_SIZE.size):
            head, *lines = self._spool.read(_SIZE.unpack(size)[0]).split(b"\n")
            said = json.loads(head)
            yield said, lines, number(said["claim"])

    def images(self) -> Iterator[bytes]:
        """Yield the images' JSON."""
        for head, lines, number in self._entries():
            if head["image_id"] is None:
                yield b'{"id": %d, ' % number + lines[0]
            elif head["image_id"] == number:
                yield lines[0]
            else:
                yield _changed(lines[0], id=number)

    def annotations(self) -> Iterator[bytes]:
        """Yield the annotations' JSON."""
        number_of = self._objects.assign()
        for head, lines, image in self._entries():
            own: list[int | None] = head["ids"]
            ids = [number_of(claim) for claim in own]
            parts = {int(at): ids[whole] for at, whole in head.get("parts", {}).items()}
            moved = head["image_id"] != image
            for at, (old, number) in enumerate(zip(own, ids, strict=True)):
                line = lines[at + 1]
                if old is None:
                    link = b'"%s": %d, ' % (PART_OF.encode(), parts[at]) if at in parts else b""
                    yield b'{"id": %d, "image_id": %d, ' % (number, image) + link + line
                elif moved or number != old:
                    link_to = {PART_OF: parts[at]} if at in parts else {}
                    yield _changed(line, id=number, image_id=image, **link_to)
                else:
                    yield line

    def others(self, kind: str) -> Iterator[bytes]:
        """Yield the annotations of a file beside this one."""
        for head, _, image in self._entries():
            for text in head.get("beside", {}).get(kind, ()):
                line = text.encode("utf-8", "backslashreplace")
                yield line if head["image_id"] == image else _changed(line, image_id=image)


def _changed(text: bytes, **values: int) -> bytes:
    said = json.loads(text) | values
    return json.dumps(said, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _write(
    sink: Sink,
    key: tuple[str, str],
    file: _File | None,
    space: LabelSpace,
    facts: Mapping[str, Any],
) -> None:
    """Write one annotation file, and those beside it."""
    kind, tail = key
    streams = [(kind, file.annotations() if file else iter(()))]
    if file:
        streams += [(other, file.others(other)) for other in file.beside]
    for name, texts in streams:
        said = _said(facts, f"{name}_{tail}", own=file is not None and file.own)
        parts = {k: v for k, v in said if k not in ("images", "annotations", "categories", KEY)}
        parts.setdefault("info", {"description": "Written by segmill", "version": "1.0"})
        parts.setdefault("licenses", [])
        parts["images"] = Stream(file.images() if file else ())
        parts["annotations"] = Stream(texts)
        if name == kind:
            parts |= _categories(dict(said), space)
        elif any(k == "categories" for k, _ in said):
            parts["categories"] = dict(said)["categories"]
        order = dict.fromkeys([*(k for k, _ in said), *_ORDER, *parts])
        ordered = [(k, parts[k]) for k in order if k in parts]
        write_json(sink, f"{ANNOTATIONS}/{name}_{tail}.json", ordered)


def _said(facts: Mapping[str, Any], stem: str, *, own: bool) -> list[tuple[str, Any]]:
    """Return the source's keys and values; of another file of the kind when it had no such file."""
    kind = stem.partition("_")[0]
    if stem not in facts:
        stem = next((s for s in sorted(facts) if own and s.partition("_")[0] == kind), stem)
    return [(str(k), v) for k, v in facts.get(stem, ())]


def _categories(said: Mapping[str, Any], space: LabelSpace) -> dict[str, Any]:
    """Return the source's categories if they are the space's, else categories made from it."""
    try:
        if space_of(said, "facts") == space:
            return {k: said[k] for k in ("categories", KEY) if k in said}
    except LayoutError:
        pass
    return named_categories(space)
