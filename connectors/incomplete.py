"""The mark of a dataset that is being written: no half of one is read as if it were whole.

A class table, lists and indexes come last; without them the files would be read in other classes,
or be missed. So a file stands beside them from the first record until all is written, and
`find_root` refuses what it stands in.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, TypeVar

from pipeline.errors import LayoutError
from pipeline.files import open_sink
from pipeline.trees.local import LocalTree

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from pipeline.files import Tree

T = TypeVar("T")

NAME: Final = "segmill-incomplete.txt"
ERRORS: Final = "segmill-errors.jsonl"
_TEXT: Final = (
    b"segmill is writing this dataset, or was stopped while it did: run the same command again.\n"
)
_LEVELS: Final = 3
"""How far a dataset's root lies below its directory, as in VOCdevkit/VOC2012."""


def begun(target: str, chunks: Iterable[T]) -> Iterator[T]:
    """Pass the chunks on; mark the target before the first, and remove an earlier run's errors."""
    for number, chunk in enumerate(chunks):
        if not number:
            sink = open_sink(target)
            sink.write(NAME, _TEXT)
            sink.remove(ERRORS)
        yield chunk


def ended(target: str) -> None:
    """Remove the mark: all is written."""
    open_sink(target).remove(NAME)


def refuse_incomplete(tree: Tree, root: str, listed: Mapping[str, Collection[str]]) -> None:
    """Make sure that a dataset's root, and what it lies in, has no mark.

    `listed` has the names in each prefix on the way to `root`. Above the tree only directories of
    this machine are looked into.

    Raises:
        LayoutError: there is one; the message says what to do.
    """
    marks = [p + NAME for p, names in listed.items() if root.startswith(p) and NAME in names]
    found = tree.url_of(marks[0]) if marks else _above(tree)
    if found:
        raise LayoutError(
            f"{found}: this dataset is not whole: the command that writes it has not ended; run "
            "the same command again, or remove that file if it is of another dataset"
        )


def _above(tree: Tree) -> str | None:
    if not isinstance(tree, LocalTree):
        return None
    place = tree.url
    for _ in range(_LEVELS):
        place = os.path.dirname(place)
        if os.path.exists(f"{place}/{NAME}"):
            return f"{place}/{NAME}"
    return None
