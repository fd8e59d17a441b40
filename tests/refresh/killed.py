"""A night in a process that kills itself at a named point; imported once, then forked."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch

from pipeline.refresh import label_steps, model_steps, settling  # noqa: F401 - loaded before forks
from pipeline.refresh.night import Hooks
from tests.refresh.world import LAX, World


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_night(root: str, model: Any, day: int, point: str) -> None:
    """Run a night up to a point: a boundary between steps, or "STEP+" within labelling."""
    torch.set_num_threads(1)

    def boundary(name: str) -> None:
        if name == point:
            die()

    def watch(step: str, report: Any) -> None:
        if f"{step}+" == point and report.done:
            die()

    World(Path(root), model).night(day, Hooks(boundary=boundary, watch=watch), gate=LAX)
