"""Where the files of a full ADE20K release lie: one stem's files together, streaming."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from connectors.layout import MISSING, find_root
from pipeline.errors import LayoutError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from pipeline.files import Entry, Tree

SPLIT_OF: Final = {
    "training": "train",
    "validation": "val",
    "testing": "test",
    "unlabelled": "unlabelled",
}
"""The split of each folder below the images."""

_MASK: Final = re.compile(
    r"(?P<stem>(?:.*/)?(?P<base>[^/]+))/(?P<mask>instance_[0-9]+_(?P=base)\.png)", re.DOTALL
)
_KINDS: Final = re.compile(
    r"(?P<stem>.*?)(?:(?P<image>\.jpe?g)|(?P<json>\.json)|(?P<atr>_atr\.txt)|(?P<seg>_seg\.png)"
    r"|_parts_(?P<parts>[1-9][0-9]?)\.png)",
    re.IGNORECASE | re.DOTALL,
)
_SUFFIXES: Final = (".jpg", ".jpeg", ".json", ".txt", ".png")


@dataclass(slots=True)
class Group:
    """One image's files: the fingerprints of the labels, and one hash for its instance masks.

    `stem` is the tree's name of the image without suffix. `marks` has the keys seg, json, atr, and
    the levels of parts as digits.
    """

    stem: str
    image: str
    fingerprint: str = MISSING
    marks: dict[str, str] = field(default_factory=dict)
    _masks: hashlib.blake2b = field(default_factory=lambda: hashlib.blake2b(digest_size=8))

    @property
    def levels(self) -> list[int]:
        """Return the levels of parts that have a mask, ascending."""
        return sorted(int(key) for key in self.marks if key.isdigit())

    @property
    def note(self) -> str:
        """Return the kind of the annotation: json (2021), else atr (2017), else ""."""
        return next((kind for kind in ("json", "atr") if kind in self.marks), "")

    @property
    def identity(self) -> list[str]:
        """Return what changes when a label file of the image does."""
        marks = [f"{key}={self.marks[key]}" for key in sorted(self.marks)]
        return [*marks, self._masks.hexdigest()]

    def add(self, kind: str, key: str, entry: Entry) -> None:
        """Put one of the image's files into the group."""
        if kind == "image":
            self.image, self.fingerprint = entry.name, entry.fingerprint or MISSING
        elif kind == "mask":
            self._masks.update(f"{entry.name}\0{entry.fingerprint}\0".encode())
        else:
            self.marks[key if kind == "parts" else kind] = entry.fingerprint


def place(tree: Tree) -> tuple[str, str]:
    """Return the prefix of the folders training, validation, and that of the index files.

    Raises:
        LayoutError: no such folders, or they are SceneParsing's.
    """

    def fits(names: Collection[str]) -> bool:
        return "ADE" in names or bool(SPLIT_OF.keys() & set(names))

    expected = "folders training and validation of a full release, as in images/ADE"
    try:
        base = find_root(tree, expected, fits)
    except LayoutError:
        _refuse_sceneparsing(tree)
        raise
    if tree.isdir(base + "ADE"):
        base += "ADE/"
    root = base.removesuffix("ADE/").removesuffix("images/")
    if root != base and tree.isdir(root + "annotations"):
        _refuse_sceneparsing(tree)
    return base, root


def _refuse_sceneparsing(tree: Tree) -> None:
    both = {"images", "annotations"}
    try:
        root = find_root(tree, "SceneParsing", lambda names: both <= set(names))
    except LayoutError:
        return
    raise LayoutError(
        f"{tree.url_of(root)}: annotations beside images are SceneParsing's; read it with "
        "--format ade20k"
    )


def groups(tree: Tree, folder: str) -> Iterator[Group]:
    """Yield the images of a folder with their files, in a fixed order, holding only a few.

    Names that start alike follow one another, so a group is whole when a name no longer starts
    with its stem.
    """
    held: list[Group] = []
    for entry in tree.walk(folder, _SUFFIXES):
        match = _MASK.fullmatch(entry.name) or _KINDS.fullmatch(entry.name)
        if match is None or match.lastgroup is None:
            continue
        while held and not entry.name.startswith(held[-1].stem):
            yield held.pop()
        stem, kind = match["stem"], match.lastgroup
        group = next((g for g in reversed(held) if g.stem == stem), None)
        if group is None:
            group = Group(stem, f"{stem}.jpg")
            # A longer stem may have come first: 1_seg.png after 1_s.jpg.
            at = next((i for i, g in enumerate(held) if len(g.stem) > len(stem)), len(held))
            held.insert(at, group)
        group.add(kind, match[kind], entry)
    yield from reversed(held)
