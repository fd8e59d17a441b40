"""SUN RGB-D's folders: a frame is one that holds an image, a depth map or labels of its own.

They lie at different depths (kv1/NYUdata/NYU0001, xtion/sun3ddata/PLACE/SEQUENCE/FRAME), and their
files have names of their own, so both are found by one sorted walk over everything.
"""

from __future__ import annotations

import base64
import posixpath
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from connectors.layout import MISSING
from pipeline.images import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.files import Tree

SEG: Final = "seg.mat"
_ANNOTATIONS: Final = ("", "2D3D", "2Dfinal", "3D", "3Dfinal", "3Dlayout")
_FOLDERS: Final = frozenset(
    ("image", "depth", "depth_bfx", "extrinsics", "fullres", "status")
).union(f"annotation{kind}" for kind in _ANNOTATIONS)
_FILES: Final = frozenset((SEG, "intrinsics.txt", "scene.txt"))
_TEXTS: Final = (".txt", ".json")
MOST_TEXT: Final = 1 << 20
"""Bytes of a text file that a record keeps; none of the dataset comes near."""


@dataclass(slots=True)
class Frame:
    """One frame's folder: its path, and size and fingerprint of its files by names below it."""

    name: str
    files: dict[str, tuple[int, str]] = field(default_factory=dict)

    def first(self, folder: str, suffixes: tuple[str, ...]) -> str | None:
        """Return the first file of a folder that has one of the suffixes."""
        start = folder + "/"
        fit = (n for n in self.files if n.startswith(start) and n.lower().endswith(suffixes))
        return next(fit, None)

    @property
    def image(self) -> str | None:
        """The frame's image, None where it is missing."""
        return self.first("image", IMAGE_SUFFIXES)

    @property
    def depths(self) -> dict[str, str]:
        """The depth maps by folder: `depth` from the sensor, `depth_bfx` with its holes filled."""
        found = {folder: self.first(folder, (".png",)) for folder in ("depth", "depth_bfx")}
        return {folder: name for folder, name in found.items() if name}

    def rest(self) -> tuple[list[str], list[str]]:
        """Return the text files that a record keeps as they are, and the files that it leaves."""
        taken = {SEG, self.image, *self.depths.values()}
        kept: list[str] = []
        left: list[str] = []
        for name, (size, _) in self.files.items():
            if name not in taken:
                fits = name.endswith(_TEXTS) and size <= MOST_TEXT
                (kept if fits and not name.startswith("fullres/") else left).append(name)
        return kept, left

    def mark(self, name: str) -> str:
        """Return a file's fingerprint, `MISSING` when the frame does not have it."""
        return self.files[name][1] if name in self.files else MISSING


def frames(tree: Tree, base: str) -> Iterator[Frame]:
    """Yield the frames below `base` ("" or "a/b/"), streaming; one inside another comes first."""
    open_: list[Frame] = []
    for entry in tree.walk(base.rstrip("/")):
        below = entry.name[len(base) :]
        name = _frame_of(below)
        while open_ and not _holds(open_[-1].name, below, name):
            yield from _frame(open_.pop())
        if name is not None and (not open_ or open_[-1].name != name):
            open_.append(Frame(name))
        if open_:
            at = len(open_[-1].name) + 1
            open_[-1].files[below[at:]] = (entry.size, entry.fingerprint)
    while open_:
        yield from _frame(open_.pop())


def _frame_of(below: str) -> str | None:
    """Return the folder that a file makes a frame, None when its name does not tell."""
    folder, _, name = below.rpartition("/")
    if name in _FILES:
        return folder or None
    parent, _, kind = folder.rpartition("/")
    return (parent or None) if kind in _FOLDERS else None


def _holds(frame: str, below: str, owner: str | None) -> bool:
    """Tell whether a file lies in a frame's folder, and is not said to be of one further out."""
    return below.startswith(frame + "/") and (owner is None or len(owner) >= len(frame))


def _frame(frame: Frame) -> Iterator[Frame]:
    if frame.image or frame.depths or SEG in frame.files:
        yield frame


def stem(name: str) -> str:
    """Return a file's name without folders and suffix."""
    return posixpath.splitext(posixpath.basename(name))[0]


def pack_text(data: bytes) -> str | list[str]:
    """Return a file's bytes as JSON holds them: text, or base64 in a list where they are none."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return [base64.b64encode(data).decode()]


def unpack_text(kept: str | list[str]) -> bytes:
    """Return the bytes that `pack_text` kept."""
    return kept.encode() if isinstance(kept, str) else base64.b64decode(kept[0])
