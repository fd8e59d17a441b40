"""A run: one execution of a job that writes labels, from a listing of samples to committed rows.

    run = Run.begin(store, "label", kind="model", identity=[source, digest])
    report = execute(store, samples, make_labeller, run=run, choose_runner=choose)    # drive.py

The listing is cut into shards by position, the shards lose what the store holds already, and what
is left is the plan, written down before work starts. A worker labels a shard and writes it under
the shard's name, as one fragment or as several of bounded size; the driver commits fragments as
they come. A run that died is taken up again under its own name: fragments that it wrote and did not
commit are adopted, the rest is done. Resume, incremental update and idempotence are this one
mechanism.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

import pyarrow as pa

from pipeline.errors import InputError, SegmillError, SumMismatch, UsageError
from pipeline.record import Record, Sample, to_table
from pipeline.runs.attempts import new_attempt
from pipeline.runs.failures import Failure
from pipeline.runs.keys import row_keys
from pipeline.runs.names import RUNS, check_log, latest_runs
from pipeline.runs.report import Shift
from pipeline.spent import OWN, Spent
from pipeline.tables.fragment import Fragment, write_fragment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pipeline.store import Store
    from pipeline.trees.sinks import Sink

FRAGMENT_BYTES: Final = 64 << 20
"""Most that a fragment's rows take, but for a single row; a worker holds that a few times over."""
MOST_ROW_BYTES: Final = 1 << 30
"""A row that takes more is a failure: Arrow's arrays end at twice that."""


class Labeller(Protocol):
    """What a worker holds: turns samples into records, or into the error that stopped it."""

    def __call__(self, samples: Sequence[Sample]) -> Iterable[tuple[Sample, Record | InputError]]:
        """Yield each sample once, in any order, with its record or its error."""


@runtime_checkable
class Timed(Protocol):
    """A labeller that says where its time went; what it doesn't name is booked as `label`."""

    spent: Spent


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
    attempt: str = field(default_factory=new_attempt)
    resumed: bool = False

    @classmethod
    def begin(cls, store: Store, verb: str, *, kind: str, identity: Sequence[str]) -> Run:
        """Take up the unfinished run of this command, or begin a new one.

        Raises:
            StoreError: the end of the store's log is lost.
        """
        check_log(store)
        unfinished = cls.unfinished(store, verb, kind=kind, identity=identity)
        if unfinished is not None:
            return unfinished
        key, at = _key(verb, identity), _now()
        # The version tells apart two runs of one command within a second.
        run = cls(f"{verb}-{key}-{at:%Y%m%dT%H%M%S}-{store.version}", key, verb, at, kind)
        text = json.dumps({"name": run.name, "verb": verb, "at": at.isoformat()})
        store.sink().write(f"{RUNS}/{run.name}/run.json", text.encode())
        return run

    @classmethod
    def unfinished(
        cls, store: Store, verb: str, *, kind: str, identity: Sequence[str]
    ) -> Run | None:
        """Return the run of this command that began and did not finish, if there is one."""
        key, tree = _key(verb, identity), store.tree()
        for name in latest_runs(tree):
            if (
                f"-{key}-" not in name
                or not tree.exists(f"{RUNS}/{name}/run.json")
                or tree.exists(f"{RUNS}/{name}/finished.json")
            ):
                continue
            try:
                held = json.loads(tree.read(f"{RUNS}/{name}/run.json"))
                at = datetime.fromisoformat(held["at"])
            except (ValueError, KeyError, TypeError):  # torn by a crash: its work is done again
                continue
            return cls(name, key, verb, at, kind, resumed=True)
        return None


def _key(verb: str, identity: Sequence[str]) -> str:
    return hashlib.blake2b(json.dumps([verb, *identity]).encode(), digest_size=8).hexdigest()


def _now() -> datetime:
    """Return the time, or what SOURCE_DATE_EPOCH says it is (for reproducible stores)."""
    fixed = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        return datetime.fromtimestamp(int(fixed), UTC) if fixed else datetime.now(UTC)
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"SOURCE_DATE_EPOCH is seconds since 1970, not {fixed!r}") from None


