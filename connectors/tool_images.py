"""Images of a labelling tool's files: where they lie, and which split a name tells."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Any, Final

from connectors.layout import MISSING, Fingerprints
from connectors.list_files import OnePlaceEach
from connectors.origins import Origins
from pipeline.errors import UnknownName, UsageError
from pipeline.record import SPLITS, Sample

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from pipeline.files import Tree
    from pipeline.image_header import Header

FOLDER: Final = "images"
_SPLITS: Final = {split: split for split in SPLITS} | {
    "training": "train",
    "validation": "val",
    "valid": "val",
    "testing": "test",
    "unlabeled": "unlabelled",
}


def split_of(word: str) -> str | None:
    """Return the split that a folder or subset is called after."""
    return _SPLITS.get(word.lower())


def place_of(name: str, subset: str = "") -> tuple[str, str]:
    """Return the image_id and the split of an image by its name below images/.

    >>> place_of("val/street 1/a.png"), place_of("a.png"), place_of("a.b.png", "Validation")
    (('street 1/a', 'val'), ('a', 'train'), ('a.b', 'val'))
    """
    folder, slash, below = name.partition("/")
    own = split_of(folder) if slash else None
    split = split_of(subset) or own or "train"
    return posixpath.splitext(below if own == split else name)[0], split


def check_splits(splits: Collection[str]) -> None:
    """Make sure that the splits asked for are some.

    Raises:
        UnknownName: one of them is none.
    """
    for split in splits:
        if split not in SPLITS:
            raise UnknownName("split", split, SPLITS)


def shown(head: Header, said: object = None) -> tuple[tuple[int, int], dict[str, Any]]:
    """Return an image's height and width as a tool shows it, and what `extra` says of its turn.

    Tools turn images by their EXIF orientation. `said` is the size that the tool labelled it in: an
    older one may not have turned it.
    """
    size, stored = head.upright(), (head.height, head.width)
    if head.orientation == 1 or (said == stored and size != stored):
        return stored, {}
    return size, {"orientation": head.orientation}


def is_text(name: str) -> bool:
    """Tell whether a name is text that a file and a store can hold: no half of a surrogate pair."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class Seen:
    """Tells which names came before; holds 12 to 24 bytes each."""

    def __init__(self, format: str) -> None:
        self._places = OnePlaceEach(format)

    def is_new(self, name: str) -> bool:
        """Book a name; tell whether it is the first time."""
        try:
            self._places.check(name)
        except UsageError:
            return False
        return True


class Lister:
    """Makes the samples of one listing: finds images, and what they were in a store.

    Holds 28 to 40 bytes an image.
    """

    def __init__(self, tree: Tree, root: str, format: str) -> None:
        self._tree, self._root, self._format = tree, root, format
        self._prints = Fingerprints(tree, root + FOLDER)
        self._origins, self._seen = Origins(tree, root), Seen(format)

    def find(self, names: Sequence[str]) -> tuple[str, str]:
        """Return the first of some names, from the root, that is there, and its fingerprint.

        The first and `MISSING` when none is.
        """
        for name in names:
            mark = self._prints.find(self._root + name)
            if mark is not None:
                return self._root + name, mark
        return self._root + names[0], MISSING

    def is_new(self, name: str) -> bool:
        """Book a name; tell whether it is the first time."""
        return self._seen.is_new(name)

    def sample(
        self,
        name: str,
        place: tuple[str, str],
        found: tuple[str, str],
        digest: str,
        payload: object,
    ) -> Sample:
        """Return the sample of an image called `name` below images/, under its row's identity."""
        origin = self._origins.find(name)
        if origin is not None:
            path, mark, dataset = origin.path, origin.fingerprint, origin.dataset
        else:
            path, mark, dataset = self._tree.url_of(found[0]), found[1], self._format
        return Sample(place[0], path, mark, digest, dataset, place[1], payload)

    def bad(self, where: str, split: str, digest: str, cause: str) -> Sample:
        """Return the sample of what cannot be read; `read` raises its payload, a text."""
        return Sample(where, self._tree.url_of(where), MISSING, digest, self._format, split, cause)
