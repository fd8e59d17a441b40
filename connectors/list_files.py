"""Split lists: text files with a line for each image, written while the images stream by."""

from __future__ import annotations

from array import array
from contextlib import ExitStack
from typing import TYPE_CHECKING, BinaryIO, Final

from pipeline.errors import UnsafePath, UsageError
from pipeline.files import is_junk

if TYPE_CHECKING:
    from types import TracebackType

    from pipeline.trees.sinks import Sink

_LEAST_SLOTS: Final = 1024  # a power of two, as all sizes of the table


class ListFiles:
    """Writes list files line by line; only lines that have a position are held, and sorted by it.

        with ListFiles(sink, or_else="train.txt") as lists:
            lists.add("train.txt", "2007_000032")

    When no line comes at all, an empty list `or_else` is written, so that a dataset is there.
    """

    def __init__(self, sink: Sink, or_else: str) -> None:
        self._sink, self._or_else, self._stack = sink, or_else, ExitStack()
        self._open: dict[str, BinaryIO] = {}
        self._held: dict[str, list[tuple[int, str]]] = {}

    def __enter__(self) -> ListFiles:
        return self

    def _file(self, name: str) -> BinaryIO:
        if name not in self._open:
            self._open[name] = self._stack.enter_context(self._sink.stream(name))
        return self._open[name]

    def add(self, name: str, line: str, position: int | None = None) -> None:
        """Put a line into a list file, at the end or where its position says."""
        if position is None:
            self._file(name).write(f"{line}\n".encode())
        else:
            self._held.setdefault(name, []).append((position, line))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            if not self._open and not self._held:
                self._file(self._or_else)
            for name, lines in self._held.items():
                lines.sort(key=lambda line: line[0])
                self._file(name).writelines(f"{line}\n".encode() for _, line in lines)
        self._stack.__exit__(kind, error, trace)


def one_line(image_id: str) -> str:
    """Return an image's name, checked to fit on a line of a list.

    Raises:
        UnsafePath: it holds a line break or a tab, or spaces around it, or is hidden.
    """
    if any(c in image_id for c in "\t\n\r") or image_id != image_id.strip() or not image_id:
        raise UnsafePath(
            repr(image_id), "the name does not fit on a line of a list", "rename the image"
        )
    not_hidden(image_id)
    return image_id


def not_hidden(name: str) -> str:
    """Return a file's name, checked to be one that listings show.

    Raises:
        UnsafePath: a part of it begins with a dot, or is litter of a desktop system.
    """
    if is_junk(name):
        raise UnsafePath(repr(name), "the name is hidden: no listing shows it", "rename the image")
    return name


class OnePlaceEach:
    """Makes sure that no two records were written to the same files.

    Holds 12 to 24 bytes a record, for moments 36: a 64-bit hash of each place in an open-addressed
    table. Of ten million places, two are taken for one with a chance of 1 in 300,000.
    """

    def __init__(self, format: str) -> None:
        self._format = format
        self._table, self._count = _empty(_LEAST_SLOTS), 0

    def check(self, place: str) -> None:
        """Book a record's place.

        Raises:
            UsageError: another record was written there.
        """
        if 3 * self._count >= 2 * len(self._table):
            full, self._table = self._table, _empty(2 * len(self._table))
            for mark in full:
                if mark:
                    self._table[self._slot(mark)] = mark
        mark = hash(place) or 1  # 0 is an empty slot
        slot = self._slot(mark)
        if self._table[slot]:
            raise UsageError(
                f"two records are called {place!r} and {self._format} has one place for both, so "
                "one overwrote the other; write one dataset, or one split, at a time"
            )
        self._table[slot] = mark
        self._count += 1

    def _slot(self, mark: int) -> int:
        """Return where a hash lies, or would lie."""
        table, last = self._table, len(self._table) - 1
        slot = mark & last
        while table[slot] and table[slot] != mark:
            slot = (slot + 1) & last
        return slot


def _empty(slots: int) -> array[int]:
    return array("q", bytes(8 * slots))
