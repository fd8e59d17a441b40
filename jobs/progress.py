"""How far a verb is: a bar on a terminal, a plain line now and then elsewhere; both on stderr."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.live import Live

    from pipeline.runner import Crew
    from pipeline.runs.report import RunReport

WINDOW_SECONDS: Final = 60.0
_LEAST_STEPS: Final = 8
_FIRST_PAUSE: Final = 10.0
_LONGEST_PAUSE: Final = 60.0
_PAUSE_GROWS: Final = 1.25
_BAR_WIDTH: Final = 20
_UNITS: Final = (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1))


@dataclass(slots=True)
class Pace:
    """How fast a count grows from `base` on, now and since the start.

    "Now" is the last minute, or longer where few steps come: at least the last eight. Steps within
    one second are kept as one.
    """

    start: float
    base: float = 0.0
    """The count at the start: what an earlier session did says nothing of this one's pace."""
    _steps: deque[tuple[float, float]] = field(default_factory=deque)

    def reach(self, count: float, now: float) -> None:
        """Note the count at a time."""
        steps = self._steps or deque([(self.start, self.base)])
        self._steps = steps
        if len(steps) > 1 and now - steps[-2][0] < 1:
            steps.pop()
        steps.append((now, count))
        while len(steps) > _LEAST_STEPS + 1 and now - steps[1][0] >= WINDOW_SECONDS:
            steps.popleft()

    def recent(self, now: float) -> float:
        """Return the growth a second of late; it falls while nothing comes."""
        if not self._steps:
            return 0.0
        (since, before), (_, count) = self._steps[0], self._steps[-1]
        return (count - before) / max(now - since, 1e-9)

    def overall(self, now: float) -> float:
        """Return the growth a second since the start."""
        grown = self._steps[-1][1] - self.base if self._steps else 0.0
        return grown / max(now - self.start, 1e-9)


def span(seconds: float) -> str:
    """Return a time span for people, to two units.

    >>> span(42), span(192.4), span(9000), span(200000)
    ('42 s', '3 min 12 s', '2 h 30 min', '2 d 7 h')
    """
    left = round(seconds)
    for unit, size, part, smaller in _UNITS:
        if left >= size:
            return f"{left // size} {unit} {left % size // smaller} {part}"
    return f"{left} s"


class State:
    """What is known of the work: a count, its pace, and what a run's report adds."""

    def __init__(self, total: int | None, unit: str, now: float) -> None:
        self.done, self.total, self._unit = 0, total, unit
        self._listed: tuple[int, int] | None = None
        self._failed = 0
        self._crew: Crew | None = None
        self._pace, self._busy, self._lives = Pace(now), Pace(now), Pace(now)

    def go_on(self, done: int) -> None:
        """Note that an earlier session did so many."""
        self.done, self._pace = done, Pace(self._pace.start, done)

    def listing(self, listed: int, todo: int) -> None:
        """Note how far a listing is."""
        self._listed = listed, todo

    def reach(self, done: int, total: int | None, now: float) -> None:
        """Note how many are finished."""
        if self._listed is not None:  # the listing's time says nothing about the work's pace
            self._listed, self._pace = None, Pace(now)
        self.done = done
        self.total = total if total is not None else self.total
        self._pace.reach(done, now)

    def watch(self, report: RunReport, now: float) -> None:
        """Note what a run came to."""
        self.reach(report.done + report.failed, report.todo, now)
        self._failed, self._crew = report.failed, report.crew
        self._busy.reach(report.seconds.get("forward", 0.0), now)
        self._lives.reach(report.worker_seconds(), now)

    def said(self, now: float, *, short: bool = False) -> list[str]:
        """Return what there is to say beside the count, what matters most first."""
        if self._listed is not None:
            return [f"{self._listed[0]:,} listed", f"{self._listed[1]:,} to do"]
        late, mean = self._pace.recent(now), self._pace.overall(now)
        found = []
        if self.done > self._pace.base:
            also = "" if short else f" now, {_number(mean)} on average"
            found.append(f"{_number(late)} {self._unit}/s{also}")
        if self.total and late:
            found.append(f"{span(max(0, self.total - self.done) / late)} left")
        if self._failed:
            found.append(f"{self._failed:,} failed")
        lives, busy = self._lives.recent(now), self._busy.recent(now)
        if lives and busy:
            found.append(f"device busy {busy / lives:.0%}")
        if self._crew is not None and self.total != self.done:
            found.append(_workers(self._crew))
        return found

    def line(self, what: str, now: float) -> str:
        """Return all of it in one line, for a log."""
        if self._listed is None:
            share = f" of {self.total:,} ({self.done / self.total:.1%})" if self.total else ""
            what = f"{what}: {self.done:,}{share}, "
        else:
            what = f"{what}: "
        return (what + ", ".join(self.said(now))).removesuffix(", ")


