from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from pipeline.errors import CorruptImage, PoisonInput, SegmillError, UsageError, WorkerDied
from pipeline.ray_runner import RayRunner
from pipeline.runner import LocalRunner, Resources


class Work:
    """Doubles numbers, writes down which, and dies over some: of 13 always, of 3 the first time."""

    def __init__(self, log: Path, pause: float = 0) -> None:
        self.log, self.pause = str(log), pause

    def __call__(self):
        return self.work

    def work(self, numbers: list[int]) -> list[int]:
        with open(self.log, "a") as log:
            log.write("".join(f"{n}\n" for n in numbers))
        if 13 in numbers or (3 in numbers and Path(self.log).read_text().split().count("3") == 1):
            os.kill(os.getpid(), signal.SIGSEGV)
        if 7 in numbers:
            raise CorruptImage("7", "is unlucky", "take another")
        time.sleep(self.pause)
        return [2 * n for n in numbers]


def halves(numbers: list[int]) -> list[list[int]]:
    middle = len(numbers) // 2
    return [numbers[:middle], numbers[middle:]] if middle else [numbers]


def runs(log: Path) -> Counter[int]:
    return Counter(map(int, log.read_text().split()))


def test_children_outlive_an_input_that_kills(tmp_path):
    log = tmp_path / "log"
    chunks = [list(range(n, n + 4)) for n in range(0, 20, 4)]
    outcomes = list(LocalRunner(2).isolated().map(Work(log), iter(chunks), halves))
    assert sorted(n for o in outcomes for n in o.chunk) == list(range(20))
    bad = {tuple(o.chunk): type(o.error) for o in outcomes if o.error}
    assert bad == {(13,): PoisonInput, (4, 5, 6, 7): CorruptImage}
    assert all(o.result == [2 * n for n in o.chunk] for o in outcomes if not o.error)
    assert runs(log)[13] == 2 + 1 + 2, "the chunk twice, its half once, alone twice"
    assert runs(log)[3] == 2, "what died once is innocent"
    assert runs(log)[17] == 1


def unpicklable(_: int) -> int:
    class LocalError(Exception):
        pass

    raise LocalError("of a class that no other process knows")


class TwoWordsError(Exception):
    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} {other}")


def unreadable(_: int) -> int:
    raise TwoWordsError("cannot be", "read back")


class Works:
    def __init__(self, work) -> None:
        self.work = work

    def __call__(self):
        return self.work


def test_an_error_that_cannot_travel_goes_as_its_text():
    said = {
        unpicklable: "LocalError: of a class that no other process knows",
        unreadable: "TwoWordsError: cannot be read back",
    }
    for work, text in said.items():
        (outcome,) = LocalRunner(1).isolated().map(Works(work), [1])
        assert isinstance(outcome.error, SegmillError)
        assert str(outcome.error) == text


class CannotBeMade:
    def __call__(self):
        raise UsageError("this worker cannot be made")


class DiesAtOnce:
    def __call__(self):
        os.kill(os.getpid(), signal.SIGSEGV)


def test_a_worker_that_does_not_start_ends_the_map():
    for make, error in ((CannotBeMade(), UsageError), (DiesAtOnce(), WorkerDied)):
        with pytest.raises(error):
            list(LocalRunner(1).isolated().map(make, [1]))


def test_on_ray_a_worker_that_dies_at_its_start_ends_the_map(ray_session):
    with pytest.raises(WorkerDied, match="actors died while they started"):
        list(RayRunner(Resources(1, 1, cpus=0.5)).map(DiesAtOnce(), [1]))


def test_on_ray_an_error_that_cannot_travel_kills_nobody(ray_session):
    (outcome,) = RayRunner(Resources(1, 1, cpus=0.5)).map(Works(unpicklable), [1])
    assert "LocalError" in type(outcome.error).__name__ + str(outcome.error)
    assert not isinstance(outcome.error, PoisonInput)


