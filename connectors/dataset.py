"""Writing a whole dataset: hand out chunks, book what comes back, then write what is global.

What chunks come to lies on disk (connectors/checkpoint.py): nothing here grows with the dataset but
the chunks' names. `finish` reads in the listing's order: the same files result whatever the number
of workers, and whether or not the run was taken up again.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from connectors import connector
from connectors.checkpoint import Booked, Checkpoint, Exported, Kept, Spool, sign
from connectors.incomplete import ERRORS, begun, ended
from connectors.writing import Chunk, code_broke
from pipeline.errors import PoisonInput, SegmillError, TooManyErrors
from pipeline.files import open_sink
from pipeline.loss import Loss
from pipeline.record import Sample
from pipeline.runs.failures import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from connectors.writing import WriterFactory
    from pipeline.runner import Outcome, Runner
    from pipeline.trees.sinks import Sink

_BARREN: Final = 50
"""Chunks in a row without one good sample, after which the source itself is looked at."""
_TOLD: Final = 5


class Piece(Protocol):
    """A run of samples, or of what they are read from; picklable."""

    def identity(self) -> bytes:
        """Return a hash of all that the samples' records come from."""

    def halves(self) -> list[Any]:
        """Return two smaller pieces, or this one when it holds a single sample."""


P = TypeVar("P", bound=Piece)


class Samples(tuple[Sample, ...]):
    """Samples of a listing."""

    __slots__ = ()

    @classmethod
    def cut(cls, samples: Iterable[Sample], size: int) -> Iterator[Samples]:
        """Yield a listing in pieces."""
        feed = iter(samples)
        while piece := cls(islice(feed, size)):
            yield piece

    def identity(self) -> bytes:
        """Return a hash of the samples' identities."""
        digest = hashlib.blake2b(digest_size=10)
        for s in self:
            parts = (s.dataset, s.split, s.image_id, s.path, s.fingerprint, s.digest)
            digest.update(("\0".join(parts) + "\n").encode("utf-8", "surrogateescape"))
        return digest.digest()

    def halves(self) -> list[Samples]:
        """Return two smaller pieces, or this one when it holds a single sample."""
        middle = len(self) // 2
        return [Samples(self[:middle]), Samples(self[middle:])] if middle else [self]


@dataclass(frozen=True, slots=True)
class Source(Generic[P]):
    """What is written out.

    `identity` is equal for a repeated command. `samples` lists a piece that no worker came back
    from; `check` raises when the source cannot be read any more. `facts` has by format what the
    sources say of themselves (`Connector.facts`).
    """

    identity: tuple[str, ...]
    pieces: Iterable[P]
    samples: Callable[[P], Iterable[Sample]]
    check: Callable[[], object] = lambda: None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Conversion:
    """The sum of writing a dataset.

    `told` has the first failures' messages, `errors` the URL of the file with all of them.
    `resumed` of the samples had been written by an earlier run.
    """

    done: int = 0
    failed: int = 0
    resumed: int = 0
    loss: Loss = field(default_factory=Loss)
    told: list[str] = field(default_factory=list)
    errors: str | None = None


@dataclass(frozen=True, slots=True)
class _KeeperFactory(Generic[P]):
    """Makes the worker that writes a chunk, or finds it written; picklable."""

    factory: WriterFactory[P]
    folder: str
    resumed: bool

    def __call__(self) -> Callable[[Chunk[P]], Booked]:
        """Make the worker, in the process that will use it."""
        kept = Kept(open_sink(self.factory.target), self.folder)
        sign(kept)
        return _Keeper(self.factory(), kept, self.resumed)


@dataclass(frozen=True, slots=True)
class _Keeper(Generic[P]):
    write: Callable[[Chunk[P]], Exported]
    kept: Kept
    resumed: bool

    def __call__(self, chunk: Chunk[P]) -> Booked:
        name = _name(chunk)
        found = self.kept.find(name) if self.resumed else None
        return found or self.kept.put(name, self.write(chunk))


def _name(chunk: Chunk[P]) -> str:
    """Return a chunk's name: names sort as the listing does, and change with the samples."""
    return f"{chunk.number:010d}.{chunk.part}-{chunk.items.identity().hex()}"


def _halves(chunk: Chunk[P]) -> list[Chunk[P]]:
    halves = chunk.items.halves()
    if len(halves) < 2:
        return [chunk]
    return [Chunk(chunk.number, half, f"{chunk.part}{side}") for side, half in enumerate(halves)]


