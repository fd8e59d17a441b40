"""The plan of a run: its shards, written below the store before work starts, read back one by one.

Parts are compressed JSON lines of some megabytes. Nobody reads another's plan, and a run that was
taken up lists anew: plans go when the run is finished, those of attempts that died with them.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from pipeline.errors import StoreError
from pipeline.record import Sample
from pipeline.run import RUNS, Run, Shard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.files import Tree
    from pipeline.store import Store

PART_BYTES: Final = 8 << 20
_PREFIX: Final = "plan-"


class Plan:
    """The shards that one attempt of a run has to do."""

    def __init__(self, store: Store, run: Run) -> None:
        self._store, self._run = store, run
        self._lines: list[bytes] = []
        self._size = self._parts = 0

    def add(self, samples: list[Sample]) -> None:
        """Plan samples as one shard; none make no shard."""
        if not samples:
            return
        line = _line(Shard.of(samples))
        self._lines.append(line)
        self._size += len(line)
        if self._size >= PART_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write down what was added."""
        if self._lines:
            self._store.sink().write(self._part(self._parts), _packed(b"".join(self._lines)))
            self._parts += 1
            self._lines.clear()
            self._size = 0

    def shards(self) -> Iterator[Shard]:
        """Read the plan back, a shard at a time.

        Raises:
            StoreError: another process finished this run meanwhile, and took its plans away.
        """
        tree = self._store.tree()
        for number in range(self._parts):
            try:
                text = _unpacked(tree.read(self._part(number)))
            except FileNotFoundError:
                raise StoreError(
                    f"{self._store.url}: another process finished run {self._run.name} at the same "
                    f"time; run this again to do what it left"
                ) from None
            for line in text.splitlines():
                held = json.loads(line)
                yield Shard(held["shard"], tuple(Sample(**s) for s in held["samples"]))

    def remove(self) -> None:
        """Remove the plans of all attempts at this run."""
        sink = self._store.sink()
        for name in _plans(self._store.tree(), self._run.name):
            sink.remove(name)

    def others(self) -> bool:
        """Tell whether plans of other attempts are there: those crashed, or are at work now."""
        return bool(_plans(self._store.tree(), self._run.name))

    def remove_own(self) -> None:
        """Remove the plan of this attempt: it ends in order, though not at the run's end."""
        sink = self._store.sink()
        for number in range(self._parts):
            sink.remove(self._part(number))

    def _part(self, number: int) -> str:
        return f"{RUNS}/{self._run.name}/{self._run.attempt}/{_PREFIX}{number:05d}.jsonl.zst"


def stale_plans(tree: Tree, hours: float) -> list[str]:
    """Return the plans of finished runs, and of attempts that began longer ago than `hours`."""
    before = time.time_ns() - int(hours * 3600e9)
    found = []
    for run in sorted(tree.names(RUNS)) if tree.isdir(RUNS) else []:
        finished = tree.exists(f"{RUNS}/{run}/finished.json")
        found += [
            name
            for name in _plans(tree, run)
            if finished or _began(name.rsplit("/", 2)[-2]) < before
        ]
    return found


def _plans(tree: Tree, run: str) -> list[str]:
    folder = f"{RUNS}/{run}"
    if not tree.isdir(folder):
        return []
    names = (entry.name for entry in tree.walk(folder))
    return sorted(name for name in names if name.rpartition("/")[2].startswith(_PREFIX))


def _began(attempt: str) -> int:
    """Return when an attempt began, in nanoseconds: its name says so."""
    try:
        return int(attempt.partition("-")[0], 16)
    except ValueError:
        return time.time_ns()


def _line(shard: Shard) -> bytes:
    samples: list[dict[str, Any]] = [
        {name: getattr(s, name) for name in Sample.__slots__} for s in shard.samples
    ]
    return (json.dumps({"shard": shard.name, "samples": samples}) + "\n").encode()


def _packed(text: bytes) -> bytes:
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, "zstd") as out:
        out.write(text)
    return bytes(packed.getvalue())


def _unpacked(data: bytes) -> bytes:
    with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as packed:
        return bytes(packed.read())