@dataclass(frozen=True, slots=True)
class Shard:
    """Samples that one worker labels; its name is a hash of their identities."""

    name: str
    samples: tuple[Sample, ...]

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Shard:
        """Name a shard after its samples."""
        identities = [(s.dataset, s.path, s.fingerprint, s.digest) for s in samples]
        digest = hashlib.blake2b(json.dumps(identities).encode(), digest_size=12)
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
    """What a worker hands back for a shard: its fragments (none when all failed) and failures."""

    fragments: tuple[Fragment, ...]
    done: int
    failures: tuple[Failure, ...]
    keys: tuple[bytes, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage, since the worker's last shard (`pipeline.runs.report.Shift`)."""
    pixels: int = 0
    worker: str = ""


@dataclass(frozen=True, slots=True)
class ShardWriter:
    """A picklable factory: makes the worker that labels shards and writes their fragments."""

    make_labeller: Callable[[], Labeller]
    sink: Sink
    run: Run

    def __call__(self) -> Callable[[Shard], Shelved]:
        """Make the worker, in the process that will use it."""
        shift = Shift()
        worker = _ShardWorker(self.make_labeller(), self.sink, self.run, shift)
        shift.ready()
        return worker


@dataclass(frozen=True, slots=True)
class _ShardWorker:
    labeller: Labeller
    sink: Sink
    run: Run
    shift: Shift

    def __call__(self, shard: Shard) -> Shelved:
        self.shift.begin()
        start, written = time.perf_counter(), 0.0
        stage = "label" if self.run.kind != "truth" else "read"
        failed: list[Failure] = []
        pile = _Pile(self.sink, self.run, shard)
        for sample, result in self._label(shard.samples):
            if isinstance(result, Record):
                result = _too_large(result) or self._signed(sample, result)
            if isinstance(result, Record):
                written += pile.add(result)
            else:
                failed.append(Failure.of(sample, stage, result))
        if len(pile.rows) + len(failed) != len(shard.samples):
            raise SumMismatch(
                f"shard {shard.name}: {len(shard.samples)} samples, but {len(pile.rows)} records "
                f"and {len(failed)} failures"
            )
        written += pile.write()
        stages = self.labeller.spent.take() if isinstance(self.labeller, Timed) else {}
        rest = time.perf_counter() - start - written - sum(stages.get(s, 0.0) for s in OWN)
        doing = "label" if self.run.kind != "truth" else "ingest"
        spent = {doing: rest, "write": written, **stages}
        return Shelved(
            tuple(pile.fragments),
            len(pile.rows),
            tuple(failed),
            tuple(pile.keys()),
            self.shift.end(spent),
            pile.pixels,
            self.shift.worker,
        )

    def _label(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, Record | InputError]]:
        """Label samples, held one at a time; an image on which the labeller breaks fails alone.

        Raises:
            Exception: the labeller breaks, and labels none of the images: not they are the cause.
        """
        labelled, broke = 0, None
        for sample, result, error in self._tried(samples):
            labelled += isinstance(result, Record)
            broke = broke or error
            yield sample, result
        if broke is not None and not labelled and len(samples) > 1:
            raise broke

    def _tried(
        self, samples: Sequence[Sample]
    ) -> Iterator[tuple[Sample, Record | InputError, Exception | None]]:
        """Label samples; when the labeller breaks, those it left are tried in halves."""
        settled = set()
        try:
            for sample, result in self.labeller(samples):
                settled.add((sample.dataset, sample.path))
                yield sample, result, None
            return
        except SegmillError:
            raise
        except Exception as error:
            broke = error
        left = [s for s in samples if (s.dataset, s.path) not in settled]
        if not left:
            raise broke
        if len(samples) == 1:
            cause = f"{type(broke).__name__}: {' '.join(str(broke).split())}"
            path = samples[0].path
            yield samples[0], InputError(path, cause, "look at the file; please report"), broke
            return
        middle = max(1, len(left) // 2)
        for half in (left[:middle], left[middle:]):
            if half:
                yield from self._tried(half)

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


def _too_large(record: Record) -> InputError | None:
    """Return why a record fits no row; None when it does."""
    size = record.held_bytes
    if size <= MOST_ROW_BYTES:
        return None
    cause = f"its row would take {size:,} bytes, and the most is {MOST_ROW_BYTES:,}"
    return InputError(
        record.image.path or record.image_id, cause, "keep its image out of the store"
    )


@dataclass(slots=True)
class _Pile:
    """The records of a shard that wait to be written, and the fragments that were."""

    sink: Sink
    run: Run
    shard: Shard
    fragments: list[Fragment] = field(default_factory=list)
    rows: list[tuple[str, str]] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    size: int = 0
    pixels: int = 0

    def add(self, record: Record) -> float:
        """Take a record; write those before it when they are enough. Return the seconds of that."""
        size, spent = record.held_bytes, 0.0
        if self.size + size > FRAGMENT_BYTES:
            spent = self.write()
        self.records.append(record)
        self.size += size
        self.pixels += record.height * record.width
        self.rows.append((record.dataset, record.image.path or ""))
        return spent

    def keys(self) -> list[bytes]:
        """Return the identities of all rows that were added."""
        datasets, paths = ([row[n] for row in self.rows] for n in (0, 1))
        return row_keys(pa.array(datasets, pa.string()), pa.array(paths, pa.string()))

    def write(self) -> float:
        """Write what waits as one fragment; return the seconds that it took."""
        start = time.perf_counter()
        if self.records:
            path = fragment_path(self.run, self.shard, len(self.fragments))
            self.fragments.append(write_fragment(self.sink, path, to_table(self.records)))
            self.records.clear()
            self.size = 0
        return time.perf_counter() - start


def fragment_path(run: Run, shard: Shard, number: int = 0) -> str:
    """Return where a shard's fragment lies, below the store: NAME, NAME-1, NAME-2."""
    name = f"{shard.name}-{number}" if number else shard.name
    return f"data/{run.name}/{run.attempt}/{name}.parquet"
