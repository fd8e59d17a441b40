"""What a run came to: its sum, its failures by class, and where the time of its workers went.

The driver keeps a `RunReport` and books each shard into it; a `Shift` in each worker says how the
worker's own time passed. Nothing here grows with the images.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import SumMismatch
from pipeline.runner import Crew
from pipeline.spent import ABSENT, BESIDE, DRIVER, REST, STAGES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pipeline.run import Shelved

_WORKERS_TOLD: Final = 64


class Shift:
    """How one worker's time passes; made where the worker is, before it is."""

    def __init__(self) -> None:
        self.worker = f"{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}-{id(self)}"
        self._since = self._began = time.perf_counter()
        self._startup = 0.0

    def ready(self) -> None:
        """Note that the worker is there."""
        self._since = time.perf_counter()
        self._startup = self._since - self._began

    def begin(self) -> None:
        """Note that a shard came."""
        self._began = time.perf_counter()

    def end(self, spent: Mapping[str, float]) -> dict[str, float]:
        """Return the seconds since the last shard's end, by stage.

        `spent` says what stages the shard's time went to; what they leave is `REST`, the time
        between shards is idle.
        """
        now = time.perf_counter()
        own = sum(seconds for stage, seconds in spent.items() if stage not in BESIDE)
        found = {**spent, "idle": self._began - self._since}
        found[REST] = found.get(REST, 0.0) + max(0.0, now - self._began - own)
        if self._startup:
            found["startup"] = found.get("startup", 0.0) + self._startup
        self._since, self._startup = now, 0.0
        return found


