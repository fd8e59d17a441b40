"""Where COCO's annotation files and images lie, and which split a file is.

    annotations/instances_train2017.json, panoptic_train2017.json, stuff_train2017.json
    train2017/000000000009.jpg or images/train2017/000000000009.jpg

The year may be another one, or none.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from connectors.image_files import SUFFIXES
from connectors.layout import MISSING, Fingerprints, find_root
from pipeline.errors import InputError, LayoutError, UnknownName
from pipeline.record import SPLITS

if TYPE_CHECKING:
    from collections.abc import Collection

    from pipeline.files import Tree

ANNOTATIONS: Final = "annotations"
FOLDER: Final = {
    "train": "train2017",
    "val": "val2017",
    "test": "test2017",
    "unlabelled": "unlabeled2017",
}
"""What files and folders of a split are called when nothing else is known, in COCO's spelling."""

BESIDE: Final = ("captions", "person_keypoints")
"""Files of the same images beside `instances`."""

_FILE: Final = re.compile(r"(instances|image_info)_(.+)\.json")
_SPLIT: Final = re.compile(r"(?<![a-z])(?:mini)?(train|val|test|unlabel)", re.IGNORECASE)
_MINI: Final = re.compile(r"(minival|valminusminival)(?=\d)")
_USUAL: Final = re.compile(r".*?(train|val|test|unlabeled)(?:-[a-z]+)?(\d*)")


def split_of(name: str) -> str:
    """Return the split that the name of a file or folder tells; train when it tells none.

    >>> names = ("instances_train2014.json", "unlabeled2017", "image_info_test-dev2017.json")
    >>> [split_of(name) for name in names]
    ['train', 'unlabelled', 'test']
    >>> names = ("instances_minival2014.json", "panoptic_minival2014.json", "valminusminival2014")
    >>> [split_of(name) for name in (*names, "my_val", "city_val2017", "stuff_Val.json")]
    ['val', 'val', 'val', 'val', 'val', 'val']
    >>> [split_of(name) for name in ("panoptic_examples.json", "default", "latest2017")]
    ['train', 'train', 'train']
    """
    found = _SPLIT.search(posixpath.basename(name))
    word = found[1].lower() if found else "train"
    return "unlabelled" if word == "unlabel" else word


@dataclass(frozen=True, slots=True)
class JsonFile:
    """One annotation file: its name in the tree, and that name's two halves."""

    name: str
    kind: str
    tail: str

    @property
    def split(self) -> str:
        """The split of its images."""
        return split_of(self.tail)

    @property
    def usual_tail(self) -> str:
        """What the name of such a file ends in when nothing else is known."""
        return FOLDER[self.split]


def root_of(tree: Tree) -> str:
    """Return the prefix of the directory that holds `annotations`."""

    def fits(names: Collection[str]) -> bool:
        return ANNOTATIONS in names

    return find_root(tree, f"a folder {ANNOTATIONS} with instances_*.json", fits)


def json_files(tree: Tree, root: str) -> list[JsonFile]:
    """Return the dataset's files, by split and name.

    Images of `image_info_X.json` have no annotations; it is left out beside `instances_X.json`, as
    is `test-dev` beside `test`.

    Raises:
        LayoutError: there is none.
    """
    found: dict[tuple[str, str], JsonFile] = {}
    for name in tree.names(root + ANNOTATIONS):
        match = _FILE.fullmatch(name)
        if match:
            found[match[2], match[1]] = JsonFile(f"{root}{ANNOTATIONS}/{name}", match[1], match[2])
    for tail, kind in list(found):
        twin = (tail, "instances"), (tail.replace("test-dev", "test"), kind)
        if (kind == "image_info" and twin[0] in found) or (
            tail.startswith("test-dev") and twin[1] in found
        ):
            del found[tail, kind]
    if not found:
        raise LayoutError(
            f"{tree.url_of(root + ANNOTATIONS)}: no instances_*.json or image_info_*.json"
        )
    return sorted(found.values(), key=lambda f: (SPLITS.index(f.split), f.name))


def chosen(files: list[JsonFile], splits: Collection[str], where: str) -> list[JsonFile]:
    """Return the files of the splits that are asked for; all when none is.

    Raises:
        UnknownName: no such split.
        LayoutError: a split that was asked for has no file.
    """
    for split in splits:
        if split not in SPLITS:
            raise UnknownName("split", split, SPLITS)
        if not any(f.split == split for f in files):
            raise LayoutError(f"{where}{ANNOTATIONS}: no annotation file of split {split}")
    return [f for f in files if not splits or f.split in splits]


def beside(tree: Tree, root: str, file: JsonFile) -> list[str]:
    """Return the files of captions and keypoints that lie beside one of instances."""
    if file.kind != "instances":
        return []
    names = [f"{root}{ANNOTATIONS}/{kind}_{file.tail}.json" for kind in BESIDE]
    return [name for name in names if tree.exists(name)]


class ImageFolders:
    """The folders that hold a file's images; the first that has an image is where it lies."""

    def __init__(self, tree: Tree, root: str, tag: str) -> None:
        """Look where COCO and tools around it put images; `tag` is "train2017"."""
        short, usual = tag.rstrip("0123456789"), _USUAL.sub(r"\1\2", tag)
        # test-dev2017 and image_info_test2017 have the images of test2017, minival2014 of val2014.
        tags = dict.fromkeys((tag, short, _MINI.sub("val", tag), usual))
        names = [place for t in tags for place in (t, f"images/{t}")]
        names = list(dict.fromkeys((*names, f"{short}_img", "images", "input_images")))
        there = [name for name in names if tree.isdir(root + name)]
        self._tree, self._root, self._tag = tree, root, tag
        self._default = f"{root}{there[0] if there else tag}/"
        self._folders = [(f"{root}{n}/", Fingerprints(tree, f"{root}{n}")) for n in there]
        self._suffix = ".jpg"

    def own(self) -> str | None:
        """Return the folder that holds only images of this split, None if there is none."""
        short = self._tag.rstrip("0123456789")
        for prefix, _ in self._folders:
            base = posixpath.basename(prefix.rstrip("/"))
            if base in (self._tag, short, f"{short}_img"):
                return prefix.rstrip("/")
        return None

    def find(self, file_name: str) -> tuple[str, str]:
        """Return an image's name in the tree and its fingerprint, `MISSING` if it is nowhere.

        A `file_name` may be a path from the root, too.
        """
        for prefix, prints in self._folders:
            mark = prints.find(prefix + file_name)
            if mark is not None:
                return prefix + file_name, mark
        try:
            return self._root + file_name, self._tree.entry(self._root + file_name).fingerprint
        except InputError:
            return self._default + file_name, MISSING

    def find_stem(self, stem: str) -> tuple[str, str]:
        """Do the same for a name without suffix; nearly all of a folder have the same one."""
        for suffix in dict.fromkeys((self._suffix, *SUFFIXES.values(), ".jpeg")):
            name, mark = self.find(stem + suffix)
            if mark != MISSING:
                self._suffix = suffix
                return name, mark
        return self.find(stem + self._suffix)
