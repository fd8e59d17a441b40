"""Where COCO's files lie, and what its JSON says of classes: shared by the dense formats.

    annotations/panoptic_train2017.json, annotations/stuff_train2017.json
    train2017/000000000009.jpg or images/train2017/000000000009.jpg

The year may be another one, or none.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from array import array
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from connectors.coco_json import facts_of
from connectors.coco_supercategories import SUPERCATEGORY
from connectors.image_files import SUFFIXES
from connectors.layout import MISSING, Fingerprints
from pipeline.errors import LayoutError, UnknownName, UsageError
from pipeline.label_space import LabelClass, LabelSpace, label_space, voc_colour
from pipeline.record import SPLITS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from connectors.coco_sort import Grouped
    from pipeline.files import Tree
    from pipeline.image_header import Header
    from pipeline.record import Record

FOLDER: Final = {
    "train": "train2017",
    "val": "val2017",
    "test": "test2017",
    "unlabelled": "unlabeled2017",
}
"""The folders that a split's files are written to; COCO spells "unlabeled"."""

_SPLIT_WORDS: Final = {"unlabel": "unlabelled", "test": "test", "val": "val", "train": "train"}
_USUAL: Final = re.compile(r".*?(train|val|test|unlabeled)(?:-[a-z]+)?(\d*)")
_TOP: Final = (1 << 53) - 1  # numbers in JSON are exact up to here in most readers
_SAY: Final = {"coco-panoptic": "image", "coco-stuff": "image", "coco-instances": "coco"}
"""Where records of COCO's formats keep their image's entry in `extra`."""


def check_splits(splits: Collection[str]) -> None:
    """Make sure that the splits asked for are some.

    Raises:
        UnknownName: one of them is none.
    """
    for split in splits:
        if split not in SPLITS:
            raise UnknownName("split", split, SPLITS)


def split_of(name: str) -> str:
    """Return the split that a file's or folder's name tells; train when it tells none.

    >>> [split_of(n) for n in ("stuff_val2017.json", "unlabeled2017", "panoptic_examples.json")]
    ['val', 'unlabelled', 'train']
    """
    base = posixpath.basename(name)
    for word, split in _SPLIT_WORDS.items():
        if re.search(rf"(?<![a-z]){word}", base):
            return split
    return "train"


class ImageFolders:
    """The folders that hold a split's images; the first that has a file is where it lies."""

    def __init__(self, tree: Tree, root: str, names: Iterable[str]) -> None:
        there = [name for name in dict.fromkeys(names) if tree.isdir(root + name)]
        self._default = f"{root}{there[0] if there else next(iter(names))}/"
        self._folders = [(f"{root}{n}/", Fingerprints(tree, f"{root}{n}")) for n in there]
        self._suffix = ".jpg"

    @classmethod
    def of_split(cls, tree: Tree, root: str, tag: str) -> ImageFolders:
        """Look where COCO and tools around it put a split's images; `tag` is "train2017"."""
        short = tag.rstrip("0123456789")
        usual = _USUAL.sub(r"\1\2", tag)  # test-dev2017, image_info_test2017: test2017
        tags = dict.fromkeys((tag, short, usual))
        exact = [place for t in tags for place in (t, f"images/{t}")]
        return cls(tree, root, (*exact, f"{short}_img", "images", "input_images"))

    def own(self, tag: str) -> str | None:
        """Return the folder that holds only images of this split, None if there is none."""
        short = tag.rstrip("0123456789")
        for prefix, _ in self._folders:
            base = posixpath.basename(prefix.rstrip("/"))
            if base in (tag, short, f"{short}_img"):
                return prefix.rstrip("/")
        return None

    def find(self, file_name: str) -> tuple[str, str]:
        """Return an image's name in the tree and its fingerprint, `MISSING` if it is nowhere."""
        for prefix, prints in self._folders:
            mark = prints.find(prefix + file_name)
            if mark is not None:
                return prefix + file_name, mark
        return self._default + file_name, MISSING

    def find_stem(self, stem: str) -> tuple[str, str]:
        """Do the same for a name without suffix; nearly all of a folder have the same one."""
        for suffix in dict.fromkeys((self._suffix, *SUFFIXES.values(), ".jpeg")):
            name, mark = self.find(stem + suffix)
            if mark != MISSING:
                self._suffix = suffix
                return name, mark
        return self.find(stem + self._suffix)


# Classes


@lru_cache(maxsize=32)
def known_categories(
    tree: Tree, name: str, fingerprint: str, format: str, native: str
) -> LabelSpace:
    """Return the label space of a JSON's categories; `fingerprint` tells its versions apart."""
    return space_of(facts_of(tree, name).get("categories"), format, native, tree.url_of(name))


def space_of(categories: Any, format: str, native: str, path: str) -> LabelSpace:
    """Return the label space of a JSON's categories: the native one if all are among its own.

    Raises:
        LayoutError: they are malformed, or share ids or names.
    """
    if not isinstance(categories, list) or not all(isinstance(c, dict) for c in categories):
        raise LayoutError(f"{path}: categories are no list of objects; correct the file")
    own = label_space(native)
    named = [(c.get("id"), c.get("name")) for c in categories]
    real = {(i, own.by_id[i].name) for i in own.ids if i != own.ignore_index}
    if all(isinstance(name, str) and type(i) is int for i, name in named) and set(named) <= real:
        return own
    try:
        classes = tuple(_class(c) for c in categories)
        ignore = 255 if max((c.id for c in classes), default=0) < 255 else 65535
        mark = hashlib.blake2b(repr((classes, ignore)).encode(), digest_size=4).hexdigest()
        return LabelSpace(f"{format}-{mark}", classes, ignore)
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise LayoutError(f"{path}: categories are malformed ({error}); correct the file") from None


