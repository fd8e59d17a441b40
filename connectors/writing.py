"""Writing a dataset: chunks of records to files, then the index, in the order of the listing.

A worker writes a chunk's files and returns its index entries; they are spooled to disk by chunk, so
that nothing grows in memory with the dataset, and `finish` reads them back in order: the same files
result whatever the number of workers.
"""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from connectors import connector
from connectors.base import Written
from pipeline.ahead import Ahead, fetched_once, is_far
from pipeline.errors import InputError, SegmillError
from pipeline.failures import Failure
from pipeline.files import open_sink
from pipeline.loss import Loss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from connectors.base import Connector
    from pipeline.record import Record, Sample
    from pipeline.relabel import Relabeller
    from pipeline.runner import Runner
    from pipeline.sinks import Sink

    Pending = Record | InputError | Callable[[], Record | InputError]
    """A record, the error in its place, or what reads it when its turn comes."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Chunk(Generic[T]):
    """A piece of the listing by its place in it."""

    number: int
    items: T


@dataclass(slots=True)
class Exported:
    """What writing a chunk, or a whole dataset, came to."""

    done: int = 0
    failures: list[Failure] = field(default_factory=list)
    loss: Loss = field(default_factory=Loss)
    written: list[Written] = field(default_factory=list)


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
        work = self._put_far if far else self._put
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

    def _put_far(self, pair: tuple[Sample, Pending]) -> tuple[Written, Loss] | Failure | _Broken:
        """Read and write one sample; no file of it comes over the net twice."""
        with fetched_once():
            return self._put(pair)

    def _put(self, pair: tuple[Sample, Pending]) -> tuple[Written, Loss] | Failure | _Broken:
        """Read and write one sample; one that breaks the code must not end a night's work."""
        try:
            return self._put_one(pair)
        except (SegmillError, OSError, MemoryError):
            raise
        except Exception as error:
            cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
            told = InputError(pair[0].path, cause, "look at the file; please report")
            return _Broken(Failure.of(pair[0], "write", told), error)

    def _put_one(self, pair: tuple[Sample, Pending]) -> tuple[Written, Loss] | Failure:
        sample, record = pair
        if callable(record):
            record = record()
        if isinstance(record, InputError):
            return Failure.of(sample, "read", record)
        if record.mask and record.instances is not None and self.connector.objects_only:
            record = replace(record, mask=replace(record.mask, bytes=None))
        try:
            moved, loss = self.relabel(record)
            written = self.connector.write(self.sink, moved, self.relabel.target)
        except InputError as error:
            return Failure.of(sample, "write", error)
        for name, count in written.loss.items():
            loss.attributes[name] = loss.attributes.get(name, 0) + count
        return written, loss


def write_dataset(
    factory: WriterFactory[T],
    chunks: Iterable[T],
    runner: Runner,
    on_progress: Callable[[int], None] = lambda done: None,
    facts: Mapping[str, Any] | None = None,
) -> Exported:
    """Write all chunks and then what is global; return the sum without the entries.

    `facts` has by format what the sources say of themselves (`Connector.facts`).

    Raises:
        Exception: what a worker raised that is no bad input.
    """
    total = Exported()
    # Workers may run elsewhere: a relative target is one below this process's directory.
    factory = replace(factory, target=open_sink(factory.target).url)
    numbered = (Chunk(number, items) for number, items in enumerate(chunks))
    with Spool() as spool:
        with closing(runner.map(factory, numbered)) as outcomes:
            for outcome in outcomes:
                result = outcome.result
                if result is None:
                    raise outcome.error or RuntimeError("a chunk ended without a result")
                spool.put(outcome.chunk.number, result.written)
                total.done += result.done
                total.failures += result.failures
                total.loss += result.loss
                on_progress(total.done + len(total.failures))
        last = connector(factory.format).finish(
            open_sink(factory.target), spool, factory.relabel.target, facts or {}
        )
        if last is not None:
            total.loss += last
    return total


class Spool:
    """Index entries on disk, by chunk; they come back in the chunks' order, as often as asked."""

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        self._file = tempfile.TemporaryFile(prefix="segmill-index-")  # noqa: SIM115 - closed below

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def put(self, number: int, written: list[Written]) -> None:
        """Keep the entries of one chunk."""
        self._places[number] = self._file.seek(0, os.SEEK_END)
        for w in written:
            head = json.dumps([w.image_id, w.split, len(w.entry)]).encode()
            self._file.write(head + b"\n" + w.entry)
        self._file.write(b"\n")

    def __iter__(self) -> Iterator[Written]:
        for number in sorted(self._places):
            place = self._places[number]
            while True:
                self._file.seek(place)
                head = self._file.readline().strip()
                if not head:
                    break
                image_id, split, size = json.loads(head)
                entry = self._file.read(size)
                place = self._file.tell()
                yield Written(image_id, split, entry)
