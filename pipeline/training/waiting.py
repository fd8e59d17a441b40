"""How long the device had nothing to do for want of a batch."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")


class Timed(Generic[T]):
    """An iterator that counts the seconds that its consumer's device waits for the next item.

    A CPU waits as long as the call takes. A GPU has work queued while the host waits: there, two
    events on its stream tell how long it lay idle between them.
    """

    def __init__(self, items: Iterator[T], device: torch.device) -> None:
        self._items = items
        self._on_gpu = device.type == "cuda"
        self._gaps: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds = 0.0
        self._start = time.monotonic()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        start = time.monotonic()
        before = self._mark() if self._on_gpu else None
        item = next(self._items)
        if before is not None:
            self._gaps.append((before, self._mark()))
        self._seconds += time.monotonic() - start
        return item

    def _mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self) -> tuple[float, float]:
        """Return the seconds that the device waited, and all since this was made."""
        if self._on_gpu:
            torch.cuda.synchronize()
            self._seconds = sum(a.elapsed_time(b) for a, b in self._gaps) / 1000
        return self._seconds, time.monotonic() - self._start
