"""Where a worker's time goes, by stage.

The worker's own thread is in one stage at a time, so `OWN` and what it spends elsewhere (starting,
writing rows, waiting for the next shard) add up to its wall time:

| stage | the worker's thread |
| --- | --- |
| wait | waits for decoded images, and the device has nothing to do |
| forward | computes or waits for the device: upload, network, decision, download |
| collect | waits for the threads that encode |

`BESIDE` are seconds of other threads: they pass at the same time, and add up to more than it.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Own = Literal["wait", "forward", "collect"]
Beside = Literal["read", "decode", "encode"]
OWN: Final[tuple[Own, ...]] = ("wait", "forward", "collect")
BESIDE: Final[tuple[Beside, ...]] = ("read", "decode", "encode")


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
