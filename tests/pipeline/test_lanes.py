"""The order of copies and computation on CUDA, on streams that do nothing before they must.

A `Stream` here holds its work back until someone waits for it, as a busy device does. What was
enqueued without the wait that it needs then finds memory that nobody has written yet.
"""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.predict import lanes
from pipeline.predict.lanes import Lanes

UNWRITTEN = 99


class Stream:
    def __init__(self, _=None):
        self.queue, self.done = [], 0

    def enqueue(self, work):
        self.queue.append(work)
        return len(self.queue)

    def run(self, until):
        while self.done < until:
            self.done += 1
            self.queue[self.done - 1]()

    def wait_stream(self, other):
        until = len(other.queue)
        self.enqueue(lambda: other.run(until))


class Event:
    def __init__(self, *, blocking=False, enable_timing=False):
        self.timed = enable_timing

    def record(self, stream):
        self.stream, self.at = stream, len(stream.queue)

    def synchronize(self):
        self.stream.run(self.at)


class Cuda:
    """What `lanes` takes of torch.cuda."""

    Stream, Event = Stream, Event

    def __init__(self):
        self.now = Stream()

    def current_stream(self, _):
        return self.now

    @contextmanager
    def stream(self, stream):
        before, self.now = self.now, stream
        try:
            yield
        finally:
            self.now = before


class Tensor:
    """Memory, the stream that it was allocated on, and those that may use it."""

    def __init__(self, cuda, shape, dtype, pinned=False):
        self.cuda, self.shape, self.dtype, self.pinned = cuda, shape, dtype, pinned
        self.memory, self.known = np.full(shape, UNWRITTEN, dtype), {cuda.now}

    def numpy(self):
        return self.memory

    def record_stream(self, stream):
        self.known.add(stream)

    def to(self, _, *, non_blocking):
        return Tensor(self.cuda, self.shape, self.dtype).copy_(self, non_blocking=non_blocking)

    def copy_(self, other, *, non_blocking):
        assert non_blocking
        assert self.pinned or other.pinned, "a copy from or to pageable memory waits"
        self.cuda.now.enqueue(lambda: np.copyto(self.memory, other.memory))
        return self

    def plus_one(self):
        """Compute, on the current stream."""
        found = Tensor(self.cuda, self.shape, self.dtype)
        self.cuda.now.enqueue(lambda: np.add(self.memory, 1, out=found.memory))
        return found


@pytest.fixture
def cuda(monkeypatch):
    cuda = Cuda()

    def empty(shape, *, dtype, pin_memory):
        return Tensor(cuda, shape, dtype, pin_memory)

    monkeypatch.setattr(lanes, "_CUDA", cuda)
    monkeypatch.setattr(lanes, "torch", SimpleNamespace(empty=empty, uint8=np.uint8))
    return cuda


def test_each_copy_and_computation_waits_for_what_it_needs(cuda):
    ways = Lanes(SimpleNamespace(type="cuda"))
    arriving = []
    for batch in range(3):
        there = ways.up([np.full((2, 3), 10 * batch + n, np.uint8) for n in range(2)])
        found = there.plus_one()
        arriving.append(ways.down(found))
        assert cuda.now in there.known, "its memory is not the next upload's while it is read"
        assert ways._down in found.known, "nor the next computation's while it is copied"
    assert all((a.host.memory == UNWRITTEN).all() for a in arriving), "nobody has waited yet"
    for batch, one in reversed(list(enumerate(arriving))):
        expected = [np.full((2, 3), 10 * batch + n + 1) for n in range(2)]
        assert np.array_equal(one.array(), expected)


def test_an_upload_waits_for_no_computation(cuda):
    ways = Lanes(SimpleNamespace(type="cuda"))
    ways.up([np.zeros(1, np.uint8)]).plus_one()
    second = ways.up([np.ones(1, np.uint8)])
    ways._up.run(len(ways._up.queue))
    assert second.memory == 1
    assert cuda.now.done == 0


def test_a_moment_is_one_of_the_computation_and_is_timed(cuda):
    moment = Lanes(SimpleNamespace(type="cuda")).mark()
    assert moment.timed
    assert moment.stream is cuda.now
