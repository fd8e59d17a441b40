"""Batches: shuffled, augmented, decoded ahead of the step that uses them, the same for a seed.

Every sample draws from a generator of its own (seed, epoch, pass, worker, position), so that the
order in which threads finish changes nothing, and an epoch can be repeated alone after a kill.
"""

from __future__ import annotations

import queue
import threading
from contextlib import closing
from dataclasses import dataclass
from itertools import count, islice
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import numpy as np
import torch

from pipeline.training.augment import augmented, pasted

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch import Tensor

    from pipeline.training.data import Channels, Reader, Row
    from pipeline.training.example import Example
    from pipeline.training.place import Place
    from pipeline.training.recipe import Recipe

T = TypeVar("T")
_Queue: TypeAlias = "queue.Queue[tuple[T | None, BaseException | None]]"
_READY: Final = 2


@dataclass(frozen=True, slots=True)
class Batch:
    """Images uint8 [N, H, W, 3] and channels [N, H, W], void where there is no class.

    Depth is float32 [N, H, W] in metres, 0 where there is none.
    """

    images: Tensor
    labels: Tensor
    depth: Tensor | None = None

    def pinned(self) -> Batch:
        """Return it in memory that a GPU can copy from while others work."""
        depth = None if self.depth is None else self.depth.pin_memory()
        return Batch(self.images.pin_memory(), self.labels.pin_memory(), depth)


@dataclass(frozen=True, slots=True)
class Epoch:
    """Which samples an epoch sees: `steps` batches of this worker, whatever rows turn out bad."""

    number: int
    steps: int
    skip: int = 0
    """Rows of this worker passed over first, for epochs that are shorter than the split."""


def train_batches(
    reader: Reader, recipe: Recipe, epoch: Epoch, place: Place, size: tuple[int, int] | None
) -> Generator[Batch]:
    """Yield the epoch's batches; rows that can't be read are made up for by others.

    Raises:
        StoreError: no row of the split can be read.
    """
    samples = _samples(reader, recipe, epoch, place, size)
    if recipe.augment.paste:
        samples = _pasted(samples, recipe, epoch, place.rank, reader.channels)
    made = _batched(samples, recipe.batch, pin=place.device.type == "cuda")
    with closing(prefetched(made)) as ready:
        yield from islice(ready, epoch.steps)


def _samples(
    reader: Reader, recipe: Recipe, epoch: Epoch, place: Place, size: tuple[int, int] | None
) -> Generator[Example]:
    from pipeline.training.data import repeated, shuffled

    for turn in count():
        seed = (recipe.seed, epoch.number, turn, place.rank)

        def work(row: Row, position: int, seed: tuple[int, ...] = seed) -> Any:
            rng = np.random.default_rng((*seed, position))
            example = reader.load(row, size)
            return augmented(example, recipe.augment, reader.channels.void, rng)

        rng = np.random.default_rng(seed)
        rows = repeated(reader.rows(place.rank, place.world), rng)
        rows = islice(rows, epoch.skip if turn == 0 else 0, None)
        mixed = shuffled(rows, rng, recipe.shuffle_rows)
        good = 0
        for sample in reader.loaded(mixed, work, place.threads, ahead=2 * recipe.batch):
            good += 1
            yield sample
        if not good and turn:
            raise reader.nothing_readable()


def _pasted(
    samples: Generator[Example], recipe: Recipe, epoch: Epoch, rank: int, channels: Channels
) -> Generator[Example]:
    """Paste things of each sample's predecessor over some; the first of an epoch has none."""
    rng = np.random.default_rng((recipe.seed, epoch.number, rank))
    before = None
    try:
        for example in samples:
            mixed = example
            if before is not None and rng.random() < recipe.augment.paste:
                shown = np.unique(before.labels[before.labels != channels.void])
                chosen = np.intersect1d(shown, channels.things)
                if not channels.things:
                    chosen = rng.permutation(shown)[: (len(shown) + 1) // 2]
                mixed = pasted(example, before, chosen)
            before = example
            yield mixed
    finally:
        samples.close()


def _batched(samples: Generator[Example], size: int, *, pin: bool) -> Generator[Batch]:
    try:
        while True:
            batch = stacked(list(islice(samples, size)))
            yield batch.pinned() if pin else batch
    finally:
        samples.close()


def stacked(examples: list[Example]) -> Batch:
    """Return samples of one size as a batch."""
    labels = np.stack([e.labels for e in examples])
    if labels.dtype == np.uint16:  # torch indexes by few unsigned types
        labels = labels.astype(np.int32)
    depths = [e.depth for e in examples if e.depth is not None]
    return Batch(
        torch.from_numpy(np.stack([e.image for e in examples])),
        torch.from_numpy(labels),
        torch.from_numpy(np.stack(depths)) if depths else None,
    )


def prefetched(items: Generator[T], ready: int = _READY) -> Generator[T]:
    """Yield the items, which a thread computes ahead; it ends when the consumer does."""
    done: _Queue[T] = queue.Queue(ready)
    stop = threading.Event()
    thread = threading.Thread(target=_produce, args=(items, done, stop), daemon=True)
    thread.start()
    try:
        while True:
            item, error = done.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stop.set()
        thread.join()


def _produce(items: Generator[T], done: _Queue[T], stop: threading.Event) -> None:
    """Fill the queue from the items until they end or `stop` is set; close them then."""

    def offer(item: T | None, error: BaseException | None = None) -> None:
        while not stop.is_set():
            try:
                return done.put((item, error), timeout=0.1)
            except queue.Full:
                continue

    try:
        for item in items:
            offer(item)
            if stop.is_set():
                break
        offer(None)
    except BaseException as error:
        offer(None, error)
    finally:
        items.close()


def val_examples(reader: Reader, place: Place, batch: int) -> Generator[list[Example]]:
    """Yield this worker's share of a split in groups of one image size, at most `batch` each."""
    rows = reader.rows(place.rank, place.world)
    group: list[Example] = []
    for example in reader.loaded(rows, lambda row, _: reader.load(row), place.threads, 2 * batch):
        if group and (len(group) == batch or group[0].image.shape != example.image.shape):
            yield group
            group = []
        group.append(example)
    if group:
        yield group