def _workers(crew: Crew) -> str:
    if not crew.alive + crew.starting:
        return "no workers yet"
    more = f" ({crew.starting} starting)" if crew.starting else ""
    return f"{crew.alive} worker{'s' * (crew.alive != 1)}{more}"


def _number(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"


def pauses() -> Iterator[float]:
    """Yield the seconds before each line of a log: ten, growing to a minute."""
    pause = _FIRST_PAUSE
    while True:
        yield pause
        pause = min(pause * _PAUSE_GROWS, _LONGEST_PAUSE)


class Progress:
    """Shows how far a verb is while its block runs.

    Without a terminal there is a line after ten seconds, then ever more seldom, at most one a
    minute; also while nothing moves, so that a log tells a job that hangs from one that ended.
    """

    def __init__(
        self,
        what: str,
        total: int | None = None,
        *,
        unit: str = "images",
        clock: Callable[[], float] = time.monotonic,
        stream: TextIO | None = None,
    ) -> None:
        self._what, self._clock = what, clock
        self._stream = stream or sys.stderr
        self._state = State(total, unit, clock())
        self._lock, self._over = threading.Lock(), threading.Event()
        self._speaker: threading.Thread | None = None
        self._bar: Live | None = None

    def __enter__(self) -> Progress:
        if self._stream.isatty():
            self._bar = _bar(self._what, self._state, self._clock, self._stream)
            self._bar.start()
        else:
            self._speaker = threading.Thread(target=self._speak, daemon=True)
            self._speaker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._bar is not None:
            self._bar.stop()
        if self._speaker is not None:
            self._speaker.join()

    def go_on(self, done: int) -> None:
        """Say that work goes on where an earlier session came to `done` inputs."""
        with self._lock:
            self._state.go_on(done)

    def advance(self, count: int = 1, *, total: int | None = None) -> None:
        """Count `count` more inputs as finished; `total` corrects the number expected."""
        self.reach(self._state.done + count, total)

    def listed(self, listed: int, todo: int) -> None:
        """Say how far a listing is."""
        with self._lock:
            self._state.listing(listed, todo)

    def reach(self, done: int, total: int | None = None) -> None:
        """Say that `done` inputs are finished; `total` corrects the number expected."""
        with self._lock:
            self._state.reach(done, total, self._clock())

    def watch(self, report: RunReport) -> None:
        """Say what a run came to so far."""
        with self._lock:
            self._state.watch(report, self._clock())

    def _speak(self) -> None:
        """Say a line whenever it is time."""
        for pause in pauses():
            if self._over.wait(pause):
                return
            with self._lock:
                line = self._state.line(self._what, self._clock())
            print(line, file=self._stream, flush=True)


def _bar(what: str, state: State, clock: Callable[[], float], stream: TextIO) -> Live:
    """Return a bar that draws itself from the state, a few times a second."""
    from rich.console import Console
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    def draw() -> Table:
        total = f" of {state.total:,}" if state.total else ""
        bar = ProgressBar(
            total=state.total, completed=state.done, width=_BAR_WIDTH, pulse=not state.total
        )
        said = Text(", ".join(state.said(clock(), short=True)), no_wrap=True, overflow="ellipsis")
        row = Table.grid(padding=(0, 1))
        row.add_row(what, bar, f"{state.done:,}{total}", said)
        return row

    console = Console(file=stream)
    return Live(get_renderable=draw, console=console, refresh_per_second=4, transient=True)
