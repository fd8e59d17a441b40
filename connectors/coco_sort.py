"""Annotations brought to their images, on disk: an external bucket sort of COCO's JSON."""

from __future__ import annotations

import json
import struct
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeGuard

import numpy as np

from pipeline.trees.temporary import temporary_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import BinaryIO

    from numpy.typing import NDArray

    from connectors.coco_json import Element

_BUCKET_BYTES: Final = 4 << 20
_PENDING_BYTES: Final = 8 << 20  # of all buckets together, before they go to disk
_MOST_PENDING: Final = 256 << 10  # of one bucket
_MOST_BUCKETS: Final = 2048
_HEAD: Final = struct.Struct("<qHI")  # key, file, length of the text
_BATCH: Final = 4096


@dataclass(frozen=True, slots=True)
class Grouped:
    """An image of a file with its annotations, all as JSON text.

    `image` is the image's object and `text` its text. `annotations` has the annotations of the file
    itself, `beside` those of each file beside it. `problem` says what is wrong with the image as an
    element: no object, an id that is no whole number, or one that another image has, too (its
    annotations are then nobody's). A group whose `image` is None has annotations of an image that
    is not there; of these `annotations` has the first only, and `count` says how many they are.
    """

    image: dict[str, Any] | None
    text: str
    annotations: list[str]
    beside: tuple[list[str], ...] = ()
    problem: str | None = None
    count: int = 0


