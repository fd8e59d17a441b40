"""The map over chunks on Ray: actors that keep their worker warm and die without harm.

Of a dead actor's chunks the one that it worked on is the suspect (`pipeline.isolation` judges it);
those that it had ended count, those that it had not begun go to others. An actor that says its
device is lost is as good as dead. One that loses it at once is not replaced while others work.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from pipeline.errors import UsageError, WorkerDied
from pipeline.isolation import Losses, after_death, device_lost, poison
from pipeline.runner import Crew, Outcome, Resources, cores, outcome_of
from pipeline.runs.metrics import COMMON_TAGS
from pipeline.trees.ahead import actor_env

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping

    from pipeline.runs.metrics import Meter, Metric

LOG = logging.getLogger("segmill")
C = TypeVar("C")
R = TypeVar("R")

_START_DEATHS_TOLERATED: Final = 3
_IN_FLIGHT: Final = 2
_SILENT_SECONDS: Final = 15.0
_LAST_WORDS_SECONDS: Final = 15.0
_CONNECT_SECONDS: Final = 20.0

_CPU_ONLY: Final = {
    # Ray hides no GPU from an actor that asked for none: all of them would crowd onto the first.
    "CUDA_VISIBLE_DEVICES": "",
    # glibc gives freed pages back at once and faults them in again for the next batch: with these,
    # 22.9 CPU-ms an image became 10.1 in a measured CPU-only labelling job.
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_ARENA_MAX": "1",
}


@dataclass(frozen=True, slots=True)
class RayRunner:
    """Runs on Ray actors, on this machine's cores or on the cluster at `address`."""

    resources: Resources = field(default_factory=Resources)
    address: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    crew: Crew = field(default_factory=Crew, compare=False)

    @property
    def name(self) -> str:
        """Where the work runs."""
        return "ray"

    @property
    def meter(self) -> Callable[[Metric], Meter]:
        """What makes a metric that Ray's endpoints show."""
        return ray_meter

    def map(
        self,
        make_worker: Callable[[], Callable[[C], R]],
        chunks: Iterable[C],
        split: Callable[[C], list[C]] | None = None,
    ) -> Generator[Outcome[C, R]]:
        """Yield the outcome of each chunk, in the order in which they end."""
        started = start_ray(self.address)
        pool: _Pool[C, R] = _Pool(self, make_worker, split, own_session=started)
        try:
            yield from pool.run(chunks)
        finally:
            pool.close()
            if started:
                import ray

                ray.shutdown()

    def isolated(self) -> RayRunner:
        """Return this runner: actors are processes of their own."""
        return self