@dataclass(slots=True)
class RunReport:
    """The sum of a run, its snapshot, and where its time went."""

    run: str
    repeated: int = 0
    """Inputs that the listing names again; they are among the skipped."""
    inputs: int = 0
    done: int = 0
    skipped: int = 0
    failed: int = 0
    resumed: bool = False
    adopted: int = 0
    changed: int = 0
    """Of those to do, how many the store held of another fingerprint or labeller."""
    version: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage, summed over the workers; and the driver's own (`DRIVER`)."""
    failures: dict[str, int] = field(default_factory=dict)
    """Failed inputs by the class of their error."""
    pixels: int = 0
    todo: int = 0
    """Inputs that were left to do when the work began."""
    wall: float = 0.0
    """Seconds between the first shard's start and the last one's end, starting workers included."""
    workers: int = 0
    """The most that were there at once, of those that got a shard."""
    devices_lost: int = 0
    """How often a worker was ended since its device had failed."""
    by_worker: dict[str, dict[str, float]] = field(default_factory=dict)
    """What each worker told: its `seconds`, and of those `forward` and `wait`."""
    crew: Crew = field(default_factory=Crew)
    facts: dict[str, Any] = field(default_factory=dict)
    """What made the rows: model, model_digest, segmill, gpus_per_worker."""
    _start: float = 0.0
    _last: float = 0.0
    _past: float = 0.0
    _most: int = 0
    _heard: dict[str, float] = field(default_factory=dict)

    def check_sum(self) -> None:
        """Raise SumMismatch unless inputs = done + skipped + failed."""
        if self.inputs != self.done + self.skipped + self.failed:
            raise SumMismatch(
                f"run {self.run}: {self.inputs} inputs, but {self.done} done + {self.skipped} "
                f"already done + {self.failed} failed; please report this"
            )

    def begin(self, todo: int, crew: Crew) -> None:
        """Note that workers are called to `todo` inputs."""
        self.todo, self.crew = todo, crew
        self._start = self._last = time.monotonic()

    def book(self, shelved: Shelved) -> None:
        """Add a shard that ended."""
        self._last = time.monotonic()
        self.wall = self._last - self._start
        self.done += shelved.done
        self.failed += len(shelved.failures)
        self.pixels += shelved.pixels
        for failure in shelved.failures:
            self.failures[failure.error] = self.failures.get(failure.error, 0) + 1
        for stage, spent in shelved.seconds.items():
            self.spend(stage, spent)
        if shelved.worker:
            self._hear(shelved.worker, shelved.seconds)
        self._most = max(self._most, self.crew.alive)
        self.workers = min(self._most, len(self._heard))
        self.devices_lost = self.crew.lost

    def spend(self, stage: str, seconds: float) -> None:
        """Add seconds to a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def _hear(self, worker: str, seconds: Mapping[str, float]) -> None:
        before = self._heard.get(worker)
        told = sum(spent for stage, spent in seconds.items() if stage not in BESIDE)
        # Of a worker's first shard only the worker knows how long before it began to start.
        self._past += told if before is None else self._last - before
        self._heard[worker] = self._last
        mine = self.by_worker.setdefault(worker, {"seconds": 0.0, "forward": 0.0, "wait": 0.0})
        mine["seconds"] += told
        for stage in ("forward", "wait"):
            mine[stage] += seconds.get(stage, 0.0)

    def _tails(self) -> Iterator[float]:
        """Yield the seconds that the workers which are there have said nothing of."""
        last = sorted(self._heard.values(), reverse=True)
        yield from (self._last - heard for heard in last[: self.crew.alive])

    def worker_seconds(self) -> float:
        """Return the workers' lives added up, to the last shard's end."""
        return self._past + sum(self._tails())

    def end(self) -> None:
        """Note that all work is done: who waited for the last shard was idle.

        After this `workers` x `wall` is what the workers' stages sum to.
        """
        for tail in list(self._tails()):
            self.spend("idle", tail)
            self._past += tail
        self._heard.clear()
        self.crew = Crew()
        self.spend(ABSENT, max(0.0, self.workers * self.wall - self._past))

    @property
    def images_per_second(self) -> float:
        """Done inputs a second of `wall`."""
        return self.done / self.wall if self.wall else 0.0

    def shares(self) -> dict[str, float]:
        """Return the share of the workers' time that each stage of it took, largest first.

        They sum to 1 but for what no clock of the workers saw: results on their way.
        """
        whole = self.worker_seconds() + self.seconds.get(ABSENT, 0.0)
        beside = {*BESIDE, *DRIVER}
        own = {stage: spent for stage, spent in self.seconds.items() if stage not in beside}
        ranked = sorted(own.items(), key=lambda item: -item[1])
        return {stage: spent / whole for stage, spent in ranked} if whole else {}

    def bottleneck(self) -> str | None:
        """Return what took most of the workers' time; None when none worked."""
        first = next(iter(self.shares()), None)
        if first == "wait":
            first = max(("read", "decode"), key=lambda stage: self.seconds.get(stage, 0.0))
        known = STAGES.get(first or "")
        return known.cause if known and known.cause else first

    def to_dict(self) -> dict[str, Any]:
        """Return the run's summary as plain data, as stores keep it."""
        return {
            "run": self.run,
            "inputs": self.inputs,
            "done": self.done,
            "skipped": self.skipped,
            "failed": self.failed,
            "repeated": self.repeated,
            "resumed": self.resumed,
            "adopted": self.adopted,
            "changed": self.changed,
            "failures": dict(sorted(self.failures.items())),
            **self.facts,
            **self.figures(),
        }

    def figures(self) -> dict[str, Any]:
        """Return where the time went, as plain data."""
        return {
            "images_per_second": round(self.images_per_second, 3),
            "pixels": self.pixels,
            "workers": self.workers,
            "wall": round(self.wall, 3),
            "worker_seconds": round(self.worker_seconds(), 3),
            "stages": {k: round(v, 3) for k, v in sorted(self.seconds.items())},
            "shares": {k: round(v, 4) for k, v in self.shares().items()},
            "bottleneck": self.bottleneck(),
            "devices_lost": self.devices_lost,
            "by_worker": self._each(),
        }

    def _each(self) -> list[dict[str, Any]]:
        """Return how busy each worker's device was, of those that lived longest."""
        longest = sorted(self.by_worker.items(), key=lambda w: (-w[1]["seconds"], w[0]))
        return [
            {
                "worker": name.rsplit("-", 2)[0],
                "seconds": round(told["seconds"], 3),
                "device_busy": round(told["forward"] / max(told["seconds"], 1e-9), 4),
                "decode_wait": round(told["wait"] / max(told["seconds"], 1e-9), 4),
            }
            for name, told in longest[:_WORKERS_TOLD]
        ]
