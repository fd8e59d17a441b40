"""A run: one execution of a job that writes labels, from a listing of samples to committed rows.

    run = Run.begin(store, "label", kind="model", identity=[source, digest])
    report = execute(store, samples, make_labeller, run=run, choose_runner=choose)    # drive.py

The listing is cut into shards by position, the shards lose what the store holds already, and what
is left is the plan, written down before work starts. A worker labels a shard and writes its
fragment under the shard's name; the driver commits fragments as they come. A run that died is taken
up again under its own name: fragments that it wrote and did not commit are adopted, the rest is
done. Resume, incremental update and idempotence are this one mechanism.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol

from pipeline.errors import InputError, SegmillError, SumMismatch
from pipeline.failures import Failure
from pipeline.fragment import Fragment, write_fragment
from pipeline.ledger import done_key, row_key
from pipeline.record import Record, Sample, to_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pipeline.sinks import Sink
    from pipeline.store import Store

RUNS: Final = "_segmill/runs"


class Labeller(Protocol):
    """What a worker holds: turns samples into records, or into the error that stopped it."""

    def __call__(self, samples: Sequence[Sample]) -> Iterable[tuple[Sample, Record | InputError]]:
        """Yield each sample once, in any order, with its record or its error."""


@dataclass(frozen=True, slots=True)
class Run:
    """Name, start and identity of one execution; `key` is equal for a repeated command.

    Each process that works on a run has an `attempt` of its own and writes under that name: two
    that run one command at once never write over each other's files.
    """

    name: str
    key: str
    verb: str
    at: datetime
    kind: str = "truth"
    attempt: str = field(default_factory=lambda: f"{time.time_ns():x}-{os.getpid()}")
    resumed: bool = False

    @classmethod
    def begin(cls, store: Store, verb: str, *, kind: str, identity: Sequence[str]) -> Run:
        """Take up the unfinished run of this command, or begin a new one."""
        key = hashlib.blake2b(json.dumps([verb, *identity]).encode(), digest_size=8).hexdigest()
        tree = store.tree()
        unfinished = [
            name
            for name in (tree.names(RUNS) if tree.isdir(RUNS) else [])
            if f"-{key}-" in name
            and tree.exists(f"{RUNS}/{name}/run.json")
            and not tree.exists(f"{RUNS}/{name}/finished.json")
        ]
        if unfinished:
            name = max(unfinished)
            held = json.loads(tree.read(f"{RUNS}/{name}/run.json"))
            return cls(name, key, verb, datetime.fromisoformat(held["at"]), kind, resumed=True)
        at = _now()
        # The version tells apart two runs of one command within a second.
        run = cls(f"{verb}-{key}-{at:%Y%m%dT%H%M%S}-{store.version}", key, verb, at, kind)
        text = json.dumps({"name": run.name, "verb": verb, "at": at.isoformat()})
        store.sink().write(f"{RUNS}/{run.name}/run.json", text.encode())
        return run


def _now() -> datetime:
    """Return the time, or what SOURCE_DATE_EPOCH says it is (for reproducible stores)."""
    fixed = os.environ.get("SOURCE_DATE_EPOCH")
    return datetime.fromtimestamp(int(fixed), UTC) if fixed else datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Shard:
    """Samples that one worker labels into one fragment; its name is a hash of their identities."""

    name: str
    samples: tuple[Sample, ...]

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Shard:
        """Name a shard after its samples."""
        digest = hashlib.blake2b(digest_size=12)
        for s in samples:
            digest.update(done_key(s.dataset, s.path, s.fingerprint, s.digest))
        return cls(digest.hexdigest(), tuple(samples))

    def halves(self) -> list[Shard]:
        """Return two smaller shards, or this one when it holds a single sample."""
        middle = len(self.samples) // 2
        return (
            [self]
            if not middle
            else [self.of(self.samples[:middle]), self.of(self.samples[middle:])]
        )


@dataclass(frozen=True, slots=True)
class Shelved:
    """What a worker hands back for a shard: its fragment (None when all failed) and failures."""

    fragment: Fragment | None
    done: int
    failures: tuple[Failure, ...]
    keys: tuple[bytes, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ShardWriter:
    """A picklable factory: makes the worker that labels shards and writes their fragments."""

    make_labeller: Callable[[], Labeller]
    sink: Sink
    run: Run

    def __call__(self) -> Callable[[Shard], Shelved]:
        """Make the worker, in the process that will use it."""
        return _ShardWorker(self.make_labeller(), self.sink, self.run)


@dataclass(frozen=True, slots=True)
class _ShardWorker:
    labeller: Labeller
    sink: Sink
    run: Run

    def __call__(self, shard: Shard) -> Shelved:
        start = time.perf_counter()
        records, failed, stage = [], [], "label" if self.run.kind != "truth" else "read"
        for sample, result in self._label(shard.samples):
            if isinstance(result, Record):
                records.append(self._signed(sample, result))
            else:
                failed.append(Failure.of(sample, stage, result))
        if len(records) + len(failed) != len(shard.samples):
            raise SumMismatch(
                f"shard {shard.name}: {len(shard.samples)} samples, but {len(records)} records "
                f"and {len(failed)} failures"
            )
        labelled = time.perf_counter()
        path = fragment_path(self.run, shard)
        fragment = write_fragment(self.sink, path, to_table(records)) if records else None
        spent = {"label": labelled - start, "write": time.perf_counter() - labelled}
        keys = tuple(row_key(r.dataset, r.image.path or "") for r in records)
        return Shelved(fragment, len(records), tuple(failed), keys, spent)

    def _label(self, samples: Sequence[Sample]) -> list[tuple[Sample, Record | InputError]]:
        """Label samples; an image on which the labeller breaks is found by halving.

        Raises:
            Exception: the labeller breaks on every image: not they are the cause.
        """
        try:
            return list(self.labeller(samples))
        except SegmillError:
            raise
        except Exception as error:
            if len(samples) == 1:
                cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
                sample = samples[0]
                return [(sample, InputError(sample.path, cause, "look at the file; please report"))]
            middle = len(samples) // 2
            found = self._label(samples[:middle]) + self._label(samples[middle:])
            if all(isinstance(result, InputError) for _, result in found):
                raise
            return found

    def _signed(self, sample: Sample, record: Record) -> Record:
        """Sign a record with the run, under the identity that it was listed with."""
        made = replace(
            record.provenance, model_digest=sample.digest, run=self.run.name, at=self.run.at
        )
        return replace(
            record,
            dataset=sample.dataset,
            image=replace(record.image, path=sample.path),
            fingerprint=sample.fingerprint,
            provenance=made,
        )


def fragment_path(run: Run, shard: Shard) -> str:
    """Return where a shard's fragment lies, below the store."""
    return f"data/{run.name}/{run.attempt}/{shard.name}.parquet"


@dataclass(slots=True)
class RunReport:
    """The sum of a run, its snapshot, and where its time went."""

    run: str
    repeated: int = 0
    """Inputs that the listing names again; they are among the skipped."""
    inputs: int = 0
    done: int = 0
    skipped: int = 0
    failed: int = 0
    resumed: bool = False
    adopted: int = 0
    version: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def check_sum(self) -> None:
        """Raise SumMismatch unless inputs = done + skipped + failed."""
        if self.inputs != self.done + self.skipped + self.failed:
            raise SumMismatch(
                f"run {self.run}: {self.inputs} inputs, but {self.done} done + {self.skipped} "
                f"already done + {self.failed} failed; please report this"
            )