def start_ray(address: str | None = None) -> bool:
    """Connect to Ray, or start it on this machine; return whether this call began the session.

    In the main thread: Ray's processes die with the thread that began them (PR_SET_PDEATHSIG), and
    only there does Ray end them when the driver is told to stop.

    Raises:
        UsageError: no cluster answers at the address.
    """
    import ray

    if ray.is_initialized():
        return False
    target = address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if target:
        _check_reachable(target)
        try:
            ray.init(address=target, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            text = str(error).splitlines()[0]
            raise UsageError(f"no Ray cluster answers at {target!r}: {text}") from None
        return True
    # A session of our own listens on the loopback only. Left alone, Ray 2.60 turns token
    # authentication on and leaves a token file that later sessions then require.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    # Actors have an environment of their own, so that workers started in advance serve nobody.
    os.environ.setdefault("RAY_enable_worker_prestart", "0")
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    # "local": without it Ray joins whatever cluster runs on this machine, and refuses num_cpus.
    ray.init(address="local", num_cpus=cores(), include_dashboard=False, **options)
    return True


def _check_reachable(address: str) -> None:
    """Raise UsageError when nothing listens at HOST:PORT, where Ray would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():  # "auto", "local"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f"no Ray cluster answers at {address!r}: {error}") from None


def ray_meter(metric: Metric) -> Meter:
    """Make a metric of this process's; Ray must be up."""
    from ray.util.metrics import Counter, Gauge

    tags = COMMON_TAGS + metric.tags
    if metric.kind == "gauge":
        gauge = Gauge(metric.name, metric.says, tags)
        return lambda value, tags: gauge.set(value, dict(tags))
    counter = Counter(metric.name, metric.says, tags)
    return lambda value, tags: counter.inc(value, dict(tags))


class _Actor:
    """What runs inside a Ray actor: one worker, kept warm."""

    def __init__(self, make_worker: Callable[[], Callable[[Any], Any]]) -> None:
        self._make_worker = make_worker

    def ready(self) -> None:
        # Not in the constructor: what a method raises comes back as it was raised.
        self._worker = self._make_worker()

    def work(self, chunk: Any) -> Outcome[Any, Any]:
        return outcome_of(self._worker, chunk)


class _Pool(Generic[C, R]):
    """Actors that are pulled by the driver: each holds at most `_IN_FLIGHT` chunks."""

    def __init__(
        self,
        runner: RayRunner,
        make_worker: Callable[[], Callable[[C], R]],
        split: Callable[[C], list[C]] | None,
        *,
        own_session: bool,
    ) -> None:
        import ray

        self._own_session = own_session and not (runner.address or os.environ.get("RAY_ADDRESS"))
        self._ray, self._split, self._crew = ray, split, runner.crew
        self._resources = runner.resources
        cpu_only = {} if runner.resources.gpus else _CPU_ONLY
        place = actor_env(runner.resources.cpus, runner.resources.max_actors)
        self._make: Callable[[], Any] = lambda: (
            ray.remote(_Actor)
            .options(
                num_cpus=runner.resources.cpus,
                num_gpus=runner.resources.gpus,
                # Without a limit a chunk that kills its process would run for ever.
                max_restarts=0,
                max_task_retries=0,
                runtime_env={"env_vars": {**cpu_only, **place, **runner.env}},
            )
            .remote(make_worker)
        )
        self._starting: dict[Any, Any] = {}  # ready-ref -> actor
        self._queues: dict[Any, deque[Any]] = {}  # actor -> refs, oldest first
        self._chunks: dict[Any, tuple[C, Any]] = {}  # ref -> (chunk, actor)
        self._deaths: dict[int, int] = {}  # id of a chunk -> workers that died over it
        self._again: deque[C] = deque()
        self._start_deaths = 0
        self._losses = Losses(self._crew)
        self._proven: set[Any] = set()  # actors that did a chunk
        self._given_up = 0  # places whose actors fail as soon as they are there

    def run(self, chunks: Iterable[C]) -> Iterator[Outcome[C, R]]:
        feed = iter(chunks)
        for _ in range(self._resources.min_actors):
            self._start_actor()
        more = True
        while True:
            more = self._feed(feed) and more
            self._count()
            if not more and not self._again and not self._chunks:
                return
            yield from self._collect()

    def _count(self) -> None:
        crew = self._crew
        crew.alive, crew.starting = len(self._queues), len(self._starting)
        crew.in_flight = len(self._chunks)

    def close(self) -> None:
        if not self._ray.is_initialized():  # killing an actor would start a new session
            return
        for actor in [*self._queues, *self._starting.values()]:
            self._ray.kill(actor)

    def _start_actor(self) -> None:
        actor = self._make()
        self._starting[actor.ready.remote()] = actor

    def _most(self) -> int:
        """Return how many actors there may be: what was asked for, or fits, less the bad places."""
        return max(1, self._places() - self._given_up)

    def _places(self) -> int:
        wanted = self._resources
        if wanted.max_actors is not None:
            return wanted.max_actors
        held = self._ray.cluster_resources()
        kind, each = ("GPU", wanted.gpus) if wanted.gpus else ("CPU", max(wanted.cpus, 1e-9))
        # One more than fits, on a cluster: what waits is what makes an autoscaler start a node.
        spare = 0 if self._own_session else 1
        return max(wanted.min_actors, int(held.get(kind, 0) // each) + spare)

    def _feed(self, feed: Iterator[C]) -> bool:
        """Hand chunks to actors with room; return False when the feed is at its end."""
        for actor, refs in sorted(self._queues.items(), key=lambda item: len(item[1])):
            while len(refs) < _IN_FLIGHT:
                chunk = self._again.popleft() if self._again else next(feed, None)
                if chunk is None:
                    return False
                ref = actor.work.remote(chunk)
                refs.append(ref)
                self._chunks[ref] = (chunk, actor)
        if len(self._queues) + len(self._starting) < self._most():
            self._start_actor()  # work is left and every actor is full
        return True

    def _collect(self) -> Iterator[Outcome[C, R]]:
        """Wait for one event: an actor that is ready, or a chunk that ended."""
        refs = [*self._chunks, *self._starting]
        ready, _ = self._ray.wait(refs, num_returns=1, timeout=_SILENT_SECONDS)
        if not ready and not self._queues:
            self._explain_waiting()
        for ref in ready:
            if ref in self._starting:
                self._begin(ref)
            elif ref in self._chunks:
                yield from self._end(ref)

    def _explain_waiting(self) -> None:
        """Say what keeps the first actor from starting.

        Raises:
            UsageError: this machine's own session can never hold one.
        """
        wanted, held = self._resources, self._ray.cluster_resources()
        needs = f"{wanted.gpus:g} GPU and {wanted.cpus:g} CPU"
        has = f"{held.get('GPU', 0):g} GPU and {held.get('CPU', 0):g} CPU"
        fits = held.get("GPU", 0) >= wanted.gpus and held.get("CPU", 0) >= wanted.cpus
        if self._own_session and not fits:
            raise UsageError(f"an actor takes {needs}, this machine has {has}; ask for less")
        LOG.warning("waiting for an actor to start: it takes %s, the cluster has %s", needs, has)

    def _begin(self, ref: Any) -> None:
        actor = self._starting.pop(ref)
        try:
            self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            if not isinstance(error.cause, WorkerDied):
                raise error.cause if isinstance(error.cause, Exception) else error from None
            self._ray.kill(actor)
            self._fail_to_start(error.cause)
        except self._ray.exceptions.RayError as error:
            self._fail_to_start(error)
        else:
            self._queues[actor] = deque()
            self._start_deaths = 0

    def _fail_to_start(self, error: Exception) -> None:
        """Start another actor in the place of one that did not come to work.

        Raises:
            WorkerDied: they fail again and again, and nobody is at work.
        """
        self._start_deaths += 1
        text = " ".join(str(error).split())
        if self._start_deaths <= _START_DEATHS_TOLERATED:
            LOG.warning("an actor died while it started (%s); another is started", text)
            self._start_actor()
        elif self._queues:
            self._start_deaths = 0
            self._give_up(text)
        else:
            raise WorkerDied(
                f"{self._start_deaths} actors died while they started, the last: {text}"
            ) from error

    def _give_up(self, why: str) -> None:
        self._given_up += 1
        LOG.warning("actors fail as soon as they start (%s); from now on one fewer", why)

    def _end(self, ref: Any) -> Iterator[Outcome[C, R]]:
        chunk, actor = self._chunks[ref]
        try:
            outcome = self._answer(chunk, ref, None)
        except self._ray.exceptions.RayError:
            yield from self._bury(actor)
            return
        except WorkerDied as error:
            yield from self._bury(actor, error)
            return
        del self._chunks[ref]
        self._queues[actor].remove(ref)
        self._proven.add(actor)
        yield outcome

    def _answer(self, chunk: C, ref: Any, patience: float | None) -> Outcome[C, R]:
        """Return what an actor said of a chunk.

        Raises:
            RayError: it died before it said anything.
            WorkerDied: it lives, and its device does not.
        """
        try:
            outcome = self._ray.get(ref, timeout=patience)
        except self._ray.exceptions.RayTaskError as error:  # alive, but its answer can't be sent
            cause = error.cause if isinstance(error.cause, Exception) else error
            outcome = Outcome(chunk, error=cause)
        if isinstance(outcome.error, WorkerDied):
            raise outcome.error
        self._deaths.pop(id(chunk), None)
        self._losses.end()
        # The chunk came back as a copy; callers may compare it by identity.
        return Outcome(chunk, outcome.result, outcome.error)

    def _bury(self, actor: Any, lost: WorkerDied | None = None) -> Iterator[Outcome[C, R]]:
        """Take a dead actor's last answers; of what it left, the oldest chunk is the suspect.

        Raises:
            WorkerDied: one actor after the other loses its device, as this one did.
        """
        self._ray.kill(actor)  # it may live on, unreachable
        left: list[C] = []
        for ref in self._queues.pop(actor):
            chunk, _ = self._chunks.pop(ref)
            try:
                outcome = self._answer(chunk, ref, _LAST_WORDS_SECONDS)
            except (self._ray.exceptions.RayError, WorkerDied):
                left.append(chunk)
            else:
                yield outcome
        new = actor not in self._proven
        self._proven.discard(actor)
        if left:
            suspect, innocent = left[0], left[1:]
            self._again.extendleft(reversed(innocent))
            if lost is not None:
                self._losses.add(lost)
                if new and id(suspect) not in self._deaths and self._queues:
                    self._give_up(str(lost))
            yield from self._judge(suspect, lost)
        if len(self._queues) + len(self._starting) < min(self._resources.min_actors, self._most()):
            self._start_actor()

    def _judge(self, suspect: C, lost: WorkerDied | None) -> Iterator[Outcome[C, R]]:
        deaths = self._deaths.pop(id(suspect), 0) + 1
        LOG.warning(
            "an actor %s; what it left is done again (death %d)", lost or "died at its work", deaths
        )
        again = after_death(suspect, deaths, self._split)
        for part, charged in again:
            self._deaths[id(part)] = charged
            self._again.append(part)
        if not again:
            yield Outcome(suspect, error=poison() if lost is None else device_lost())
