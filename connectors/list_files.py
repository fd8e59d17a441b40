"""Split lists: text files with a line for each image, written while the images stream by."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, BinaryIO

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from pipeline.files import Sink


class ListFiles:
    """Writes list files line by line; only lines that have a position are held, and sorted by it.

        with ListFiles(sink, ["train.txt"]) as lists:
            lists.add("train.txt", "2007_000032")

    Files named at the start are written even if they stay empty.
    """

    def __init__(self, sink: Sink, always: Iterable[str] = ()) -> None:
        self._sink, self._always, self._stack = sink, tuple(always), ExitStack()
        self._open: dict[str, BinaryIO] = {}
        self._held: dict[str, list[tuple[int, str]]] = {}

    def __enter__(self) -> ListFiles:
        for name in self._always:
            self._file(name)
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
            for name, lines in self._held.items():
                lines.sort(key=lambda line: line[0])
                self._file(name).writelines(f"{line}\n".encode() for _, line in lines)
        self._stack.__exit__(kind, error, trace)


class OnePlaceEach:
    """Makes sure that no two records were written to the same files, at some 60 bytes a record."""

    def __init__(self, format: str) -> None:
        self._format = format
        self._seen: set[int] = set()

    def check(self, place: str) -> None:
        """Book a record's place.

        Raises:
            UsageError: another record was written there.
        """
        mark = hash(place)
        if mark in self._seen:
            raise UsageError(
                f"two records are called {place!r} and {self._format} has one place for both, so "
                "one overwrote the other; write one dataset, or one split, at a time"
            )
        self._seen.add(mark)
