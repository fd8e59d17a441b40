"""The names of attempts at a run: each process that works on one has an attempt of its own."""

from __future__ import annotations

import os
import platform
import re
import time
from hashlib import blake2b


def new_attempt() -> str:
    """Return a name for this process's work on a run: when it began, where, its process."""
    return f"{time.time_ns():x}-{_machine()}-{os.getpid()}"


def _machine() -> str:
    return blake2b(platform.node().encode(), digest_size=4).hexdigest()


def is_dead(attempt: str) -> bool:
    """Tell whether an attempt is one of this machine, of a process that is no more."""
    match = re.fullmatch(r"[0-9a-f]+-([0-9a-f]{8})-(\d+)", attempt)
    if match is None or match[1] != _machine():
        return False
    try:
        os.kill(int(match[2]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def began(attempt: str) -> int:
    """Return when an attempt began, in nanoseconds: its name says so."""
    try:
        return int(attempt.partition("-")[0], 16)
    except ValueError:
        return time.time_ns()
