"""The lease of a published store: one refresh at a time, and none waits for a dead one for long.

    with Lease.take("stores/labels", minutes=10) as lease:
        ...
        lease.check()      # right before the commit

Leases are numbered files in `STORE.lease/`, beside the store; the highest number holds. A file is
made by exclusive creation, which is all that the file system must offer: a link on local disks, a
conditional PUT (`If-None-Match: *`) on S3, GCS and Azure through fsspec. Whoever takes over an
expired lease makes the next number, so that of two that try one succeeds. The owner alone writes
its own file again, to put off its end; when a higher number stands, the lease is lost.

Where a file system has no exclusive creation, two that begin within a moment may both believe to
hold it. Labels are safe even so: the publishing commit is refused on any version but the one that
the night was made on.

Clocks of machines that share a store should agree within a minute: a lease's end is wall time.
"""

from __future__ import annotations

import json
import os
import platform
import re
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

from pipeline.errors import LayoutError, MissingFile, SegmillError
from pipeline.files import local_path, open_sink, open_tree
from pipeline.runs.attempts import is_dead, new_attempt

if TYPE_CHECKING:
    from types import TracebackType

_NUMBERED: Final = re.compile(r"(\d{8})\.json")
_RENEWALS: Final = 4
"""Renewals in the time that a lease lasts."""


class LeaseHeld(SegmillError):
    """Another refresh of the store is at work."""


class LeaseLost(SegmillError):
    """This refresh was taken for dead, and another one took its place."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lease, and until when."""

    attempt: str
    """When it began, its machine, its process (`pipeline.runs.attempts`)."""
    host: str
    pid: int
    place: str
    """What tells containers of one name and machine apart; a process number says nothing beyond."""
    until: float
    """Seconds since 1970; 0 once given back."""

    @classmethod
    def here(cls, seconds: float) -> Holder:
        """Return this process as a holder."""
        until = time.time() + seconds
        return cls(new_attempt(), platform.node(), os.getpid(), _place(), until)

    def is_over(self) -> bool:
        """Tell whether the lease is free: given back, expired, or of a process that is no more."""
        here = (platform.node(), _place())
        return self.until <= time.time() or (
            (self.host, self.place) == here and bool(self.place) and is_dead(self.attempt)
        )


def _place() -> str:
    """Return the running machine and the space that its process numbers are of; "" if unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


@dataclass
class Lease:
    """A lease that this process holds; a thread renews it until it is given back."""

    url: str
    number: int
    holder: Holder
    seconds: float
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    @classmethod
    def take(cls, store: str, minutes: float) -> Lease:
        """Take the lease of a store.

        Raises:
            LeaseHeld: another process has it, or took it at this moment.
        """
        url, seconds = f"{store.rstrip('/')}.lease", 60 * minutes
        number, held = _highest(url)
        if held is not None and not held.is_over():
            raise LeaseHeld(
                f"another refresh of {store} is at work: process {held.pid} on {held.host}, lease "
                f"until {time.strftime('%H:%M:%S', time.gmtime(held.until))} UTC"
            )
        lease = cls(url, number + 1, Holder.here(seconds), seconds)
        if not _create(url, _name(number + 1), lease._text(lease.holder)):
            raise LeaseHeld(f"another refresh of {store} began at this moment")
        for old in _numbers(url)[:-2]:
            with suppress(OSError, SegmillError):
                open_sink(url).remove(_name(old))
        lease._thread = threading.Thread(target=lease._renewing, name="lease", daemon=True)
        lease._thread.start()
        return lease

    @staticmethod
    def _text(holder: Holder) -> bytes:
        return json.dumps(asdict(holder)).encode()

    def _renewing(self) -> None:
        while not self._stop.wait(self.seconds / _RENEWALS):
            try:
                if _numbers(self.url)[-1:] != [self.number]:
                    return
                self._write(time.time() + self.seconds)
            except (OSError, SegmillError):
                continue  # the next turn may reach the store; until then the lease runs on

    def _write(self, until: float) -> None:
        values: dict[str, Any] = asdict(self.holder) | {"until": until}
        renewed = Holder(**values)
        open_sink(self.url, durable=True).write(_name(self.number), self._text(renewed))
        self.holder = renewed

    def check(self) -> None:
        """Make sure that the lease is still this process's.

        Raises:
            LeaseLost: it ran out, or another process has it.
        """
        number, held = _highest(self.url)
        mine = number == self.number and held is not None
        if not mine or held is None or held.attempt != self.holder.attempt:
            who = "another refresh" if held is None else f"process {held.pid} on {held.host}"
            raise LeaseLost(f"{self.url}: {who} took the lease; nothing was published")
        if held.until <= time.time():
            raise LeaseLost(f"{self.url}: the lease ran out unrenewed; nothing was published")

    def give_back(self) -> None:
        """End the lease, unless another process has it by now."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with suppress(OSError, SegmillError):
            if _numbers(self.url)[-1:] == [self.number]:
                self._write(0.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.give_back()


def _name(number: int) -> str:
    return f"{number:08d}.json"


def _numbers(url: str) -> list[int]:
    try:
        names = open_tree(url).names()
    except LayoutError:
        return []
    return sorted(int(m[1]) for name in names if (m := _NUMBERED.fullmatch(name)))


def _highest(url: str) -> tuple[int, Holder | None]:
    """Return the highest number and who it names; None where its file says nothing readable."""
    numbers = _numbers(url)
    if not numbers:
        return 0, None
    try:
        return numbers[-1], Holder(**json.loads(open_tree(url).read(_name(numbers[-1]))))
    except (MissingFile, LayoutError, ValueError, TypeError):
        return numbers[-1], None


def _create(url: str, name: str, text: bytes) -> bool:
    """Make a file, whole, unless it is there; tell whether this process made it."""
    path = local_path(url)
    if path is not None:
        return _link(path, name, text)
    from fsspec.core import url_to_fs

    fs, place = url_to_fs(f"{url}/{name}", use_listings_cache=False)
    try:
        fs.pipe_file(place, text, mode="create")
    except FileExistsError:
        return False
    except OSError:
        pass  # "precondition failed", also when a repeated request meets the first one's file
    except (TypeError, NotImplementedError):  # a file system without exclusive creation
        if fs.exists(place):
            return False
        fs.pipe_file(place, text)
    return _highest(url)[1] == Holder(**json.loads(text))


def _link(folder: str, name: str, text: bytes) -> bool:
    sink, part = open_sink(folder, durable=True), f".{new_attempt()}.part"
    sink.write(part, text)
    try:
        os.link(f"{folder}/{part}", f"{folder}/{name}")
    except FileExistsError:
        return False
    finally:
        sink.remove(part)
    return True
