"""Work that may kill its process: who is tried again, who is halved, and who is poison.

A chunk whose worker died is tried once more, as machines die, too; then it is halved until the
poisonous input stands alone. Ray's actors and this machine's child processes judge alike.

A worker whose device fails (`WorkerDied`) can do nothing more and is ended. That is a death like
any other, as an input may be the cause; but where no worker does anything any more, no input is.
"""

from __future__ import annotations

import logging
import pickle
import signal
from collections import deque
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from pipeline.errors import PoisonInput, SegmillError, WorkerDied
from pipeline.runner import Outcome, outcome_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    from pipeline.runner import Crew

LOG = logging.getLogger("segmill")
C = TypeVar("C")
R = TypeVar("R")

_DEATHS_TOLERATED: Final = 1
_LOSSES_TOLERATED: Final = 3
"""Of devices, in a row. A chunk that is halved needs three before its innocent half is done."""


def after_death(chunk: C, deaths: int, split: Callable[[C], list[C]] | None) -> list[tuple[C, int]]:
    """Return what to try next, with the deaths that each is charged with; [] for a poison.

    >>> halves = lambda c: [c[:len(c) // 2], c[len(c) // 2:]] if len(c) > 1 else [c]
    >>> after_death("abcd", 1, halves), after_death("abcd", 2, halves)
    ([('abcd', 1)], [('ab', 1), ('cd', 1)])
    >>> after_death("ab", 2, halves), after_death("a", 1, halves), after_death("a", 2, halves)
    ([('a', 0), ('b', 0)], [('a', 1)], [])
    """
    if deaths <= _DEATHS_TOLERATED:
        return [(chunk, deaths)]
    parts = split(chunk) if split else [chunk]
    if len(parts) == 1:
        return []
    assert split is not None
    # One of the halves has killed twice already, so it is halved on its next death. An input alone
    # starts anew: it is called poison for what it did by itself, twice.
    return [(part, _DEATHS_TOLERATED if len(split(part)) > 1 else 0) for part in parts]


def poison() -> PoisonInput:
    """Return the error of an input that killed its worker twice; the driver names the file."""
    cause = "it killed the process that worked on it, twice"
    return PoisonInput("the input", cause, "look at the file with another tool, or remove it")


def device_lost() -> PoisonInput:
    """Return the error of an input at which the device failed twice, and at no other."""
    cause = "the device failed at it, twice"
    return PoisonInput("the input", cause, "label it on a CPU (--gpus-per-actor 0), or remove it")


@dataclass(slots=True)
class Losses:
    """The devices that workers lost: told to the crew, and counted in a row."""

    crew: Crew
    in_a_row: int = 0

    def add(self, error: WorkerDied) -> None:
        """Count a lost device.

        Raises:
            WorkerDied: one is lost after the other, and no chunk is done in between.
        """
        self.crew.lost += 1
        self.in_a_row += 1
        if self.in_a_row > _LOSSES_TOLERATED:
            raise WorkerDied(
                f"{self.in_a_row} workers in a row lost their device, and nothing was done in "
                f"between; the last: {error}; look after it, then run the same command again"
            ) from error

    def end(self) -> None:
        """Note that a chunk was done."""
        self.in_a_row = 0


class Child(Generic[C, R]):
    """A worker in a process of its own, started again whenever a chunk kills it.

    For one thread. Work on this machine needs it rarely: starting takes as long as importing what
    the worker needs.
    """

    def __init__(
        self,
        make_worker: Callable[[], Callable[[C], R]],
        split: Callable[[C], list[C]] | None,
        crew: Crew,
    ) -> None:
        self._make_worker, self._split = make_worker, split
        self._losses = Losses(crew)
        self._process: BaseProcess | None = None
        self._link: Connection[Any, Any] | None = None

    def __call__(self, chunk: C) -> Iterator[Outcome[C, R]]:
        """Yield the outcome of a chunk, or those of its parts when it kills its worker.

        Raises:
            WorkerDied: the worker dies before it gets any work, or loses one device after another.
            Exception: the worker cannot be made.
        """
        waiting = deque([(chunk, 0)])
        while waiting:
            part, deaths = waiting.popleft()
            done = self._done(part)
            lost = done.error if done is not None and isinstance(done.error, WorkerDied) else None
            if done is not None and lost is None:
                self._losses.end()
                yield Outcome(part, done.result, done.error)
                continue
            self.close()
            if lost is not None:
                self._losses.add(lost)
                LOG.warning("a worker process is started anew: %s", lost)
            again = after_death(part, deaths + 1, self._split)
            waiting.extend(again)  # a half that is innocent shows that devices are well
            if not again:
                yield Outcome(part, error=poison() if lost is None else device_lost())

    def _done(self, chunk: C) -> Outcome[C, R] | None:
        """Return what the process says of a chunk; None when it died over it."""
        link = self._started()
        try:
            link.send(chunk)
            done: Outcome[C, R] = link.recv()
        except (EOFError, ConnectionError):
            return None
        return done

    def _started(self) -> Connection[Any, Any]:
        if self._link is not None:
            return self._link
        # Not by fork: libraries that hold locks in other threads would wait for ever.
        context = get_context("spawn")
        link, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._make_worker), daemon=True)
        process.start()
        theirs.close()  # else its death would go unseen
        self._process, self._link = process, link
        try:
            failed: BaseException | None = link.recv()
        except (EOFError, ConnectionError):
            self.close()
            raise WorkerDied(
                "a worker process died while it started, before it had any input"
            ) from None
        if failed is not None:
            raise failed
        return link

    def close(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None and self._link is not None:
            self._process.kill()
            self._process.join()
            self._link.close()
            self._process = self._link = None


def _serve(link: Connection[Any, Any], make_worker: Callable[[], Callable[[Any], Any]]) -> None:
    """Work in the child: on each chunk that comes, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is the one to stop
    try:
        worker = make_worker()
    except Exception as error:
        _send(link, error, error)
        return
    link.send(None)
    while True:
        try:
            chunk = link.recv()
        except (EOFError, ConnectionError):
            return
        outcome = outcome_of(worker, chunk)
        _send(link, Outcome(None, outcome.result, outcome.error), outcome.error)


def _send(link: Connection[Any, Any], answer: object, error: BaseException | None) -> None:
    """Send an answer; an error that cannot be pickled, or not be read back, goes as its text."""
    try:
        if error is not None:
            pickle.loads(pickle.dumps(error))
        link.send(answer)
    except OSError:
        raise
    except Exception as refusal:  # a class's own code runs in both
        said = SegmillError(f"{type(error).__name__}: {error}" if error else str(refusal))
        link.send(said if isinstance(answer, BaseException) else Outcome(None, error=said))
