"""One pass over items, rows of a store for instance, in chunks: answers in the items' order."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from pipeline.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from pipeline.runner import Outcome

T = TypeVar("T")
R = TypeVar("R")
CHUNK: Final = 64


@dataclass(frozen=True, slots=True)
class Chunk(Generic[T]):
    """Items that one worker takes, and the place of the first of them."""

    first: int
    items: tuple[T, ...]

    def halves(self) -> list[Chunk[T]]:
        """Return two smaller chunks, or this one when it holds a single item."""
        middle = len(self.items) // 2
        if not middle:
            return [self]
        return [
            Chunk(self.first, self.items[:middle]),
            Chunk(self.first + middle, self.items[middle:]),
        ]


class Mapper(Protocol):
    """The part of `pipeline.runner.Runner` that is needed here."""

    def map(
        self,
        make_worker: Callable[[], Callable[[Any], Any]],
        chunks: Iterable[Any],
        split: Callable[[Any], list[Any]] | None = None,
    ) -> Generator[Outcome[Any, Any]]:
        """Yield the outcome of each chunk, in the order in which they end."""


def in_order(
    runner: Mapper,
    make_worker: Callable[[], Callable[[Chunk[T]], R]],
    items: Iterable[T],
    of_error: Callable[[Chunk[T], InputError], R],
    size: int = CHUNK,
) -> Iterator[R]:
    """Yield what workers make of chunks of the items, in the items' order.

    `of_error` tells what a chunk comes to whose item kills its worker. Sums of floating-point
    numbers come out the same whoever worked, and in whatever order.
    """
    waiting: dict[int, tuple[int, R]] = {}
    at = 0
    for outcome in runner.map(make_worker, _chunks(items, size), split=Chunk.halves):
        chunk, result = outcome.chunk, outcome.result
        if isinstance(outcome.error, InputError):
            result = of_error(chunk, outcome.error)
        elif outcome.error is not None:
            raise outcome.error
        assert result is not None, "a worker returns something"
        waiting[chunk.first] = (len(chunk.items), result)
        while at in waiting:
            count, ready = waiting.pop(at)
            at += count
            yield ready


def _chunks(items: Iterable[T], size: int) -> Iterator[Chunk[T]]:
    feed, first = iter(items), 0
    while held := tuple(islice(feed, size)):
        yield Chunk(first, held)
        first += len(held)
