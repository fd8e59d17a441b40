"""Cityscapes' file names: what lies in which folder, merged by image; any image id made a name.

Cityscapes calls a frame `city_000000_000019` (city, sequence, frame), and its tools take names
apart at the underscores. An id that is no such name becomes `CITY_ID_id`: the city is the dataset
that it comes from, and the id is escaped so that it reads back.
"""

from __future__ import annotations

import heapq
import re
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from pipeline.errors import UnsafePath
from pipeline.files import safe_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.files import Tree

IMAGES: Final = "leftImg8bit"
LABELS: Final = ("gtFine", "gtCoarse")
SIDES: Final = (
    "camera",
    "disparity",
    "gtBbox3d",
    "gtBboxCityPersons",
    "leftImg16bit",
    "rightImg16bit",
    "rightImg8bit",
    "timestamp",
    "vehicle",
)
"""Folders of files that belong to a frame and are referenced, not read."""

TAILS: Final = {"l": "_labelIds.png", "i": "_instanceIds.png", "p": "_polygons.json"}
"""The label files that are read, by the letter that stands for them."""

_MISNAMED: Final = "misnamed"
_OFFICIAL: Final = re.compile(r"([^/_.~]+)/\1_\d{6}_\d{6}")
_ESCAPED: Final = re.compile(r"([^/]+)/\1_((?:[^/_.~]|~[0-9A-F]{2})+)_id")
_LONGEST: Final = 200  # bytes; file systems take 255, and `_gtCoarse_instanceIds.png` comes after


@dataclass(slots=True)
class Frame:
    """One image of a folder: fingerprints of its photo and label files, names of the others."""

    stem: str
    image: str | None = None
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    sides: dict[str, str] = field(default_factory=dict)
    misnamed: str | None = None
    """The name of a file that begins with another frame's: no order of the folders has a place for
    both."""

    @property
    def label_folder(self) -> str | None:
        """Where its labels are read from: gtFine where it has any there, else gtCoarse."""
        return next((folder for folder in LABELS if folder in self.labels), None)


def frames(tree: Tree, root: str, folder: str, kinds: list[str]) -> Iterator[Frame]:
    """Yield the frames of a split's folder, sorted; `kinds` are the folders that hold it.

    A file whose name begins with another frame's comes as a frame of its own.
    """
    streams = [_files(tree, root, kind, folder) for kind in kinds]
    for stem, files in groupby(heapq.merge(*streams, key=itemgetter(0)), key=itemgetter(1)):
        frame = Frame(stem)
        for _, _, kind, tail, fingerprint in files:
            if kind == _MISNAMED:
                frame.misnamed = tail
            elif kind in SIDES:
                frame.sides[kind] = f"{kind}/{folder}/{stem}_{kind}{tail}"
            elif kind == IMAGES and tail == ".png":
                frame.image = fingerprint
            elif kind in LABELS:
                letter = next((key for key, end in TAILS.items() if end == tail), None)
                if letter:
                    frame.labels.setdefault(kind, {})[letter] = fingerprint
        if frame.image is not None or frame.labels or frame.misnamed:
            yield frame


def _files(
    tree: Tree, root: str, kind: str, folder: str
) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield sort key, frame, kind, rest of the name and fingerprint of a folder's files."""
    base, last = f"{root}{kind}/{folder}", ""
    for entry in tree.walk(base):
        stem, mark, tail = entry.name[len(base) + 1 :].rpartition(f"_{kind}")
        if not mark or tail[:1] not in ("_", "."):
            continue
        key = stem + "_gt"  # label files set the order
        if key < last:
            last += "\0"  # behind all files of the frame before, in every folder
            yield last, entry.name[len(base) + 1 :], _MISNAMED, entry.name, ""
            continue
        last = key
        yield key, stem, kind, tail, entry.fingerprint


def decoded(stem: str) -> tuple[str, str | None]:
    """Return the image id of a file name, and the city where the id was escaped.

    >>> decoded("aachen/aachen_000000_000019"), decoded("voc/voc_2007-000032_id")
    (('aachen/aachen_000000_000019', None), ('2007_000032', 'voc'))
    """
    match = _ESCAPED.fullmatch(stem)
    if match is None:
        return stem, None
    data = re.sub(
        rb"~([0-9A-F]{2})",
        lambda found: bytes.fromhex(found[1].decode()),
        match[2].replace("-", "_").encode(),
    )
    try:
        image_id = data.decode()
    except UnicodeDecodeError:
        return stem, None
    return (image_id, match[1]) if _escape(image_id) == match[2] else (stem, None)


def checked(image_id: str) -> str:
    """Return an id that is a file name already.

    Raises:
        UnsafePath: it leads outside its root.
    """
    return safe_name(image_id, "image id")


def encoded(image_id: str, dataset: str, city: str | None = None) -> str:
    """Return the file name of an image of another dataset, without its type.

    >>> encoded("street 0/a_1.b", "camvid-11")
    'camvid-11/camvid-11_street~200~2Fa-1~2Eb_id'

    Raises:
        UnsafePath: the id leads outside its root, or makes too long a name.
    """
    safe_name(image_id, "image id")
    if _OFFICIAL.fullmatch(image_id):
        return image_id
    place = city or re.sub(r"[\W_]+", "-", dataset) or "segmill"
    stem = f"{place}_{_escape(image_id)}_id"
    if not image_id or len(stem.encode()) > _LONGEST:
        raise UnsafePath(
            repr(image_id), "the image's id does not make a file name", "give it a shorter one"
        )
    return f"{place}/{stem}"


def _escape(text: str) -> str:
    """Return text without `_`, `.`, `/` and other signs: `_` is `-`, the others are `~` and hex.

    >>> _escape("2007_000032"), _escape("a-b.c")
    ('2007-000032', 'a~2Db~2Ec')
    """
    return "".join(
        c if c.isalnum() else "-" if c == "_" else "".join(f"~{b:02X}" for b in c.encode())
        for c in text
    )
