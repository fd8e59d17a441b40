from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.files import open_tree, read_url
from pipeline.trees.ahead import (
    IN_FLIGHT,
    Ahead,
    _Permits,
    _pool,
    actor_env,
    fetched_once,
    is_far,
    listed_ahead,
    share,
    waiting,
)
from tests.pipeline.sources import zip_bytes


class Gauge:
    """Counts the threads that are in a block at once."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.now -= 1


class TestMap:
    def test_results_come_in_order_and_many_wait_at_once(self):
        gauge = Gauge()

        def work(number: int) -> int:
            with waiting(), gauge:
                time.sleep(0.001 * (number % 7))
            return number * 2

        assert list(Ahead().map(work, range(300), far=True)) == [2 * n for n in range(300)]
        assert 8 < gauge.most <= IN_FLIGHT

    def test_near_samples_stay_in_the_thread(self):
        threads = set(Ahead().map(lambda _: threading.get_ident(), range(100), far=False))
        assert threads == {threading.get_ident()}

    def test_no_more_is_taken_than_may_be_in_flight(self):
        taken = []
        feed = (taken.append(n) or n for n in range(1000))
        results = Ahead().map(lambda n: n, feed, far=True)
        for _ in range(3):
            next(results)
        assert len(taken) <= IN_FLIGHT + 3
        results.close()

    def test_the_first_of_a_worker_runs_alone(self):
        gauge, first = Gauge(), []

        def work(number: int) -> int:
            with waiting(), gauge:
                time.sleep(0.02 if not number else 0)
                if not number:
                    first.append(gauge.most)
            return number

        ahead = Ahead()
        list(ahead.map(work, range(50), far=True))
        assert first == [1]
        list(ahead.map(work, range(50), far=True))
        assert first[1] > 1

    def test_an_error_is_raised_in_its_place(self):
        def work(number: int) -> int:
            return 1 // (number - 20)

        results = Ahead().map(work, range(100), far=True)
        assert [next(results) for _ in range(20)]
        with pytest.raises(ZeroDivisionError):
            next(results)

    def test_a_lock_held_over_a_request_stops_nobody_for_ever(self, monkeypatch):
        monkeypatch.setattr("pipeline.trees.ahead._PATIENCE", 0.05)
        lock = threading.Lock()

        def work(number: int) -> int:
            with lock, waiting():
                time.sleep(0.01)
            return number

        assert list(Ahead().map(work, range(20), far=True)) == list(range(20))

    @pytest.mark.parametrize(
        ("patience", "samples", "seconds", "most"),
        [(0.2, 64, 0.02, 20), (0.1, 40, 0.3, 16)],
        ids=["a long queue is not taken for stuck threads", "few go on behind long work"],
    )
    def test_few_compute_without_a_permit(self, monkeypatch, patience, samples, seconds, most):
        monkeypatch.setattr("pipeline.trees.ahead._PATIENCE", patience)
        monkeypatch.setattr("pipeline.trees.ahead._pool", _pool.__wrapped__)
        monkeypatch.setattr("os.sched_getaffinity", lambda _: range(2))
        computing = Gauge()

        def work(number: int) -> int:
            with waiting():
                time.sleep(0.001)
            with computing:
                time.sleep(seconds)
            return number

        assert list(Ahead().map(work, range(samples), far=True)) == list(range(samples))
        assert computing.most < most  # 2, but for what a stalled machine lets through

    def test_a_sample_may_map_over_others(self, monkeypatch):
        few = ThreadPoolExecutor(IN_FLIGHT), _Permits(2), IN_FLIGHT
        monkeypatch.setattr("pipeline.trees.ahead._pool", lambda _: few)

        def work(number: int) -> int:
            return sum(Ahead().map(lambda n: n, range(number), far=True))

        assert list(Ahead().map(work, range(9), far=True)) == [n * (n - 1) // 2 for n in range(9)]


class TestListedAhead:
    def test_the_next_pieces_are_listed_while_one_is_worked_on(self):
        listed = []
        pieces = listed_ahead((listed.append(n) or n for n in range(100)), far=True)
        assert next(pieces) == 0
        limit = time.monotonic() + 10
        while len(listed) < 5 and time.monotonic() < limit:
            time.sleep(0.001)
        assert listed == list(range(5))
        assert list(pieces) == list(range(1, 100))

    def test_near_pieces_are_listed_when_asked_for(self):
        listed = []
        pieces = listed_ahead((listed.append(n) or n for n in range(9)), far=False)
        assert (next(pieces), listed) == (0, [0])

    def test_an_error_is_raised_in_its_place_and_no_thread_stays(self):
        before = threading.active_count()
        pieces = listed_ahead((1 // (3 - n) for n in range(9)), far=True)
        assert [next(pieces) for _ in range(3)] == [0, 0, 1]
        with pytest.raises(ZeroDivisionError):
            next(pieces)
        abandoned = listed_ahead(iter(range(100)), far=True)
        next(abandoned)
        abandoned.close()
        limit = time.monotonic() + 10
        while threading.active_count() > before and time.monotonic() < limit:
            time.sleep(0.01)
        assert threading.active_count() <= before


@pytest.mark.parametrize(
    ("environment", "cores", "permits", "in_flight"),
    [
        ({}, 8, 8, IN_FLIGHT),
        (actor_env(1, None), 32, 1, 8),
        (actor_env(1, 2), 32, 1, IN_FLIGHT),
        (actor_env(0.25, None), 32, 1, 4),
        (actor_env(2.5, None), 32, 3, 21),
        (actor_env(64, None), 8, 8, IN_FLIGHT),
        (actor_env(0, None), 8, 8, IN_FLIGHT),
    ],
)
def test_the_actors_of_a_machine_share_it(environment, cores, permits, in_flight):
    assert share(environment, cores) == (permits, in_flight)


def test_the_samples_in_flight_are_those_of_the_process_s_share(monkeypatch):
    monkeypatch.setattr("pipeline.trees.ahead._pool", _pool.__wrapped__)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(32))
    for name, value in actor_env(1, None).items():
        monkeypatch.setenv(name, value)
    gauge = Gauge()

    def work(number: int) -> int:
        with waiting(), gauge:
            time.sleep(0.001)
        return number

    assert list(Ahead().map(work, range(100), far=True)) == list(range(100))
    assert 2 < gauge.most <= 8


class TestFetchedOnce:
    @pytest.fixture
    def fetched(self, memory, monkeypatch):
        memory.pipe_file("/b/d/a.png", b"x" * 100_000)
        memory.pipe_file("/b/d.zip", zip_bytes({"a.png": b"x" * 100_000}))
        asked: list[str] = []
        cat = type(memory).cat_file
        monkeypatch.setattr(
            type(memory), "cat_file", lambda *a, **k: asked.append(a[1]) or cat(*a, **k)
        )
        return asked

    @pytest.mark.parametrize("url", ["memory://b/d", "memory://b/d.zip"])
    def test_a_file_is_fetched_once_whatever_is_asked_of_it(self, fetched, url):
        tree = open_tree(url)
        fetched.clear()
        with fetched_once():
            assert tree.header_bytes("a.png") == (b"x" * 100_000, b"")
            assert read_url(tree.url_of("a.png")) == tree.read("a.png") == b"x" * 100_000
            with fetched_once():
                tree.read("a.png")
            assert len(fetched) == 1
        tree.read("a.png")
        assert len(fetched) == 2


def test_far_is_what_lies_on_another_machine():
    far = ["s3://b/x", "https://h/x.png", "zip://a::s3://b/d.zip", "tar://a::memory://d.tar"]
    near = ["/d/x.png", "zip://a::/d.zip", "tar://a::/d.tar", "file:///d/x", "x.png", ""]
    assert [is_far(url) for url in far] == [True] * len(far)
    assert [is_far(url) for url in near] == [False] * len(near)