def test_on_ray_what_a_dead_actor_had_answered_counts(ray_session, tmp_path, monkeypatch):
    """The death is seen first, the answer before it later: it is no suspect, and is not redone."""
    log = tmp_path / "log"
    wait = ray_session.wait

    def last_first(refs, **_):
        ended, _ = wait(refs, num_returns=len(refs), timeout=30)
        last = max(ended, key=refs.index)
        return [last], [ref for ref in refs if ref != last]

    monkeypatch.setattr(ray_session, "wait", last_first)
    chunks = [[n] for n in (0, 2, 3, 4)]
    outcomes = list(RayRunner(Resources(1, 1, cpus=0.5)).map(Work(log), iter(chunks), halves))
    assert sorted(o.chunk for o in outcomes) == chunks
    assert not any(o.error for o in outcomes)
    assert runs(log) == {0: 1, 2: 1, 3: 2, 4: 1}


class Device:
    """Doubles numbers on a device that is lost over some: then the process can do nothing more.

    Over `bad` always, over `once` the first time, over any where it is `gone` from the start.
    """

    def __init__(self, log: Path, *, bad: int = -1, once: int = -1, gone: bool = False) -> None:
        self.log, self.bad, self.once, self.gone = str(log), bad, once, gone

    def __call__(self):
        self.lost = False
        return self.work

    def work(self, numbers: list[int]) -> list[int]:
        seen = Path(self.log).read_text().split() if Path(self.log).exists() else []
        with open(self.log, "a") as log:
            log.write("".join(f"{n}\n" for n in numbers))
        first = self.once in numbers and str(self.once) not in seen
        self.lost = self.lost or self.gone or self.bad in numbers or first
        if self.lost:
            raise WorkerDied("the device failed (CUDA error: unspecified launch failure)")
        return [2 * n for n in numbers]


RUNNERS = {
    "here": lambda: LocalRunner(1),
    "children": lambda: LocalRunner(1).isolated(),
    "ray": lambda: RayRunner(Resources(1, 2, cpus=0.5)),
}


@pytest.mark.parametrize("where", RUNNERS)
def test_a_lost_device_costs_no_chunk(where, ray_session, tmp_path):
    runner, chunks = RUNNERS[where](), [list(range(n, n + 4)) for n in range(0, 20, 4)]
    outcomes = list(runner.map(Device(tmp_path / "log", once=5), iter(chunks), halves))
    assert sorted(o.chunk for o in outcomes) == chunks
    assert all(o.result == [2 * n for n in o.chunk] for o in outcomes)
    assert runner.crew.lost == 1
    counted = runs(tmp_path / "log")
    assert counted[5] == 2
    assert all(count <= 2 for count in counted.values()), "what it had begun is done once more"


@pytest.mark.parametrize("where", RUNNERS)
def test_an_input_at_which_every_device_fails_stands_alone(where, ray_session, tmp_path):
    runner, chunks = RUNNERS[where](), [list(range(n, n + 4)) for n in range(0, 12, 4)]
    outcomes = list(runner.map(Device(tmp_path / "log", bad=4), iter(chunks), halves))
    assert sorted(n for o in outcomes for n in o.chunk) == list(range(12))
    (bad,) = (o for o in outcomes if o.error)
    assert bad.chunk == [4]
    assert isinstance(bad.error, PoisonInput)
    assert "the device failed at it" in str(bad.error)


@pytest.mark.parametrize("where", RUNNERS)
def test_where_every_device_is_lost_the_map_ends(where, ray_session, tmp_path):
    runner, chunks = RUNNERS[where](), [list(range(n, n + 4)) for n in range(0, 20, 4)]
    with pytest.raises(WorkerDied, match=r"4 workers in a row.*unspecified launch failure"):
        list(runner.map(Device(tmp_path / "log", gone=True), iter(chunks), halves))


class OneBadPlace(Device):
    """The second of two places has a device that fails at once, whoever comes to it."""

    def __call__(self):
        self.gone = os.environ["CUDA_VISIBLE_DEVICES"] == "1"
        return super().__call__()

    def work(self, numbers: list[int]) -> list[int]:
        time.sleep(0.1)  # both places get chunks
        return super().work(numbers)


def test_on_ray_a_place_whose_device_fails_at_once_is_given_up(ray_session, tmp_path):
    runner = RayRunner(Resources(2, 2, cpus=0.5, gpus=1))
    chunks = [[n, n + 1] for n in range(0, 24, 2)]
    outcomes = list(runner.map(OneBadPlace(tmp_path / "log"), iter(chunks), halves))
    assert sorted(o.chunk for o in outcomes) == chunks
    assert not any(o.error for o in outcomes)
    assert runner.crew.lost <= 2
    assert runner.crew.alive == 1
