"""The driver's side of a run: plan, adopt, hand out shards, commit as they come, sum up."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import InputError, StoreError, TooManyErrors
from pipeline.release import release
from pipeline.run import Run, Shard, ShardWriter, Shelved
from pipeline.runs.failures import Failure
from pipeline.runs.keys import as_bytes, row_keys
from pipeline.runs.ledger import Ledger
from pipeline.runs.metrics import RunMetrics
from pipeline.runs.names import RUNS
from pipeline.runs.orphans import Orphans
from pipeline.runs.plan import Plan
from pipeline.runs.planning import Planner
from pipeline.runs.report import RunReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pipeline.record import Sample
    from pipeline.run import Labeller
    from pipeline.runner import Outcome, Runner
    from pipeline.runs.planning import Listing
    from pipeline.store import Store, Swap
    from pipeline.tables.fragment import Fragment

_COMMIT_FRAGMENTS: Final = 64
_COMMIT_SECONDS: Final = 20.0
_FIRST_COMMIT_SECONDS: Final = 5.0
"""Rows that are there early show that all of it works."""


def execute(
    store: Store,
    samples: Listing,
    make_labeller: Callable[[], Labeller],
    *,
    run: Run,
    choose_runner: Callable[[int], Runner],
    shard_rows: int = 256,
    ramp: bool = False,
    publish: str = "as they come",
    on_listed: Callable[[int, int], None] = lambda listed, todo: None,
    watch: Callable[[RunReport], None] = lambda report: None,
    facts: Mapping[str, Any] | None = None,
    spent: Mapping[str, float] | None = None,
) -> RunReport:
    """Label the samples that the store does not hold, and commit the rows.

    The listing comes as samples, or as batches of them (`pipeline.samples`), which costs a tenth.
    `choose_runner` gets the number of samples left to do. With `publish="at the end"` nothing is
    visible to readers before one commit at the end. `watch` gets the report, which goes on
    changing, when work begins, whenever a shard was booked, and at the end, also where there is
    nothing to do; `facts` say what makes the rows, for the store's history; `spent` are the
    driver's seconds before this, by stage. `watch` ends the run by TooManyErrors: what was done by
    then is committed, and the same command goes on.

    With `ramp` the first shards are small: where a full one takes minutes, something is done in
    seconds.

    A run whose last attempt ended without a word may have met an image that kills its process: it
    goes on where such an image is isolated.

    Raises:
        SumMismatch: an input was lost or doubled; a bug of ours.
    """
    drive = Drive(store, run, publish, facts or {})
    for stage, seconds in (spent or {}).items():
        drive.report.spend(stage, seconds)
    try:
        total = drive.plan(samples, shard_rows, on_listed, ramp=ramp)
        if total:
            writer = ShardWriter(make_labeller, drive.store.sink(), run)
            runner = choose_runner(total)
            runner = runner.isolated() if drive.crashed else runner
            drive.report.begin(total, runner.crew)
            watch(drive.report)
            metrics = RunMetrics(runner.meter, run.verb, run.name)
            with closing(runner.map(writer, drive.shards(), Shard.halves)) as outcomes:
                for outcome in outcomes:
                    drive.take(outcome)
                    metrics(drive.report)
                    drive.tell(watch)
            drive.report.end()
            metrics(drive.report)
        watch(drive.report)
        return drive.finish()
    finally:
        drive.close()


def _timed(samples: Listing, report: RunReport) -> Iterator[Any]:
    """Yield what a listing yields, and book the seconds that listing takes."""
    feed, spent = iter(samples), 0.0
    try:
        while True:
            start = time.perf_counter()
            sample = next(feed, None)
            spent += time.perf_counter() - start
            if sample is None:
                return
            yield sample
    finally:
        report.spend("list", spent)


class Drive:
    """The plan of one execution, and its commits as shards come in."""

    def __init__(self, store: Store, run: Run, publish: str, facts: Mapping[str, Any]) -> None:
        self.store, self._run, self._publish = store, run, publish
        self._report = RunReport(
            run.name, resumed=run.resumed, facts={**facts, "segmill": release()}
        )
        start = time.perf_counter()
        self._ledger, self._ledger_version = Ledger.of(store), store.version
        self._staged: list[Shelved] = []
        self._told = self._failures_told()
        self._again: dict[bytes, bool] = {}  # rows that the listing names again -> one was taken
        self._plan = Plan(store, run)
        self.crashed = run.resumed and self._plan.crashed()
        self._last_commit, self._patience = time.monotonic(), _FIRST_COMMIT_SECONDS
        self._report.spend("adopt", time.perf_counter() - start)

    @property
    def report(self) -> RunReport:
        """What the run came to so far."""
        return self._report

    def _failures_told(self) -> set[bytes]:
        """Return the failures that this run wrote down before it died."""
        if not self._run.resumed:
            return set()
        known = self.store.failures()
        known = known.filter(pc.equal(known["run"], self._run.name))
        batches = known.select(["dataset", "path", "message"]).to_batches(4096)
        return {_mark(**f) for batch in batches for f in batch.to_pylist()}

    def plan(
        self,
        samples: Listing,
        shard_rows: int,
        on_listed: Callable[[int, int], None] = lambda listed, todo: None,
        *,
        ramp: bool = False,
    ) -> int:
        """Write the plan, and return the samples left to do."""
        start, report = time.perf_counter(), self._report
        orphans = Orphans.of(self.store, self._run)
        planner = Planner(self._ledger, orphans, self._plan, shard_rows, ramp=ramp)
        planner.read(_timed(samples, report), on_listed)
        for orphan in planner.adopted:
            keys = tuple(as_bytes(orphan.keys.high, orphan.keys.low))
            self._staged.append(Shelved((orphan.fragment,), len(keys), (), keys))
        report.inputs, report.repeated = planner.listed, planner.repeated
        report.adopted = sum(o.fragment.rows for o in planner.adopted)
        report.skipped = planner.listed - planner.todo
        report.changed = planner.changed
        self._again = planner.again
        report.spend("plan", time.perf_counter() - start - report.seconds["list"])
        return planner.todo

    def shards(self) -> Iterator[Shard]:
        """Read the plan back, a shard at a time; what the listing names again is left out."""
        for shard in self._plan.shards():
            once = self._firsts(shard.samples) if self._again else shard.samples
            if once:
                yield shard if len(once) == len(shard.samples) else Shard.of(once)

    def _firsts(self, samples: Sequence[Sample]) -> list[Sample]:
        datasets = pa.array([s.dataset for s in samples], pa.string())
        keys = row_keys(datasets, pa.array([s.path for s in samples], pa.string()))
        once = []
        for key, sample in zip(keys, samples, strict=True):
            if not self._again.get(key, False):
                once.append(sample)
            if key in self._again:
                self._again[key] = True
        return once

    def take(self, outcome: Outcome[Shard, Shelved]) -> None:
        """Book a shard's outcome, and commit when it is time."""
        shelved = outcome.result
        if shelved is None:
            shelved = self._failed(outcome.chunk, outcome.error)
        self._report.book(shelved)
        self._staged.append(shelved)
        waited = time.monotonic() - self._last_commit
        due = len(self._staged) >= _COMMIT_FRAGMENTS or waited > self._patience
        if due and self._publish == "as they come":
            self._commit()

    def tell(self, watch: Callable[[RunReport], None]) -> None:
        """Show the report to who watches; when they say that it is enough, commit what is done.

        Raises:
            TooManyErrors: they said so.
        """
        try:
            watch(self._report)
        except TooManyErrors:
            if self._staged and self._publish == "as they come":
                self._commit()
            raise

    def _failed(self, shard: Shard, error: BaseException | None) -> Shelved:
        """Turn a shard that raised into failures: only bad input may, all else ends the job."""
        if not isinstance(error, InputError):
            raise error or StoreError(f"shard {shard.name} ended without a result")
        failures = []
        for sample in shard.samples:
            named = type(error)(sample.path, error.cause, error.mend)
            failures.append(Failure.of(sample, "process", named))
        return Shelved((), 0, tuple(failures))

    def _commit(self) -> None:
        """Commit what is staged: failures first, so that none is lost between the two."""
        staged, self._staged, self._last_commit = self._staged, [], time.monotonic()
        self._patience = _COMMIT_SECONDS
        start = time.perf_counter()
        self._tell({_mark(f.dataset, f.path, f.message): f for s in staged for f in s.failures})
        fragments = [f for s in staged for f in s.fragments]
        if fragments:
            keys = {key for shelved in staged for key in shelved.keys}
            self._swap_in(fragments, keys)
        self._report.spend("commit", time.perf_counter() - start)

    def _tell(self, failed: dict[bytes, Failure]) -> None:
        """Write failures to the errors table, each once a run."""
        new = sorted(failed.keys() - self._told)
        if new:
            digest = hashlib.blake2b(b"".join(new), digest_size=12).hexdigest()
            name = f"{self._run.name}/{digest}"
            rows = [failed[mark] for mark in new]
            self.store.add_failures(rows, self._run.name, self._run.at, name)
            self._told.update(new)

    def _swap_in(self, fragments: list[Fragment], keys: set[bytes]) -> None:
        """Add fragments and remove the rows that they replace, in one commit."""

        def swap(store: Store) -> Swap:
            if store.version != self._ledger_version:  # another writer was here
                self._ledger.follow(store)
                self._ledger_version = store.version
            left, gone = self._ledger.displaced(store, keys, fragments)
            return [*fragments, *left], gone

        before = self.store.latest()
        note = {
            "run": self._run.name,
            "verb": self._run.verb,
            "rows": sum(f.rows for f in fragments),
            "so_far": self._report.to_dict(),
        }
        self.store = before.commit(*swap(before), note=note, rebase=swap)
        # The ledger lacks the rows just added: a run writes each row once, and asks no more.
        self._ledger.own.update(f.path for f in fragments)
        if self.store.version == self._ledger_version + 1:
            self._ledger_version = self.store.version

    def finish(self) -> RunReport:
        """Commit the rest, mark the run as finished and return its report."""
        if self._staged:
            self._commit()
        report = self._report
        report.version = self.store.version
        report.check_sum()
        text = json.dumps({"verb": self._run.verb, **report.to_dict(), "version": report.version})
        self.store.sink().write(f"{RUNS}/{self._run.name}/finished.json", text.encode())
        self._plan.remove(others=True)
        return report

    def close(self) -> None:
        """Take the plan away: a run that is taken up lists anew."""
        with suppress(Exception):  # what ended the run says more
            self._plan.remove()


def _mark(dataset: str, path: str, message: str) -> bytes:
    """Return what makes two failures of one run the same; 16 bytes: all inputs may fail."""
    text = "\0".join((dataset, path, message))
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()