def _class(category: Mapping[str, Any]) -> LabelClass:
    number, thing = category["id"], category.get("isthing")
    if type(number) is not int or not is_name(category["name"]):
        raise ValueError(f"not a category: {str(category)[:80]}")
    colour = category.get("color")
    red, green, blue = voc_colour(number & 255) if colour is None else map(int, colour)
    return LabelClass(
        number, category["name"], (red, green, blue), None if thing is None else bool(thing)
    )


def categories_of(
    space: LabelSpace, stated: Any, things: Collection[int], wanted: Collection[int] | None = None
) -> list[dict[str, Any]]:
    """Return the categories to write: as a dataset of the space stated them, else made here.

    `things` are the classes without a word on it that objects use; `wanted` the classes to write.
    """
    classes = [
        c for c in space.classes if c.id != space.ignore_index and (not wanted or c.id in wanted)
    ]
    if isinstance(stated, list) and all(isinstance(c, dict) for c in stated):
        named = {(c.get("id"), c.get("name")) for c in stated}
        if named == {(c.id, c.name) for c in classes}:
            return stated
    return [
        {
            "supercategory": SUPERCATEGORY.get(c.name, ""),
            "color": list(c.colour),
            "isthing": int(c.id in things if c.isthing is None else c.isthing),
            "id": c.id,
            "name": c.name,
        }
        for c in classes
    ]


def said_of(facts: Mapping[str, Any], format: str, split: str) -> dict[str, Any]:
    """Return what the sources' files of a split say beside images and annotations.

    Without one of the format, info and licences of `coco-instances` serve: images name a licence.
    """
    own: dict[str, dict[str, Any]] = facts.get(format) or {}
    if own:
        return own.get(split) or next(iter(own.values()))
    for stem, pairs in sorted((facts.get("coco-instances") or {}).items()):
        if split_of(stem) == split:
            return {key: value for key, value in pairs if key in ("info", "licenses")}
    return {}


# Images


def place_of(group: Grouped) -> str:
    """Return what a message calls an image, or annotation, that is malformed."""
    name = (group.image or {}).get("file_name")
    text = name if is_name(name) else (group.text or group.annotations[0])[:80]
    return str(text).encode("ascii", "backslashreplace").decode()


def is_name(value: Any) -> bool:
    """Tell whether a JSON's value is text that a file may be called; not half a character."""
    try:
        return isinstance(value, str) and bool(value.encode())
    except UnicodeEncodeError:
        return False


def stem_of(file_name: str) -> str:
    """Return an image's name without its suffix."""
    return posixpath.splitext(file_name)[0]


def image_of(record: Record, file_name: str) -> dict[str, Any]:
    """Return the image to write; what a COCO file said of it beyond the record's columns stays."""
    said = {"file_name": file_name, "height": record.height, "width": record.width}
    extra = record.extras() if record.dataset in _SAY else {}
    more = extra.get(_SAY.get(record.dataset, ""))
    if record.dataset == "coco-instances" and isinstance(more, dict):
        more = {key: value for key, value in more.items() if key not in said}
    return said | (more if isinstance(more, dict) else {})


def claim_of(image: Mapping[str, Any], image_id: str) -> int:
    """Return the number that an image goes by: its own, or that of its name; -1 without one."""
    number = image.get("id")
    if type(number) is int and 0 <= number <= _TOP:
        return number
    return int(image_id) if re.fullmatch(r"[0-9]{1,18}", image_id) else -1


class ImageIds:
    """Numbers images: each has the one that it claims, if no other had it first, else a free one.

    Holds 8 bytes an image. `add` every claim, then go through `assign` as often as is needed.
    """

    def __init__(self) -> None:
        self._claims = array("q")

    def add(self, claim: int) -> None:
        """Book a claim; -1 is none."""
        self._claims.append(claim)

    def assign(self) -> Iterable[int]:
        """Yield the numbers in the order of the claims."""
        claims = np.frombuffer(self._claims, dtype=np.int64) if self._claims else np.empty(0, "i8")
        order = np.argsort(claims, kind="stable")
        ranked = claims[order]
        again = np.zeros(len(claims), dtype=np.bool_)
        again[order[1:]] = ranked[1:] == ranked[:-1]
        again |= claims < 0
        free = 0
        for claim, taken in zip(claims.tolist(), again.tolist(), strict=True):
            if not taken:
                yield claim
                continue
            free += 1
            while _holds(ranked, free):
                free += 1
            yield free

    def changed(self) -> int:
        """Return how many images get another number than they claim."""
        given = [claim for claim in self._claims if claim >= 0]
        return len(given) - len(set(given))


def _holds(ranked: np.ndarray[Any, np.dtype[np.int64]], value: int) -> bool:
    at = int(np.searchsorted(ranked, value))
    return at < len(ranked) and int(ranked[at]) == value


def entry_of(claim: int, head: Any, image: Mapping[str, Any], annotation: str) -> bytes:
    """Return an index entry: claim, a note, the image without its id, and annotation text."""
    lines = (json.dumps([claim, head]), json.dumps(image, ensure_ascii=False), annotation)
    return "\n".join(lines).encode("utf-8", "backslashreplace")


def of_image(entry: Mapping[str, Any], size: tuple[int, int], head: Header) -> dict[str, Any]:
    """Return what a record's extra keeps of an image: all that its columns do not say."""
    columns = {"file_name": entry.get("file_name"), "height": size[0], "width": size[1]}
    kept = {key: value for key, value in entry.items() if columns.get(key, ...) != value}
    extra: dict[str, Any] = {"image": kept}
    if size != (head.height, head.width):
        extra["orientation"] = head.orientation
    return extra
