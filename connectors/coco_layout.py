"""Where COCO's annotation files and images lie, and which split a file is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from connectors.layout import find_root
from pipeline.errors import InputError, LayoutError, UnknownName
from pipeline.record import SPLITS

if TYPE_CHECKING:
    from collections.abc import Collection

    from pipeline.files import Tree

FOLDER: Final = "annotations"
TAILS: Final = {"train": "train2017", "val": "val2017", "test": "test2017"}
"""What files and folders of a split are called when nothing else is known."""

BESIDE: Final = ("captions", "person_keypoints")
"""Files of the same images beside `instances`."""

_FILE: Final = re.compile(r"(instances|image_info)_(.+)\.json")
_SPLIT: Final = (("train", "train"), ("val", "val"), ("minival", "val"), ("test", "test"))
_SUBSET: Final = re.compile(r"-[a-z]+")
_MINI: Final = re.compile(r"(minival|valminusminival)(?=\d)")
_PROBED: Final = 8


def tail_of(split: str) -> str:
    """Return what a split's files end in: train2017, unlabeled2017."""
    return TAILS.get(split, "unlabeled2017")


def split_of(tail: str) -> str:
    """Return the split of a file's name behind `instances_`; train when the name does not say.

    >>> [split_of(t) for t in ("train2014", "valminusminival2014", "test-dev2017", "unlabeled2017")]
    ['train', 'val', 'test', 'unlabelled']
    """
    if tail.startswith("unlabel"):
        return "unlabelled"
    return next((split for start, split in _SPLIT if tail.startswith(start)), "train")


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
        return tail_of(self.split)


def root_of(tree: Tree) -> str:
    """Return the prefix of the directory that holds `annotations`."""

    def fits(names: Collection[str]) -> bool:
        return FOLDER in names

    return find_root(tree, f"a folder {FOLDER} with instances_*.json", fits)


def json_files(tree: Tree, root: str) -> list[JsonFile]:
    """Return the dataset's files, by split and name.

    Images of `image_info_X.json` have no annotations; it is left out beside `instances_X.json`, as
    is `test-dev` beside `test`.

    Raises:
        LayoutError: there is none.
    """
    found: dict[tuple[str, str], JsonFile] = {}
    for name in tree.names(root + FOLDER):
        match = _FILE.fullmatch(name)
        if match:
            found[match[2], match[1]] = JsonFile(f"{root}{FOLDER}/{name}", match[1], match[2])
    for tail, kind in list(found):
        twin = (tail, "instances"), (tail.replace("test-dev", "test"), kind)
        if (kind == "image_info" and twin[0] in found) or (
            tail.startswith("test-dev") and twin[1] in found
        ):
            del found[tail, kind]
    if not found:
        raise LayoutError(f"{tree.url_of(root + FOLDER)}: no instances_*.json or image_info_*.json")
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
            raise LayoutError(f"{where}{FOLDER}: no annotation file of split {split}")
    return [f for f in files if not splits or f.split in splits]


def beside(tree: Tree, root: str, file: JsonFile) -> list[str]:
    """Return the files of captions and keypoints that lie beside one of instances."""
    if file.kind != "instances":
        return []
    names = [f"{root}{FOLDER}/{kind}_{file.tail}.json" for kind in BESIDE]
    return [name for name in names if tree.exists(name)]


class ImageFolder:
    """The folder of a file's images: the first one that holds one of the first images."""

    def __init__(self, tree: Tree, root: str, tail: str) -> None:
        whole = _MINI.sub("val", _SUBSET.sub("", tail))
        tails = dict.fromkeys((tail, whole, tail.rstrip("0123456789")))
        folders = [f"{under}{t}" for under in ("", "images/") for t in tails]
        held = [f"{root}{f}/" for f in (*folders, "images") if tree.isdir(root + f)]
        self._candidates = [*held, root] if held else [f"{root}{tail}/", root]
        self._tree, self._probes = tree, _PROBED

    def of(self, file_name: str) -> str:
        """Return an image's name in the tree."""
        if self._probes:
            self._probes -= 1
            for folder in self._candidates:
                if self._there(folder + file_name):
                    self._candidates, self._probes = [folder], 0
        return self._candidates[0] + file_name

    def _there(self, name: str) -> bool:
        try:
            return self._tree.exists(name)
        except InputError:
            return False
