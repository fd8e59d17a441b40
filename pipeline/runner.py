"""One map over chunks of work: in this process and its threads, or on Ray actors.

`Runner.map(make_worker, chunks)` gives each worker one object (`make_worker()`, a model or a
connector kept warm) and feeds it chunks. Same functions, same results either way; only the order of
the outcomes differs. Chunks are pulled: the runner never holds more than a few a worker.

A chunk whose work raises comes back as an outcome with the error. On Ray, a chunk that kills its
worker twice is halved until the one poisonous item stands alone (`PoisonInput`). In this process
such an item ends the job, as nothing can stand between; the `isolated` runner has child processes
for that, and a run that is taken up after a crash gets it.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from pipeline.errors import UsageError, WorkerDied
from pipeline.numbers import whole

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from pipeline.isolation import Child
    from pipeline.runs.metrics import Meter, Metric

LOG = logging.getLogger("segmill")
C = TypeVar("C")
R = TypeVar("R")

_PATIENCE_SECONDS: Final = 10.0
_WORTH_RAY_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Outcome(Generic[C, R]):
    """A chunk and what became of it: a result, or the error that its work raised."""

    chunk: C
    result: R | None = None
    error: BaseException | None = None


@dataclass(slots=True)
class Crew:
    """How the workers of a map fare now: its runner keeps it, whoever maps reads it."""

    alive: int = 0
    starting: int = 0
    in_flight: int = 0
    """Chunks that workers hold: at work, or waiting for it."""
    lost: int = 0
    """Devices that failed under a worker."""


class Runner(Protocol):
    """Maps workers over chunks."""

    @property
    def name(self) -> str:
        """Where the work runs: local or ray."""

    @property
    def crew(self) -> Crew:
        """The workers of the map that runs now, or ran last."""

    @property
    def meter(self) -> Callable[[Metric], Meter] | None:
        """What makes a metric where the work runs; None where nothing collects metrics."""

    def map(
        self,
        make_worker: Callable[[], Callable[[C], R]],
        chunks: Iterable[C],
        split: Callable[[C], list[C]] | None = None,
    ) -> Generator[Outcome[C, R]]:
        """Yield the outcome of each chunk, in the order in which they end.

        `split` halves a chunk that kills its worker; it returns one chunk when it cannot.
        """

    def isolated(self) -> Runner:
        """Return the runner that outlives a chunk which kills its worker, at some seconds' cost."""


def cores() -> int:
    """Return the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class LocalRunner:
    """Runs in this process: `workers` threads, each with a worker of its own.

    The libraries that do the work (libdeflate, OpenCV, torch) release the interpreter's lock.
    """

    workers: int = field(default_factory=cores)
    in_children: bool = False
    crew: Crew = field(default_factory=Crew, compare=False)

    @property
    def name(self) -> str:
        """Where the work runs."""
        return "local"

    @property
    def meter(self) -> None:
        """Nothing collects metrics from this process."""

    def map(
        self,
        make_worker: Callable[[], Callable[[C], R]],
        chunks: Iterable[C],
        split: Callable[[C], list[C]] | None = None,
    ) -> Generator[Outcome[C, R]]:
        """Yield the outcome of each chunk, in the order in which they end."""
        from pipeline.isolation import Child

        kind: Callable[..., _Tried[C, R]] = Child if self.in_children else _Here
        make = partial(kind, make_worker, split, self.crew)
        threads = _Threads(make, iter(chunks), self.workers)
        self.crew.alive = self.crew.in_flight = self.workers
        try:
            yield from threads.outcomes()
        finally:
            threads.stop()

    def isolated(self) -> LocalRunner:
        """Return this runner with its workers in child processes."""
        return replace(self, in_children=True)


class _Tried(Protocol[C, R]):
    """A worker as a thread holds it: gives a chunk's outcome, or those of its parts."""

    def __call__(self, chunk: C) -> Iterator[Outcome[C, R]]: ...

    def close(self) -> None: ...


class _Here(Generic[C, R]):
    """A worker in this process; in a child from when this process loses its device."""

    def __init__(
        self,
        make_worker: Callable[[], Callable[[C], R]],
        split: Callable[[C], list[C]] | None,
        crew: Crew,
    ) -> None:
        self._again = make_worker, split, crew
        self._worker = make_worker()
        self._child: Child[C, R] | None = None

    def __call__(self, chunk: C) -> Iterator[Outcome[C, R]]:
        if self._child is None:
            outcome = outcome_of(self._worker, chunk)
            if not isinstance(outcome.error, WorkerDied):
                yield outcome
                return
            from pipeline.isolation import Child

            LOG.warning("work goes on in a child process: %s", outcome.error)
            self._again[2].lost += 1
            self._child = Child(*self._again)
        yield from self._child(chunk)

    def close(self) -> None:
        if self._child is not None:
            self._child.close()