def write_dataset(
    factory: WriterFactory[P],
    source: Source[P],
    runner: Runner,
    on_progress: Callable[[int], None] = lambda done: None,
    *,
    most_failures: int | None = None,
) -> Conversion:
    """Write all pieces and then what is global; return the sum.

    The same call, repeated after the process died, goes on where it stopped.

    Raises:
        TooManyErrors: more than `most_failures` inputs failed, or all do and the source is gone.
        Exception: what a worker raised that is no bad input.
    """
    sink, target = open_sink(factory.target), factory.relabel.target
    # Workers may run elsewhere: a relative target is one below this process's directory.
    factory = replace(factory, target=sink.url)
    spaces = sorted(repr(remap.source) for remap in factory.relabel.remaps.values())
    command = (factory.format, repr(target), *spaces, *source.identity)
    checkpoint = Checkpoint.begin(sink, command)
    drive = _Drive(source, checkpoint.kept, most_failures)
    keeper = _KeeperFactory(factory, checkpoint.kept.folder, checkpoint.resumed)
    numbered = (
        Chunk(number, piece) for number, piece in enumerate(begun(factory.target, source.pieces))
    )
    try:
        with closing(runner.map(keeper, numbered, _halves)) as outcomes:
            for outcome in outcomes:
                on_progress(drive.take(outcome))
        drive.tell(sink)
        last = connector(factory.format).finish(sink, drive.spool, target, source.facts)
    except TooManyErrors as error:
        drive.tell(sink)
        raise TooManyErrors(f"{error}; stopped, see {drive.total.errors}") from error
    except SegmillError:
        if drive.ended:  # two records in one place, say: what was written is not to be built on
            checkpoint.end()
        raise
    if last is not None:
        drive.total.loss += last
    checkpoint.end()
    ended(factory.target)
    return drive.total


class _Drive(Generic[P]):
    """The sum so far, and when to stop."""

    def __init__(self, source: Source[P], kept: Kept, most_failures: int | None) -> None:
        self.total, self.spool, self.ended = Conversion(), Spool(kept), False
        self._source, self._kept, self._most = source, kept, most_failures
        self._barren = 0

    def take(self, outcome: Outcome[Chunk[P], Booked]) -> int:
        """Book a chunk and return how many samples are booked so far."""
        booked, total = outcome.result or self._lost(outcome), self.total
        self.spool.add(booked)
        total.done += booked.done
        total.failed += booked.failed
        total.loss += booked.loss
        total.resumed += booked.done + booked.failed if booked.resumed else 0
        if self._most is not None and total.failed > self._most:
            raise TooManyErrors(f"{total.failed} inputs failed, --max-errors allows {self._most}")
        self._barren = 0 if booked.done else self._barren + bool(booked.failed)
        if self._barren and self._barren % _BARREN == 0:
            self._look()
        return total.done + total.failed

    def _look(self) -> None:
        try:
            self._source.check()
        except (SegmillError, OSError) as error:
            raise TooManyErrors(f"every input fails, and the source is gone: {error}") from error

    def _lost(self, outcome: Outcome[Chunk[P], Booked]) -> Booked:
        """Book a chunk that came back with an error as failures.

        Raises:
            Exception: that error, where not the samples are its cause.
        """
        chunk, error = outcome.chunk, outcome.error
        if error is None:
            raise RuntimeError("a chunk ended without a result")
        if not isinstance(error, PoisonInput):
            ours = isinstance(error, (SegmillError, OSError, MemoryError))
            if ours or not self.total.done:
                raise error
        failures = []
        for sample in self._source.samples(chunk.items):
            told = code_broke(sample, error)
            if isinstance(error, PoisonInput):
                told = PoisonInput(sample.path, error.cause, error.mend)
            failures.append(Failure.of(sample, "write", told))
        return self._kept.put(_name(chunk), Exported(failures=failures))

    def tell(self, sink: Sink) -> None:
        """Write the failures down beside the dataset; remove the file of an earlier run."""
        self.ended = True
        if not self.total.failed:
            if sink.exists(ERRORS):
                sink.remove(ERRORS)
            return
        with sink.stream(ERRORS) as file:
            for failure in self.spool.failures():
                if len(self.total.told) < _TOLD:
                    self.total.told.append(failure.message)
                file.write(json.dumps(failure.to_dict()).encode() + b"\n")
        self.total.errors = sink.url_of(ERRORS)
