"""Work on samples that lie far away: many requests on the way at once, few samples on the CPU.

A request to an object store takes tens of milliseconds, the work on a sample a few. So samples of
remote trees and sinks are worked on by many threads, which mostly wait. Threads that are ready to
compute would stand in each other's way, and in that of the thread that does the requests, so each
needs a permit to compute and gives it back while it waits (`waiting`). Local samples take no part
in any of this.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import TYPE_CHECKING, Final, TypeVar

from pipeline.files import ARCHIVE_URL, local_path
from pipeline.runner import cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from concurrent.futures import Future

T = TypeVar("T")
R = TypeVar("R")

IN_FLIGHT: Final = 64
"""Most samples that one process works on at once; also the connections that it keeps open."""
_IN_FLIGHT_ON_NODE: Final = 256
_LEAST_IN_FLIGHT: Final = 4
_PIECES_AHEAD: Final = 4
_CPUS: Final = "SEGMILL_ACTOR_CPUS"
_ACTORS: Final = "SEGMILL_ACTORS"

_PATIENCE: Final = 2.0
"""Seconds without a permit given back, after which those with the permits are taken for stuck."""


class _Permits:
    """Leave to compute, for so many threads at once."""

    def __init__(self, count: int) -> None:
        self._free, self._moved = threading.Semaphore(count), time.monotonic()

    def take(self) -> None:
        """Wait for a permit; the thread holds no lock yet."""
        self._free.acquire()

    def take_again(self) -> bool:
        """Wait for a permit in the middle of a sample; False where none moves any more.

        The thread may hold a lock which those with the permits wait for. They may be at work on
        huge images as well: of all that wait one goes on without a permit, then one more.
        """
        while not self._free.acquire(timeout=_PATIENCE):
            if time.monotonic() - self._moved > _PATIENCE:
                self._moved = time.monotonic()
                return False
        return True

    def give_back(self) -> None:
        """Let the next one compute."""
        self._moved = time.monotonic()
        self._free.release()


class _Own(threading.local):
    """What a thread holds: a permit to compute, and the files of the sample it works on."""

    permit: _Permits | None = None
    files: dict[str, bytes] | None = None


_OWN: Final = _Own()


def is_far(url: str) -> bool:
    """Tell whether a file, or the archive that it lies in, is on another machine.

    >>> [is_far(u) for u in ("/d/a.png", "zip://a.png::/d.zip", "zip://a.png::s3://b/d.zip")]
    [False, False, True]
    """
    if url[:1] == "/":
        return False
    archive = ARCHIVE_URL.fullmatch(url)
    return local_path(archive[3] if archive else url) is None


def listed_ahead(pieces: Iterable[T], *, far: bool) -> Iterator[T]:
    """Yield the pieces of a listing; of one far away the next few are fetched meanwhile.

    Where a listing passes from folder to folder it makes requests in series: no work waits then.

    Raises:
        Exception: what the listing raised, in its place.
    """
    feed = iter(pieces)
    if not far:
        yield from feed
        return
    lister = ThreadPoolExecutor(1, "segmill-listing")
    try:
        window = deque(lister.submit(next, feed, None) for _ in range(_PIECES_AHEAD))
        while (piece := window.popleft().result()) is not None:
            window.append(lister.submit(next, feed, None))
            yield piece
    finally:
        lister.shutdown(wait=False, cancel_futures=True)


@dataclass(slots=True)
class Ahead:
    """Maps over samples, many at once when they lie far away; one for each worker."""

    _warm: bool = False

    def map(self, function: Callable[[T], R], items: Iterable[T], *, far: bool) -> Iterator[R]:
        """Yield the results in order; with `far`, many items are worked on at once.

        At most that many results wait to be taken. `function` may run in any thread; the worker's
        first item runs alone, so that what all need (an index, a connection) is fetched once.

        Raises:
            Exception: what `function` raised; items after that one may have been worked on.
        """
        if not far:
            yield from map(function, items)
            return
        feed = iter(items)
        if not self._warm:
            for item in feed:
                yield function(item)
                self._warm = True
                break
        pool, permits, most = _pool(os.getpid())
        window: deque[Future[R]] = deque()
        try:
            for item in feed:
                if len(window) == most:
                    yield _result(window.popleft())
                window.append(pool.submit(_with_permit, permits, function, item))
            while window:
                yield _result(window.popleft())
        finally:
            for future in window:
                future.cancel()


def actor_env(cpus: float, actors: int | None) -> dict[str, str]:
    """Return the environment of a job's actors: the CPUs of each, and how many there may be."""
    return {_CPUS: f"{cpus:g}", _ACTORS: str(actors or "")}


def share(environment: Mapping[str, str], cores: int) -> tuple[int, int]:
    """Return this process's permits to compute and its samples in flight, on so many cores.

    >>> share({}, 32), share(actor_env(1, None), 32), share(actor_env(4, 2), 32)
    ((32, 64), (1, 8), (4, 64))
    """
    cpus = float(environment.get(_CPUS) or 0)
    if not cpus:
        return cores, IN_FLIGHT
    on_node = max(1, min(int(cores / cpus), int(environment.get(_ACTORS) or 1 << 30)))
    in_flight = min(IN_FLIGHT, max(_LEAST_IN_FLIGHT, _IN_FLIGHT_ON_NODE // on_node))
    return min(cores, ceil(cpus)), in_flight


@cache
def _pool(process: int) -> tuple[ThreadPoolExecutor, _Permits, int]:
    """Return the threads that this process's workers share, the permits, the threads' number."""
    permits, most = share(os.environ, cores())
    return ThreadPoolExecutor(most, "segmill-ahead"), _Permits(permits), most


def _result(future: Future[R]) -> R:
    with waiting():  # this thread may itself be at work on a sample
        return future.result()


def _with_permit(permits: _Permits, function: Callable[[T], R], item: T) -> R:
    permits.take()
    _OWN.permit = permits
    try:
        return function(item)
    finally:
        _give_back()


def _give_back() -> _Permits | None:
    permits, _OWN.permit = _OWN.permit, None
    if permits is not None:
        permits.give_back()
    return permits


@contextmanager
def waiting() -> Iterator[None]:
    """Give this thread's permit to compute back for as long as the block waits for an answer."""
    permits = _give_back()
    try:
        yield
    finally:
        if permits is not None and permits.take_again():
            _OWN.permit = permits


@contextmanager
def fetched_once() -> Iterator[None]:
    """Keep what this thread reads from remote trees until the block ends: no file comes twice.

    For the work on one sample: of its image first the header is asked for, then the whole.
    """
    before = _OWN.files
    if before is None:
        _OWN.files = {}
    try:
        yield
    finally:
        _OWN.files = before


def held_files() -> dict[str, bytes] | None:
    """Return the files that `fetched_once` keeps for this thread, by URL; None outside of it."""
    return _OWN.files