class _Threads(Generic[C, R]):
    """Threads that pull chunks from one feed and hand outcomes to one queue."""

    def __init__(
        self, make_worker: Callable[[], _Tried[C, R]], feed: Iterator[C], count: int
    ) -> None:
        self._make_worker, self._feed, self._running = make_worker, feed, count
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._done: queue.Queue[Outcome[C, R] | BaseException | None] = queue.Queue(2 * count)
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        try:
            with closing(self._make_worker()) as worker:
                while not self._stop.is_set():
                    with self._lock:
                        chunk = next(self._feed, None)
                    if chunk is None:
                        break
                    for outcome in worker(chunk):
                        self._put(outcome)
        except BaseException as error:
            self._put(error)
        finally:
            self._put(None)

    def _put(self, item: Outcome[C, R] | BaseException | None) -> None:
        while not self._stop.is_set():
            with suppress(queue.Full):
                return self._done.put(item, timeout=0.5)

    def outcomes(self) -> Iterator[Outcome[C, R]]:
        """Yield outcomes until every thread has ended."""
        while self._running:
            item = self._done.get()
            if item is None:
                self._running -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item

    def stop(self) -> None:
        """Let the threads end, at once when the caller has given up."""
        self._stop.set()
        deadline = time.monotonic() + _PATIENCE_SECONDS
        for thread in self._threads:
            # A thread that lives on while the interpreter ends aborts the process; one that is
            # deep in a chunk when the caller gives up is not worth waiting for.
            left = max(0.0, deadline - time.monotonic())
            thread.join(timeout=left if self._running else None)


def outcome_of(worker: Callable[[C], R], chunk: C) -> Outcome[C, R]:
    """Return what became of a chunk in the hands of a worker; no error escapes."""
    try:
        return Outcome(chunk, result=worker(chunk))
    except Exception as error:
        return Outcome(chunk, error=error)


@dataclass(frozen=True, slots=True)
class Resources:
    """What one Ray actor takes, and how many there may be."""

    min_actors: int = 1
    max_actors: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.max_actors is not None and not 1 <= self.min_actors <= self.max_actors:
            raise UsageError(
                f"actors are MIN:MAX with 1 <= MIN <= MAX, not {self.min_actors}:{self.max_actors}"
            )
        if not math.isfinite(self.gpus):
            raise UsageError(f"--gpus-per-actor is a number of GPUs, not {self.gpus}")

    @classmethod
    def parse(cls, actors: str | None, *, gpus: float) -> Resources:
        """Read MAX or MIN:MAX actors; None is what fits.

        Raises:
            UsageError: it is neither, or MIN is above MAX.
        """
        if actors is None:
            return cls(gpus=gpus)
        first, _, last = actors.partition(":")
        low, high = whole(first), whole(last or first)
        if low is None or high is None:
            raise UsageError(f"--actors is MAX or MIN:MAX, like 1:8, not {actors!r}")
        return cls(low, high, gpus=gpus)


def check_runner(mode: str) -> None:
    """Raise UsageError unless there is a runner of that name."""
    if mode not in {"auto", "local", "ray"}:
        raise UsageError(f"--runner takes auto, local or ray, not {mode!r}")


def choose(
    mode: str,
    *,
    seconds: float,
    resources: Resources | None = None,
    address: str | None = None,
    workers: int | None = None,
) -> Runner:
    """Return the runner for about `seconds` of work on one core.

    `auto` takes Ray when there is a cluster to use, a GPU to pin or more than a minute of this
    machine's work: Ray costs seconds to start and a gigabyte at rest. In this process one worker
    takes the GPU, where work is to have any.

    Raises:
        UsageError: the mode is none of auto, local, ray.
    """
    check_runner(mode)
    count, resources = workers or cores(), resources or Resources()
    cluster = address or os.environ.get("RAY_ADDRESS")
    wants_ray = bool(cluster) or resources.gpus > 0 or seconds / count > _WORTH_RAY_SECONDS
    if mode == "local" or (mode == "auto" and not wants_ray):
        # One worker keeps a GPU busy; a second would only share its memory.
        return LocalRunner(1 if resources.gpus else count)
    if resources.max_actors is None and workers:
        resources = Resources(resources.min_actors, workers, resources.cpus, resources.gpus)
    from pipeline.ray_runner import RayRunner

    return RayRunner(resources, address)
