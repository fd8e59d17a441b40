"""The worker that writes a dataset: a chunk of records to files, and an index entry for each.

connectors/dataset.py hands out the chunks and calls `finish`.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, BinaryIO, Final, Generic, TypeAlias, TypeVar

from connectors import connector
from connectors.checkpoint import Exported
from pipeline.errors import InputError, SegmillError
from pipeline.files import open_sink
from pipeline.labels.png import quickly
from pipeline.runs.failures import Failure
from pipeline.trees.ahead import Ahead, fetched_once, is_far
from pipeline.trees.sinks import Sink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from connectors.base import Connector, Written
    from pipeline.labels.relabel import Relabeller
    from pipeline.loss import Loss
    from pipeline.record import Record, Sample

    Pending = Record | InputError | Callable[[], Record | InputError]
    """A record, the error in its place, or what reads it when its turn comes."""

    Done: TypeAlias = "tuple[Written, Loss] | Failure | _Broken"

T = TypeVar("T")
_NOT_THE_SAMPLES: Final = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
}
"""Errors that every further sample would meet, too."""


@dataclass(frozen=True, slots=True)
class Chunk(Generic[T]):
    """A piece of the listing by its place in it; `part` tells the halves of a piece apart."""

    number: int
    items: T
    part: str = ""


@dataclass(frozen=True, slots=True)
class WriterFactory(Generic[T]):
    """Makes the worker that turns a chunk into files; `read` gives its records. Picklable."""

    format: str
    target: str
    relabel: Relabeller
    make_read: Callable[[], Callable[[T], Iterable[tuple[Sample, Pending]]]]

    def __call__(self) -> Callable[[Chunk[T]], Exported]:
        """Make the worker, in the process that will use it."""
        sink, read = open_sink(self.target), self.make_read()
        return _ChunkWriter(connector(self.format), sink, self.relabel, read)


@dataclass(frozen=True, slots=True)
class _Broken:
    """A sample on which the code broke."""

    failure: Failure
    cause: Exception


@dataclass(frozen=True, slots=True)
class _ChunkWriter(Generic[T]):
    connector: Connector
    sink: Sink
    relabel: Relabeller
    read: Callable[[T], Iterable[tuple[Sample, Pending]]]
    _ahead: Ahead = field(default_factory=Ahead, compare=False)

    def __call__(self, chunk: Chunk[T]) -> Exported:
        result, broken = Exported(), list[_Broken]()
        pairs = iter(self.read(chunk.items))
        first = next(pairs, None)
        if first is None:
            return result
        far = self.sink.far or is_far(first[0].path)
        work = partial(self._put_far if far else self._put, _Noting(self.sink, result.files))
        for done in self._ahead.map(work, chain((first,), pairs), far=far):
            if isinstance(done, Failure):
                result.failures.append(done)
                continue
            if isinstance(done, _Broken):
                broken.append(done)
                continue
            written, loss = done
            result.loss += loss
            result.written.append(written)
            result.done += 1
        if broken and not result.done and not result.failures:
            raise broken[0].cause  # on every sample: not they are the cause
        result.failures += [b.failure for b in broken]
        return result

    def _put_far(self, sink: Sink, pair: tuple[Sample, Pending]) -> Done:
        """Read and write one sample; no file of it comes over the net twice."""
        with fetched_once():
            return self._put(sink, pair)

    def _put(self, sink: Sink, pair: tuple[Sample, Pending]) -> Done:
        """Read and write one sample; one that breaks the code must not end a night's work."""
        sample = pair[0]
        try:
            with quickly():
                return self._put_one(sink, pair)
        except OSError as error:
            return Failure.of(sample, "write", _not_written(sample, error, sink))
        except (SegmillError, MemoryError):
            raise
        except Exception as error:
            return _Broken(Failure.of(sample, "write", code_broke(sample, error)), error)

    def _put_one(self, sink: Sink, pair: tuple[Sample, Pending]) -> tuple[Written, Loss] | Failure:
        sample, record = pair
        if callable(record):
            record = record()
        if isinstance(record, InputError):
            return Failure.of(sample, "read", record)
        if record.mask and record.instances is not None and self.connector.objects_only:
            record = replace(record, mask=replace(record.mask, bytes=None))
        try:
            moved, loss = self.relabel(record)
            written = self.connector.write(sink, moved, self.relabel.target)
        except InputError as error:
            return Failure.of(sample, "write", error)
        for name, count in written.loss.items():
            loss.attributes[name] = loss.attributes.get(name, 0) + count
        return written, loss


def code_broke(sample: Sample, error: BaseException) -> InputError:
    """Return the failure of a sample on which the code broke."""
    cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return InputError(sample.path, cause, "look at the file; please report")


def _not_written(sample: Sample, error: OSError, sink: Sink) -> InputError:
    """Return the failure of a sample whose files cannot be written.

    Raises:
        SegmillError: not the sample is the cause: the disk is full, say.
    """
    if isinstance(error, SegmillError):
        raise error
    place = error.filename or sink.url
    cause = error.strerror or str(error)
    if error.errno in _NOT_THE_SAMPLES:
        raise SegmillError(
            f"cannot write {place}: {cause}; mend that and run the same command again to go on"
        ) from error
    return InputError(sample.path, f"cannot be written to {place} ({cause})", "run this again")


class _Noting(Sink):
    """A sink that notes the names of what is written to it."""

    def __init__(self, sink: Sink, names: list[str]) -> None:
        self._sink, self._names = sink, names
        self.url, self.far = sink.url, sink.far  # type: ignore[misc]

    def write(self, name: str, data: bytes | memoryview) -> None:
        self._sink.write(name, data)
        self._names.append(name)

    @contextmanager
    def stream(self, name: str) -> Iterator[BinaryIO]:
        with self._sink.stream(name) as file:
            yield file
        self._names.append(name)

    def remove(self, name: str) -> None:
        self._sink.remove(name)
        if name in self._names:
            self._names.remove(name)

    def remove_folder(self, name: str) -> None:
        self._sink.remove_folder(name)

    def exists(self, name: str) -> bool:
        return self._sink.exists(name)

    def url_of(self, name: str) -> str:
        return self._sink.url_of(name)
