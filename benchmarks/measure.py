"""Runs a command as a child process and measures it; prints figures and their ratios.

Whole processes are compared, start included; the two sides run in turn, so that a machine whose
speed drifts drifts for both, and medians are quoted.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figures:
    """Wall and CPU seconds, and peak resident memory of the largest process in MiB."""

    wall: float
    cpu: float
    peak: float


# Of a child, Linux also counts the memory of the process that it was started from: the benchmark's
# own, with all that it has imported. So a process that holds nothing starts it and measures.
_STARTER = """
import json, os, sys, time
start = time.perf_counter()
pid = os.fork()
if not pid:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.execvp(sys.argv[1], sys.argv[1:])
_, status, usage = os.wait4(pid, 0)
wall = time.perf_counter() - start
print(json.dumps([status, wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024]))
"""


def once(command: list[str], **env: str) -> Figures:
    """Run a command to its end; its output goes nowhere unless it fails."""
    # Installed packages come with their byte code: ours must not be compiled in every start.
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _STARTER, *command],
        env={**kept, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    status, *figures = json.loads(done.stdout) if done.stdout else [1]
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return Figures(*figures)


def median(figures: list[Figures]) -> Figures:
    """Return the median of each figure."""
    columns = zip(*((f.wall, f.cpu, f.peak) for f in figures), strict=True)
    return Figures(*(statistics.median(c) for c in columns))


def table(rows: dict[str, Figures], base: str, items: int) -> str:
    """Return a Markdown table; ratios are against the row `base`."""
    lines = [
        "| what | wall s | CPU s | items/s | peak MiB | wall ratio | CPU ratio |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    peer = rows[base]
    for name, f in rows.items():
        lines.append(
            f"| {name} | {f.wall:.2f} | {f.cpu:.2f} | {items / f.wall:.1f} | {f.peak:.0f} "
            f"| {f.wall / peer.wall:.2f} | {f.cpu / peer.cpu:.2f} |"
        )
    return "\n".join(lines)


def segmill(*args: str) -> list[str]:
    """Return the command line of a verb."""
    return [sys.executable, "-m", "jobs", *args]
