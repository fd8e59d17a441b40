"""Batches of a store's samples, counted as the loop takes them, so that it can go on anywhere.

A dataset in a worker process is ahead of the loop and knows nothing of it: what has been learned
from is counted here, where the batches arrive.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, default_collate

from pipeline.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pipeline.dataset import StoreDataset

_STATE: Final = 1


class StoreLoader:
    """Batches of a dataset, one epoch after the other; it can be stopped and gone on with anywhere.

    A batch is what torch's `default_collate` makes of the samples; columns that are neither arrays
    nor numbers come as lists. `workers` are processes, `threads` decode in each of them. `context`
    is how processes start; stores in buckets take "spawn", as their clients survive no fork.

    Where ranks see the same number of rows (`even`) they get the same number of batches, too: one
    of which no row can be read is replaced by the one before it, or after it at the beginning.

    `epoch` is the epoch that comes next, or that the loop is in; `seen` is how many of this rank's
    rows the loop has been given of it. A loop that is left in the middle goes on there with the
    next `for`; `set_epoch` starts one from its beginning.
    """

    def __init__(
        self,
        dataset: StoreDataset,
        batch: int,
        workers: int = 0,
        threads: int = 1,
        drop_last: bool = False,
        pin_memory: bool = False,
        context: str | None = None,
    ) -> None:
        if batch < 1 or workers < 0 or threads < 1:
            raise UsageError(f"{batch=}, {workers=}, {threads=}: one or more, and no fewer workers")
        self.dataset, self.batch, self.threads = dataset, batch, threads
        self.workers, self.drop_last, self.pin_memory = workers, drop_last, pin_memory
        self.context = context or ("spawn" if "://" in dataset.store.url else None)
        self.epoch, self.seen = dataset.draw.epoch, 0
        self.failures: dict[str, str] = {}

    def __len__(self) -> int:
        """How many batches are left of this epoch."""
        left = max(0, len(self.dataset) - self.seen)
        return left // self.batch if self.drop_last else -(-left // self.batch)

    def __iter__(self) -> Iterator[Any]:
        self.dataset.set_epoch(self.epoch)
        ready = DataLoader(
            _Batches(self.dataset, self.seen, self.batch, self.threads, self.drop_last),
            batch_size=None,
            num_workers=self.workers,
            collate_fn=_as_is,  # type: ignore[arg-type]  # unbatched, it gets what the data set gives
            pin_memory=self.pin_memory,
            multiprocessing_context=self.context if self.workers else None,
        )
        even = self.dataset.draw.even
        last, owed = None, 0
        for piece in ready:
            self.seen += piece.rows
            for error in piece.failures:
                self.dataset.noted(error, self.failures)
            last = last if piece.batch is None else piece.batch
            owed = owed + 1 if even else int(piece.batch is not None)
            if last is not None:
                yield from repeat(last, owed)
                owed = 0
        if owed and even:
            raise self.dataset.nothing_readable(self.failures)
        self.set_epoch(self.epoch + 1)

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch from its beginning with the next `for`."""
        self.epoch, self.seen = epoch, 0
        self.dataset.set_epoch(epoch)

    def _identity(self) -> dict[str, Any]:
        """Return what must be the same for a place in an epoch to mean the same rows."""
        draw = self.dataset.draw
        return {
            "format": _STATE,
            "version": self.dataset.version,
            "rows": self.dataset.total,
            "where": None if self.dataset.where is None else str(self.dataset.where),
            "seed": draw.seed,
            "shuffle": draw.shuffle,
            "world": draw.world,
            "even": draw.even,
            "window": self.dataset.window,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return where the loop is: after the batch that it was given last. Plain numbers and text.

        Where ranks see the same number of rows (`even`), one rank's state is that of all.
        """
        return {"epoch": self.epoch, "seen": self.seen, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken: no row of that epoch comes twice, none is left out.

        The size of a batch, workers and threads may be others.

        Raises:
            UsageError: it is of other rows, another order or another number of ranks.
        """
        own = self._identity()
        other = [f"{n} {state.get(n)!r}, not {own[n]!r}" for n in own if state.get(n) != own[n]]
        if other:
            raise UsageError(
                f"{self.dataset.store.url}: the state is of {'; '.join(other)}: make the dataset "
                "as it was made then, or start an epoch with set_epoch()"
            )
        self.set_epoch(int(state["epoch"]))
        self.seen = int(state["seen"])


@dataclass(slots=True)
class Piece:
    """What became of some rows: samples, and why others gave none; `batch` once stacked."""

    rows: int
    samples: list[Any]
    failures: list[InputError | OSError]
    batch: Any = None

    @classmethod
    def of(cls, results: list[Any]) -> Piece:
        """Return a piece of samples and errors."""
        bad = [r for r in results if isinstance(r, (InputError, OSError))]
        good = [r for r in results if not isinstance(r, (InputError, OSError))]
        return cls(len(results), good, bad)

    def pin_memory(self) -> Piece:
        """Return it in memory that a GPU can copy from; torch's DataLoader calls this."""
        if isinstance(self.batch, dict):
            tensors = {k: v for k, v in self.batch.items() if isinstance(v, torch.Tensor)}
            self.batch |= {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return self


class _Batches(IterableDataset[Piece]):
    """The rest of an epoch in stacked batches, for one DataLoader."""

    def __init__(
        self, dataset: StoreDataset, start: int, batch: int, threads: int, drop_last: bool
    ) -> None:
        self._dataset, self._asked, self._drop_last = dataset, (start, batch, threads), drop_last

    def __iter__(self) -> Iterator[Piece]:
        for piece in self._dataset.pieces(*self._asked):
            if piece.rows == self._asked[1] or not self._drop_last:
                piece.batch = stacked(piece.samples) if piece.samples else None
                piece.samples = []
                yield piece


def stacked(samples: list[Any]) -> Any:
    """Return samples as a batch: arrays and numbers as tensors, all else in lists.

    Raises:
        UsageError: the arrays differ in size.
    """
    if not isinstance(samples[0], dict):
        return default_collate(samples)
    return {name: _column([s[name] for s in samples], name) for name in samples[0]}


def _column(values: list[Any], name: str) -> Any:
    if not isinstance(values[0], (np.ndarray, torch.Tensor, int, float)):
        return values
    if any(v is None for v in values):
        return values
    shapes = {getattr(v, "shape", ()) for v in values}
    if len(shapes) > 1:
        raise UsageError(
            f"the {name}s of a batch differ in size ({', '.join(map(str, sorted(shapes)))}): give "
            "the dataset a size=, or a transform that crops"
        )
    return default_collate(values)


def _as_is(piece: Piece) -> Piece:
    return piece
