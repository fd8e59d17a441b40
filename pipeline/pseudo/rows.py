"""One pass over rows of a store, or over pairs of rows, in chunks of names, answers in order."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

import numpy as np

from pipeline import masks
from pipeline.errors import CorruptMask, InputError, SizeMismatch
from pipeline.runs.failures import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from pipeline.label_space import LabelMap
    from pipeline.runner import Outcome
    from pipeline.tables.rows import RowKey

T = TypeVar("T")
R = TypeVar("R")
R_co = TypeVar("R_co")
CHUNK: Final = 64
_MEND: Final = "label the image again with --confidence"


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


@dataclass(frozen=True, slots=True)
class Labelled:
    """A row's label map [H, W] of ids, and its confidence uint8 [H, W] = round(255 p)."""

    ids: LabelMap
    confidence: NDArray[np.uint8]


COLUMNS: Final = ("image.path", "split", "label_space", "mask.bytes", "confidence.bytes")
"""What `labelled` needs of a row."""


def labelled(row: Mapping[str, Any], path: str) -> Labelled:
    """Decode a row of a prediction.

    Raises:
        InputError: it has no mask, or no confidence.
        CorruptMask: one of the cells is damaged, or the confidence has 16 bits a pixel.
        SizeMismatch: the two are of different sizes.
    """
    if row["mask.bytes"] is None:
        raise InputError(path, "the prediction has no mask", "label it with a model of label maps")
    if row["confidence.bytes"] is None:
        raise InputError(path, "the prediction has no confidence", _MEND)
    ids = masks.decode(row["mask.bytes"], path)
    return Labelled(ids, confidence_map(row["confidence.bytes"], ids.shape, path))


def confidence_map(cell: bytes, shape: tuple[int, ...], path: str) -> NDArray[np.uint8]:
    """Decode the confidence of a mask of that shape; errors as of `labelled`."""
    where = f"{path} (confidence)"
    sure = masks.decode(cell, where)
    if sure.dtype != np.uint8:
        raise CorruptMask(where, "the confidence has 16 bits a pixel, not 8", _MEND)
    if sure.shape != shape:
        raise SizeMismatch(where, f"the confidence is {sure.shape}, the mask {shape}", _MEND)
    return sure


def failure(key: RowKey, split: str, path: str, error: InputError, stage: str) -> Failure:
    """Return what the error says of a row."""
    text = " ".join(str(error).split())
    kind = type(error).__name__
    return Failure(path, key.image_id, key.dataset, split, stage, kind, text)
