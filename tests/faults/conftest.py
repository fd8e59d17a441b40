from __future__ import annotations

import shutil
import subprocess
import tempfile
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

from tests.faults.cluster import SAYS
from tests.faults.stage import IMAGES, POISON, Stage, rows
from tests.samples import write_scenes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.record import Record


PATIENT = {"RAY_raylet_start_wait_time_s": "300"}
"""A machine that is busy takes more than Ray's minute to start a node."""


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Give a bucket of images, one of them magenta; nothing that ran on it is left afterwards."""
    # Short, as sockets lie there; its own, as Ray leaves word of a cluster for the next session.
    ray_files = tempfile.mkdtemp(prefix="ray-")
    made = Stage(tmp_path_factory.mktemp("stage"), {"RAY_TMPDIR": ray_files, **PATIENT})
    write_scenes(made.images, IMAGES, height=48, width=80)
    magenta = np.full((48, 80, 3), (255, 0, 255), np.uint8)
    cv2.imwrite(str(made.images / f"{POISON}.jpg"), magenta)
    yield made
    made.sweep()
    shutil.rmtree(ray_files, ignore_errors=True)


@pytest.fixture(autouse=True)
def calm(stage: Stage) -> Iterator[None]:
    """Begin and end with models that neither wait nor die."""
    stage.steer()
    yield
    stage.steer()


@pytest.fixture(scope="session")
def undisturbed(stage: Stage) -> list[Record]:
    """Return the rows of a run without faults."""
    stage.steer()
    store = stage.place / "undisturbed"
    assert stage.label(store, "--runner", "local").sum()["done"] == IMAGES
    return rows(store)


class Nodes:
    """The cluster's steering wheel."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process, self._log = process, log
        self.address = self._said()

    def _said(self) -> str:
        """Return the next answer; Ray talks in between."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(SAYS):
                return line.removeprefix(SAYS).strip()
        raise AssertionError(f"the cluster died: {self._log.read_text()[-2000:]}")

    def do(self, step: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(step + "\n")
        self._process.stdin.flush()
        assert self._said() == "done"


@pytest.fixture(scope="session")
def nodes(stage: Stage) -> Iterator[Nodes]:
    """Start a cluster of a head without CPUs and two nodes of one, in processes of their own."""
    said = stage.place / "cluster.log"
    with said.open("w") as log:
        process = stage.spawn("-m", "tests.faults.cluster", stdin=subprocess.PIPE, stderr=log)
    try:
        yield Nodes(process, said)
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)
    finally:
        process.kill()
        stage.sweep()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"
