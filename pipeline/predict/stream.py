"""Images through one device: decoded ahead of it, computed in batches, encoded behind it.

The thread that calls is the device's: it takes decoded images in the order of the samples, fills a
batch for each input shape, and starts one while the device still has the one before. What waits in
host memory is bounded in bytes, whatever the images' sizes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from pipeline.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Executor, Future

    from pipeline.predict.predictor import Pending, Picture, Predictor
    from pipeline.predict.shapes import Shape
    from pipeline.record import Record, Sample
    from pipeline.spent import Spent

_AHEAD_BYTES: Final = 512 << 20
"""Most that decoded images take which wait for their turn."""
_HELD_BYTES: Final = 512 << 20
"""Most that decoded images take which wait for others of their shape."""
_BEHIND_PIXELS: Final = 128 << 20
"""Most pixels that wait to be encoded; two to three bytes each."""


class Decoded(Protocol):
    """A decoded image and whose it is."""

    sample: Sample
    picture: Picture


@dataclass(slots=True)
class Stream:
    """One pass of samples through a device."""

    predictor: Predictor
    spent: Spent
    pool: Executor
    encode: Callable[..., tuple[Sample, Record | InputError]]
    _waiting: dict[Shape, list[Decoded]] = field(default_factory=dict)
    _held: int = 0
    _computing: tuple[list[Decoded], Pending, float] | None = None
    _encoding: deque[tuple[int, Future[tuple[Sample, Record | InputError]]]] = field(
        default_factory=deque
    )
    _behind: int = 0
    _largest: int = 1

    def run(
        self, samples: Iterable[Sample], decode: Callable[[Sample], Decoded | InputError]
    ) -> Iterator[tuple[Sample, Record | InputError]]:
        """Yield each sample with its record or the error that stopped it, in any order."""
        for sample, decoded in self._decoded(samples, decode):
            if isinstance(decoded, InputError):
                yield sample, decoded
                continue
            if batch := self._filled(decoded):
                self._start(batch)
            yield from self._encoded(_BEHIND_PIXELS)
        for shape in list(self._waiting):
            self._start(self._waiting.pop(shape))
            yield from self._encoded(_BEHIND_PIXELS)
        self._collect()
        yield from self._encoded(0)

    def _decoded(
        self, samples: Iterable[Sample], decode: Callable[[Sample], Decoded | InputError]
    ) -> Iterator[tuple[Sample, Decoded | InputError]]:
        """Yield decoded images in order, while the next ones are read and decoded."""
        ahead: deque[tuple[Sample, Future[Decoded | InputError]]] = deque()
        feed = iter(samples)
        batch = 1
        while True:
            room = max(2, min(2 * batch, _AHEAD_BYTES // self._largest))
            while len(ahead) <= room and (sample := next(feed, None)) is not None:
                ahead.append((sample, self.pool.submit(decode, sample)))
            if not ahead:
                return
            first, future = ahead.popleft()
            with self.spent.on("wait"):
                decoded = future.result()
            if not isinstance(decoded, InputError):
                self._largest = max(self._largest, decoded.picture.nbytes)
                shape = self.predictor.input_shape(*decoded.picture.size)
                batch = self.predictor.batches.of(shape)
            yield first, decoded

    def _filled(self, decoded: Decoded) -> list[Decoded] | None:
        """Put an image beside others of its shape; return a batch that is full, or too much."""
        shape = self.predictor.input_shape(*decoded.picture.size)
        batch = self._waiting.setdefault(shape, [])
        batch.append(decoded)
        self._held += decoded.picture.nbytes
        if len(batch) < self.predictor.batches.of(shape):
            if self._held < _HELD_BYTES:
                return None
            shape = max(self._waiting, key=lambda s: len(self._waiting[s]) * s[0] * s[1])
        batch = self._waiting.pop(shape)
        self._held -= sum(d.picture.nbytes for d in batch)
        return batch

    def _start(self, batch: list[Decoded]) -> None:
        """Give the device a batch, then take the one before from it."""
        before = self.spent.of("forward")
        with self.spent.on("forward"):
            pending = self.predictor.start([d.picture for d in batch])
        own = self.spent.of("forward") - before
        self._collect()
        self._computing = batch, pending, own

    def _collect(self) -> None:
        """Wait for the batch that is computed, and hand it to the encoders."""
        if self._computing is None:
            return
        (batch, pending, own), self._computing = self._computing, None
        before = self.spent.of("forward")
        with self.spent.on("forward"):
            predicted = pending.result()
        own += self.spent.of("forward") - before
        # Where a device computes beside this thread, it was not idle in all of the wait.
        self.spent.move(pending.device_seconds() - own, "wait", "forward")
        for decoded, one in zip(batch, predicted, strict=True):
            height, width = decoded.picture.size
            self._behind += height * width
            future = self.pool.submit(self.encode, decoded, one)
            self._encoding.append((height * width, future))

    def _encoded(self, most: int) -> Iterator[tuple[Sample, Record | InputError]]:
        """Yield what is encoded; wait for it while more than `most` pixels are not."""
        while self._encoding and (self._behind > most or self._encoding[0][1].done()):
            pixels, future = self._encoding.popleft()
            self._behind -= pixels
            with self.spent.on("collect"):
                found = future.result()
            yield found
