from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from pipeline.errors import CorruptImage, UsageError
from pipeline.ray_runner import RayRunner
from pipeline.runner import LocalRunner, Resources, choose

if TYPE_CHECKING:
    from pathlib import Path


class Square:
    """Squares numbers; raises bad input on 13."""

    def __call__(self):
        return self.work

    def work(self, number: int) -> int:
        if number == 13:
            raise CorruptImage("13", "is unlucky", "take another")
        return number * number


def results(runner, numbers):
    outcomes = list(runner.map(Square(), iter(numbers)))
    assert sorted(o.chunk for o in outcomes) == sorted(numbers)
    bad = {o.chunk: type(o.error).__name__ for o in outcomes if o.error}
    return {o.chunk: o.result for o in outcomes if not o.error}, bad


@pytest.mark.parametrize("workers", [1, 3])
def test_in_process_every_chunk_has_an_outcome(workers):
    good, bad = results(LocalRunner(workers), list(range(20)))
    assert good == {n: n * n for n in range(20) if n != 13}
    assert bad == {13: "CorruptImage"}


def test_on_ray_every_chunk_has_an_outcome(ray_session):
    good, bad = results(RayRunner(Resources(1, 2, cpus=0.5)), list(range(20)))
    assert good == {n: n * n for n in range(20) if n != 13}
    assert bad == {13: "CorruptImage"}


def test_chunks_are_pulled_not_hoarded():
    seen, before = [], threading.active_count()

    def feed():
        for n in range(100):
            seen.append(n)
            yield n

    outcomes = LocalRunner(2).map(Square(), feed())
    next(outcomes)
    time.sleep(0.05)
    assert len(seen) < 20
    outcomes.close()
    assert threading.active_count() <= before + 2


def test_a_worker_that_cannot_be_made_ends_the_map():
    def broken():
        raise CorruptImage("model", "cannot be loaded", "mend it")

    with pytest.raises(CorruptImage):
        list(LocalRunner(2).map(broken, [1, 2]))


class Broken:
    def __call__(self):
        raise UsageError("this worker cannot be made")


def test_on_ray_a_worker_that_cannot_be_made_ends_the_map(ray_session):
    with pytest.raises(UsageError, match="cannot be made"):
        list(RayRunner(Resources(1, 1, cpus=0.5)).map(Broken(), [1]))


class Seen:
    """Says which GPUs its process may see, once as many processes as are expected have come."""

    def __init__(self, folder: Path, processes: int):
        self.folder, self.processes = folder, processes

    def __call__(self):
        return self.work

    def work(self, _: int) -> tuple[str | None, int]:
        (self.folder / str(os.getpid())).touch()
        until = time.monotonic() + 60
        while len(list(self.folder.iterdir())) < self.processes and time.monotonic() < until:
            time.sleep(0.02)
        return os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid()


def test_each_gpu_actor_sees_one_gpu_of_its_own(ray_session, tmp_path):
    runner = RayRunner(Resources(2, 2, cpus=0.5, gpus=1))
    seen = {o.result for o in runner.map(Seen(tmp_path, 2), range(8))}
    assert {gpu for gpu, _ in seen} == {"0", "1"}
    assert len(seen) == 2, "one GPU a process, always the same"


def test_half_a_gpu_each_packs_two_on_one(ray_session, tmp_path):
    runner = RayRunner(Resources(4, 4, cpus=0.25, gpus=0.5))
    seen = {o.result for o in runner.map(Seen(tmp_path, 4), range(24))}
    by_gpu = {gpu: {pid for g, pid in seen if g == gpu} for gpu, _ in seen}
    assert {gpu: len(pids) for gpu, pids in by_gpu.items()} == {"0": 2, "1": 2}


def test_auto_takes_ray_for_a_cluster_a_gpu_or_much_work(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    plain = Resources()
    assert choose("auto", seconds=1, resources=plain).name == "local"
    assert choose("auto", seconds=1e4, resources=plain).name == "ray"
    assert choose("auto", seconds=1, resources=Resources(gpus=1)).name == "ray"
    assert choose("auto", seconds=1, resources=plain, address="auto").name == "ray"
    assert choose("local", seconds=1e4, resources=plain).name == "local"
    shared = choose("local", seconds=1, resources=Resources(gpus=1))
    assert (shared.name, shared.workers) == ("local", 1)
    with pytest.raises(UsageError, match="--runner"):
        choose("spark", seconds=1, resources=plain)


def test_resources_are_checked():
    assert Resources.parse("2:8", gpus=0.5) == Resources(2, 8, gpus=0.5)
    assert Resources.parse("3", gpus=0) == Resources(3, 3)
    assert Resources.parse(None, gpus=1) == Resources(gpus=1)
    for odd in ("8:2", "two", ":3", "-1"):
        with pytest.raises(UsageError, match="MIN:MAX"):
            Resources.parse(odd, gpus=0)
    with pytest.raises(UsageError, match="MIN:MAX"):
        Resources(3, 2)
