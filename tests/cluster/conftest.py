from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cluster.nodes import KINDS, SAYS
from tests.faults.stage import ROOT, Stage
from tests.refresh.palette_model import GOOD
from tests.refresh.world import World
from tests.samples import write_scenes
from tests.streets import make_streets

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGES = 24
MODEL = "python:tests.faults.model:make?classes=11&label_space=camvid-11"
TAKEN_ALONG = (
    "tests/__init__.py", "tests/faults/__init__.py", "tests/faults/model.py", "tests/tiny_net.py",
)  # fmt: skip
TINY = {
    "model": "python:tests.tiny_net:make", "augment": {"crop": [32, 40]}, "batch": 4, "epochs": 3,
    "optimiser": {"lr": 0.01}, "seed": 3,
}  # fmt: skip


class Cluster:
    """The cluster's steering wheel, and the command line as its user has it."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        log = (stage.place / "cluster.log").open("w")
        self._process = stage.spawn("-m", "tests.cluster.nodes", stdin=subprocess.PIPE, stderr=log)
        self.address, _, *grown = self._said().split()
        self.nodes = dict(pair.split("=") for pair in grown)
        self.ever = {kind: {self.nodes[kind]} for kind in KINDS}
        """All nodes of a kind that there have been."""

    def _said(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(SAYS):
                return line.removeprefix(SAYS).strip()
        raise AssertionError((self.stage.place / "cluster.log").read_text()[-2000:])

    def do(self, step: str, kind: str) -> str:
        """Kill a node, or start one in its place."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{step} {kind}\n")
        self._process.stdin.flush()
        answer = self._said()
        if step == "grow":
            self.nodes[kind] = answer
            self.ever[kind].add(answer)
        return answer

    def spawn(self, *words: object) -> subprocess.Popen[str]:
        """Begin a Python of the user's, in the checkout."""
        return subprocess.Popen(
            [sys.executable, *map(str, words)],
            cwd=ROOT,
            env=self.stage.environment() | {"SEGMILL_TEST_DIR": f"{self.stage.place}/clients"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def begin(self, *words: object) -> subprocess.Popen[str]:
        """Begin `segmill VERB ...` against this cluster."""
        verb, *rest = map(str, words)
        where = ("--address", self.address)
        if verb == "jobs":
            command = (verb, *rest, *where)
        else:
            along = [word for path in TAKEN_ALONG for word in ("--include", path)]
            command = ("submit", *where, "--json", *along, *map(str, words))
        return self.spawn("-m", "jobs", *command)

    def end(self, process: subprocess.Popen[str], code: int = 0) -> dict[str, Any]:
        """Wait for its end; return the JSON summary."""
        out, err = process.communicate(timeout=400)
        assert process.returncode == code, f"{process.returncode}: {err[-3000:]} {out[-1000:]}"
        return dict(json.loads(out.splitlines()[-1])) if out.strip() else {}

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start a head, a CPU node and a node of two pretended GPUs; nothing of them is left."""
    ray_files = tempfile.mkdtemp(prefix="ray-")  # short: sockets lie there
    env = {
        "RAY_TMPDIR": ray_files,
        "RAY_raylet_start_wait_time_s": "300",
        # A dead node is missed after two seconds and not fifteen; a busy one has as long as ever.
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_failure_threshold": "4",
        "PYTHONPATH": str(Path(__file__).parent / "fake_gpu"),
        "SEGMILL_CACHE": os.environ.get("SEGMILL_CACHE", ray_files),
    }
    stage = Stage(tmp_path_factory.mktemp("stage"), env)
    write_scenes(stage.images, IMAGES, height=48, width=80)
    make_streets(stage.place / "streets")
    (stage.place / "tiny.yaml").write_text(json.dumps(TINY))
    world = World(stage.place / "nightly", GOOD)
    world.arrive(0, 4)
    world.file()
    try:
        made = Cluster(stage)
        yield made
        made.close()
    finally:
        stage.sweep()
        shutil.rmtree(ray_files, ignore_errors=True)
