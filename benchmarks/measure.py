"""Runs a command as a child process and measures it; prints figures and their ratios.

Whole processes are compared, start included; the two sides run in turn, so that a machine whose
speed drifts drifts for both, and medians are quoted.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figures:
    """Wall and CPU seconds, and peak resident memory of the largest process in MiB."""

    wall: float
    cpu: float
    peak: float


def once(command: list[str], **env: str) -> Figures:
    """Run a command to its end; its output goes nowhere unless it fails."""
    # Installed packages come with their byte code: ours must not be compiled in every start.
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        env={**kept, **env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    errors = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors}")
    wall = time.perf_counter() - start
    return Figures(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


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