class _Buckets:
    """Texts by key in one temporary file, to be read back a bucket of neighbouring keys a time."""

    def __init__(self, count: int) -> None:
        self._file: BinaryIO = temporary_file("coco")
        self._pending = [bytearray() for _ in range(count)]
        # Where its pieces lie: a file of tens of gigabytes is in millions of pieces.
        self._places = [array("q") for _ in range(count)]
        self._most = min(_MOST_PENDING, _PENDING_BYTES // count)

    def add(self, bucket: int, key: int, file: int, text: bytes) -> None:
        """Keep a text."""
        pending = self._pending[bucket]
        pending += _HEAD.pack(key, file, len(text))
        pending += text
        if len(pending) > self._most:
            self._flush(bucket)

    def settle(self) -> None:
        """Bring to disk what is pending: nothing is added any more."""
        for bucket, pending in enumerate(self._pending):
            if pending:
                self._flush(bucket)
                self._pending[bucket] = bytearray()

    def _flush(self, bucket: int) -> None:
        pending = self._pending[bucket]
        self._places[bucket].extend((self._file.tell(), len(pending)))
        self._file.write(pending)
        pending.clear()

    def read(self, bucket: int) -> Iterator[tuple[int, int, bytes]]:
        """Yield a bucket's keys, files and texts, in the order in which they came."""
        places = iter(self._places[bucket])
        for place, size in zip(places, places, strict=True):
            self._file.seek(place)
            yield from _unpacked(self._file.read(size))
        yield from _unpacked(bytes(self._pending[bucket]))

    def close(self) -> None:
        """Remove the file."""
        self._file.close()


def _unpacked(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at < len(data):
        key, file, size = _HEAD.unpack_from(data, at)
        at += _HEAD.size + size
        yield key, file, data[at - size : at]


def _is_id(value: Any) -> TypeGuard[int]:
    return type(value) is int and -(1 << 63) <= value < 1 << 63


class _Ids:
    """The images' ids, and the place of each in the file."""

    def __init__(self, ids: NDArray[np.int64], valid: NDArray[np.bool_]) -> None:
        places = np.flatnonzero(valid)
        order = places[np.argsort(ids[places], kind="stable")]
        self._sorted, self._places = ids[order], order
        same = self._sorted[1:] == self._sorted[:-1]
        self.twice = np.zeros(len(ids), dtype=np.bool_)
        self.twice[order[1:][same]] = True
        self.twice[order[:-1][same]] = True

    def places(self, wanted: Sequence[int]) -> NDArray[np.int64]:
        """Return the place of the image of each id, -1 where none has it."""
        ids = np.array(wanted, dtype=np.int64)
        if not len(self._sorted):
            return np.full(len(ids), -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(self._sorted, ids), len(self._sorted) - 1)
        return np.where(self._sorted[at] == ids, self._places[at], -1)


def group(files: Sequence[Iterator[Element]], size: int) -> Iterator[Grouped]:
    """Yield the images of the first file with their annotations in every file.

    `size` is that of the files in bytes.
    """
    sorter = _Sorter(len(files), min(_MOST_BUCKETS, size // _BUCKET_BYTES + 1))
    try:
        sorter.take(files)
        yield from sorter.groups()
        yield from sorter.strays()
    finally:
        sorter.close()


class _Sorter:
    def __init__(self, files: int, buckets: int) -> None:
        self._files, self._count = files, buckets
        self._images = _Buckets(1)
        self._raw = _Buckets(1)  # annotations that came before the images
        self._found, self._lost = _Buckets(buckets), _Buckets(buckets)
        self._ids, self._valid = bytearray(), bytearray()
        self._known: _Ids | None = None
        self._twice = np.zeros(0, dtype=np.bool_)
        self._size = 1  # images, at least one
        self._waiting: list[tuple[int, int, bytes]] = []

    def close(self) -> None:
        for buckets in (self._images, self._raw, self._found, self._lost):
            buckets.close()

    def take(self, files: Sequence[Iterator[Element]]) -> None:
        """Read all files."""
        for file, elements in enumerate(files):
            for element in elements:
                if element.key == "images" and file == 0:
                    self._image(element)
                elif element.key == "annotations":
                    if self._known is None and self._ids:  # no image comes after an annotation
                        self._know()
                    self._annotation(element, file)
            if self._known is None:
                self._know()
        self._flush()
        assert self._known is not None
        self._twice, self._known = self._known.twice, None  # the ids have done their work
        for buckets in (self._images, self._found, self._lost):
            buckets.settle()

    def _image(self, element: Element) -> None:
        image_id = element.value.get("id") if isinstance(element.value, dict) else None
        self._ids += struct.pack("<q", image_id if _is_id(image_id) else 0)
        self._valid.append(_is_id(image_id))
        self._images.add(0, 0, 0, element.text.encode())

    def _know(self) -> None:
        """All images are read: bring what waited for them to its bucket."""
        ids = np.frombuffer(bytes(self._ids), dtype="<i8").astype(np.int64)
        self._ids.clear()
        self._known = _Ids(ids, np.frombuffer(bytes(self._valid), dtype=np.bool_))
        self._size = max(1, len(ids))
        for key, file, text in self._raw.read(0):
            self._wait(key, file, text)
        self._raw.close()

    def _annotation(self, element: Element, file: int) -> None:
        image_id = element.value.get("image_id") if isinstance(element.value, dict) else None
        text = element.text.encode()
        if not _is_id(image_id):
            self._lost.add(0, 0, file, b"\0" + text)
        elif self._known is None:
            self._raw.add(0, image_id, file, text)
        else:
            self._wait(image_id, file, text)

    def _wait(self, image_id: int, file: int, text: bytes) -> None:
        self._waiting.append((image_id, file, text))
        if len(self._waiting) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        assert self._known is not None
        places = self._known.places([w[0] for w in self._waiting]).tolist()
        for place, (image_id, file, text) in zip(places, self._waiting, strict=True):
            if place < 0:
                self._lost.add(image_id % self._count, image_id, file, b" " + text)
            else:
                self._found.add(place * self._count // self._size, place, file, text)
        self._waiting.clear()

    def groups(self) -> Iterator[Grouped]:
        """Yield the images."""
        held: dict[int, list[list[str]]] = {}
        bucket = -1
        for place, (_, _, text) in enumerate(self._images.read(0)):
            if place * self._count // self._size != bucket:
                bucket = place * self._count // self._size
                held = self._bucket(bucket)
            own = held.pop(place, None) or [[] for _ in range(self._files)]
            image = json.loads(text)
            yield Grouped(
                image if isinstance(image, dict) else {},
                text.decode(),
                own[0],
                tuple(own[1:]),
                self._problem(place, image),
            )

    def _bucket(self, bucket: int) -> dict[int, list[list[str]]]:
        held: dict[int, list[list[str]]] = {}
        for place, file, text in self._found.read(bucket):
            if place not in held:
                held[place] = [[] for _ in range(self._files)]
            held[place][file].append(text.decode())
        return held

    def _problem(self, place: int, image: Any) -> str | None:
        if not isinstance(image, dict):
            return "an image that is no object"
        if not self._valid[place]:
            return f"an image whose id is no whole number ({image.get('id')!r})"
        if self._twice[place]:
            return f"several images have the id {image['id']}"
        return None

    def strays(self) -> Iterator[Grouped]:
        """Yield the annotations of no image, a group for each image id that is not there."""
        for bucket in range(self._count):
            first: dict[int, tuple[str, int]] = {}
            for key, _, marked in self._lost.read(bucket):
                if marked[:1] == b"\0":
                    cause = "an annotation without an image_id that is a whole number"
                    yield Grouped(None, "", [marked[1:].decode()], problem=cause, count=1)
                    continue
                text, count = first.get(key, (marked[1:].decode(), 0))
                first[key] = text, count + 1
            for key, (text, count) in sorted(first.items()):
                cause = f"{count} annotations of image {key}, which is not among the images"
                yield Grouped(None, "", [text], problem=cause, count=count)
