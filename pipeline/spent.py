"""Where a run's time goes, by stage: one table of the stages, and the clock of a worker.

The worker's own thread is in one stage at a time, so `OWN` and what it spends elsewhere (starting,
writing rows, waiting for the next shard) add up to its wall time. `BESIDE` are seconds of other
threads: they pass at the same time, and add up to more than it. `DRIVER` are the driver's own.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

Own = Literal["wait", "forward", "collect"]
Beside = Literal["read", "decode", "encode"]
REST: Final = "other"
ABSENT: Final = "absent"


@dataclass(frozen=True, slots=True)
class Stage:
    """Whose seconds a stage holds, what they went by in words, and what to look at when long."""

    whose: Literal["own", "beside", "shard", "between", "driver"]
    """A labeller's own thread, its other threads, else the worker's: at a shard or between two."""
    words: str
    cause: str = ""


STAGES: Final[Mapping[str, Stage]] = {
    # Waits for decoded images, and the device has nothing to do.
    "wait": Stage("own", "waited for images"),
    # Computes or waits for the device: upload, network, decision, download.
    "forward": Stage("own", "device busy", "the model"),
    # Waits for the threads that encode.
    "collect": Stage("own", "waited for encoders", "encoding the label maps"),
    "read": Stage("beside", "read", "reading the images"),
    "decode": Stage("beside", "decoded", "decoding the images"),
    "encode": Stage("beside", "encoded"),
    "label": Stage("shard", "labelled", "labelling"),
    "ingest": Stage("shard", "read the dataset", "reading the dataset"),
    "write": Stage("shard", "wrote rows", "writing the rows"),
    # At a shard, and claimed by no other stage.
    REST: Stage("shard", "did what no stage names"),
    "startup": Stage("between", "started up", "starting the workers: the run is short"),
    # The worker was called and had not begun, or it was gone.
    ABSENT: Stage(
        "between",
        "not there yet",
        "getting the workers: the run is short, or the cluster had no room for them",
    ),
    "idle": Stage(
        "between",
        "idle",
        "the driver: workers wait for shards (few shards, a slow listing or slow commits)",
    ),
    "load": Stage("driver", "loading segmill and the model"),
    "list": Stage("driver", "listing"),
    "plan": Stage("driver", "planning"),
    "adopt": Stage("driver", "looking up what is there"),
    "commit": Stage("driver", "committing"),
}
OWN, BESIDE, DRIVER = (
    tuple(name for name, stage in STAGES.items() if stage.whose == whose)
    for whose in ("own", "beside", "driver")
)


def working_seconds(stages: Mapping[str, float]) -> float:
    """Return the seconds that workers spent on their shards: no start, no waiting for shards."""
    out = {name for name, stage in STAGES.items() if stage.whose not in {"own", "shard"}}
    return sum(spent for name, spent in stages.items() if name not in out)


class Spent:
    """Seconds by stage; any thread may add to them."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def on(self, stage: Own | Beside) -> Iterator[None]:
        """Add the block's seconds to a stage."""
        start = self._clock()
        try:
            yield
        finally:
            self._add(stage, self._clock() - start)

    def of(self, stage: Own | Beside) -> float:
        """Return a stage's seconds so far."""
        return self._seconds.get(stage, 0.0)

    def move(self, seconds: float, source: Own, target: Own) -> None:
        """Take seconds from one stage, at most all that it has, and add them to another."""
        seconds = min(max(seconds, 0.0), self.of(source))
        self._add(source, -seconds)
        self._add(target, seconds)

    def take(self) -> dict[str, float]:
        """Return the seconds since the last call."""
        with self._lock:
            seconds, self._seconds = self._seconds, {}
        return seconds

    def _add(self, stage: str, seconds: float) -> None:
        with self._lock:
            self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds
