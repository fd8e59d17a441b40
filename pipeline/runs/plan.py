"""The plan of a run: its shards, written below the store before work starts, read back one by one.

Parts are compressed Arrow streams of some megabytes. Nobody reads another's plan, and a run that
was taken up lists anew: an attempt takes its plan away when it ends, and those of attempts that
were killed go with the run that finishes on the same machine, or by `vacuum`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from pipeline.errors import StoreError
from pipeline.run import Run, Shard
from pipeline.runs.attempts import began, is_dead, may_have_crashed
from pipeline.runs.names import RUNS
from pipeline.samples import joined, of_batch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.files import Tree
    from pipeline.store import Store

PART_BYTES: Final = 16 << 20
_PREFIX: Final = "plan-"
_SHARD: Final = "shard"


class Plan:
    """The shards that one attempt of a run has to do."""

    def __init__(self, store: Store, run: Run) -> None:
        self._store, self._run = store, run
        self._held: list[pa.RecordBatch] = []
        self._size = self._parts = 0

    def add(self, samples: pa.RecordBatch) -> None:
        """Plan a batch of samples as one shard; none make no shard."""
        if not samples.num_rows:
            return
        self._held.append(samples)
        self._size += samples.nbytes
        if self._size >= PART_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write down what was added."""
        if self._held:
            rows = [batch.num_rows for batch in self._held]
            numbers = pa.array(np.repeat(np.arange(len(rows), dtype=np.int32), rows))
            table = pa.Table.from_batches([joined(self._held)]).append_column(_SHARD, numbers)
            self._store.sink().write(self._part(self._parts), _packed(table))
            self._parts += 1
            self._held.clear()
            self._size = 0

    def shards(self) -> Iterator[Shard]:
        """Read the plan back, a shard at a time.

        Raises:
            StoreError: someone took the plan away, or damaged it.
        """
        tree = self._store.tree()
        for number in range(self._parts):
            try:
                data = tree.read(self._part(number))
            except FileNotFoundError:
                raise StoreError(
                    f"{self._store.url}: the plan of run {self._run.name} was taken away "
                    f"(`store vacuum`?); run this again to do what is left"
                ) from None
            try:
                table = pa.ipc.open_stream(pa.BufferReader(data)).read_all().combine_chunks()
            except (pa.ArrowInvalid, OSError) as error:
                raise StoreError(
                    f"{self._store.url}: {self._part(number)} is damaged "
                    f"({' '.join(str(error).split())}); run this again to do what is left"
                ) from None
            ends = np.cumsum(np.bincount(table[_SHARD].to_numpy()))
            for start, end in zip([0, *ends[:-1]], ends, strict=True):
                yield Shard.of(of_batch(table.slice(start, end - start)))

    def remove(self, *, others: bool = False) -> None:
        """Remove this attempt's plan; with `others` those of dead attempts at the run as well."""
        sink = self._store.sink()
        for number in range(self._parts):
            sink.remove(self._part(number))
        self._parts = 0
        for name in _plans(self._store.tree(), self._run.name) if others else ():
            if is_dead(name.rsplit("/", 2)[-2]):
                sink.remove(name)

    def crashed(self) -> bool:
        """Tell whether another attempt left its plan, and is not known to be at work now."""
        names = _plans(self._store.tree(), self._run.name)
        return any(may_have_crashed(name.rsplit("/", 2)[-2]) for name in names)

    def _part(self, number: int) -> str:
        return f"{RUNS}/{self._run.name}/{self._run.attempt}/{_PREFIX}{number:05d}.arrow"


def _packed(table: pa.Table) -> memoryview:
    packed = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(packed, table.schema, options=options) as out:
        out.write_table(table)
    return memoryview(packed.getvalue())


def stale_plans(tree: Tree, hours: float) -> list[str]:
    """Return the plans of finished runs, and of attempts that began longer ago than `hours`."""
    before = time.time_ns() - int(hours * 3600e9)
    found = []
    for run in sorted(tree.names(RUNS)) if tree.isdir(RUNS) else []:
        finished = tree.exists(f"{RUNS}/{run}/finished.json")
        found += [
            name
            for name in _plans(tree, run)
            if finished or began(name.rsplit("/", 2)[-2]) < before
        ]
    return found


def _plans(tree: Tree, run: str) -> list[str]:
    folder = f"{RUNS}/{run}"
    if not tree.isdir(folder):
        return []
    names = (entry.name for entry in tree.walk(folder))
    return sorted(name for name in names if name.rpartition("/")[2].startswith(_PREFIX))
