"""The names of attempts at a run: each process that works on one has an attempt of its own."""

from __future__ import annotations

import os
import platform
import re
import time
from hashlib import blake2b
from typing import Final

_CLOCK_SECONDS: Final = 2.0
"""By so much the clock of processes' starts may differ from that of attempts."""


def new_attempt() -> str:
    """Return a name for this process's work on a run: when it began, where, its process."""
    return f"{time.time_ns():x}-{_machine()}-{os.getpid()}"


def _machine() -> str:
    return blake2b(platform.node().encode(), digest_size=4).hexdigest()


def is_dead(attempt: str) -> bool:
    """Tell whether an attempt is one of this machine, of a process that is no more."""
    return _lives(attempt) is False


def may_have_crashed(attempt: str) -> bool:
    """Tell whether an attempt that left its plan may have died; of other machines nobody knows."""
    return not _lives(attempt)


def _lives(attempt: str) -> bool | None:
    """Return whether an attempt's process is there; None where it is another machine's."""
    match = re.fullmatch(r"[0-9a-f]+-([0-9a-f]{8})-(\d+)", attempt)
    if match is None or match[1] != _machine():
        return None
    try:
        os.kill(int(match[2]), 0)
    except ProcessLookupError:
        return False
    except OverflowError:
        return None
    except OSError:  # another user's
        pass
    # In a container that starts anew, the next driver often gets the number of the last.
    return _started(int(match[2])) <= began(attempt) / 1e9 + _CLOCK_SECONDS


def _started(pid: int) -> float:
    """Return when a process of this machine started, in seconds since 1970; 0 if unknown."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        with open("/proc/stat", encoding="utf-8") as file:
            boot = next(int(line.split()[1]) for line in file if line.startswith("btime "))
        return boot + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, StopIteration):
        return 0.0


def began(attempt: str) -> int:
    """Return when an attempt began, in nanoseconds: its name says so."""
    try:
        return int(attempt.partition("-")[0], 16)
    except ValueError:
        return time.time_ns()
