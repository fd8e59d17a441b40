"""The driver's side of a run: plan, adopt, hand out shards, commit as they come, sum up."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import closing
from dataclasses import dataclass, field
from itertools import compress, islice
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.errors import InputError, StoreError
from pipeline.runs.failures import Failure
from pipeline.tables.fragment import Fragment, open_fragment
from pipeline.runs.ledger import Ledger, done_key, row_key
from pipeline.runs.plan import Plan
from pipeline.run import RUNS, Run, RunReport, Shard, ShardWriter, Shelved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from pipeline.record import Sample
    from pipeline.run import Labeller
    from pipeline.runner import Outcome, Runner
    from pipeline.store import Store, Swap

_COMMIT_FRAGMENTS: Final = 64
_COMMIT_SECONDS: Final = 20.0
_FIRST_COMMIT_SECONDS: Final = 5.0
"""Rows that are there early show that all of it works."""
_FIRST_SHARD_ROWS: Final = 8


def execute(
    store: Store,
    samples: Iterable[Sample],
    make_labeller: Callable[[], Labeller],
    *,
    run: Run,
    choose_runner: Callable[[int], Runner],
    shard_rows: int = 256,
    ramp: bool = False,
    publish: str = "as they come",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_listed: Callable[[int, int], None] = lambda listed, todo: None,
) -> RunReport:
    """Label the samples that the store does not hold, and commit the rows.

    `choose_runner` gets the number of samples left to do. With `publish="at the end"` nothing is
    visible to readers before one commit at the end. With `ramp` the first shards are small: where
    a full one takes minutes, something is done in seconds.

    Raises:
        SumMismatch: an input was lost or doubled; a bug of ours.
    """
    drive = _Drive(store, run, publish)
    total = drive.plan(samples, shard_rows, on_listed, ramp=ramp)
    if total:
        writer = ShardWriter(make_labeller, drive.store.sink(), run)
        runner = choose_runner(total)
        with closing(runner.map(writer, drive.shards(), Shard.halves)) as outcomes:
            for outcome in outcomes:
                on_progress(drive.take(outcome), total)
    return drive.finish()


@dataclass(slots=True)
class _Orphan:
    """A fragment that this run wrote before it died, and the listed samples that it covers."""

    fragment: Fragment
    rows: tuple[bytes, ...]
    labels: frozenset[bytes]
    covered: dict[bytes, Sample] = field(default_factory=dict)


class _Drive:
    """The plan of one execution, and its commits as shards come in."""

    def __init__(self, store: Store, run: Run, publish: str) -> None:
        self.store, self._run, self._publish = store, run, publish
        self._report = RunReport(run.name, resumed=run.resumed)
        self._ledger, self._ledger_version = Ledger.of(store), store.version
        self._orphans = self._find_orphans()
        self._staged: list[Shelved] = []
        self._told = self._failures_told()
        self._twice: dict[bytes, bool] = {}  # rows that the listing names again -> one was taken
        self._taken: set[bytes] = set()  # rows of adopted orphans
        self._plan = Plan(store, run)
        self._last_commit, self._patience = time.monotonic(), _FIRST_COMMIT_SECONDS

    def _find_orphans(self) -> list[_Orphan]:
        """Read what this run wrote and did not commit."""
        tree, below = self.store.tree(), f"data/{self._run.name}"
        if not self._run.resumed or not tree.isdir(below):
            return []
        held, found = {f.path for f in self.store.fragments()}, []
        for entry in tree.walk(below, (".parquet",)):
            if entry.name in held:
                continue
            try:
                fragment, keys = open_fragment(tree, entry.name)
            except (OSError, ValueError):  # torn by a crash of the file system: done again
                continue
            rows = tuple(row_key(k.dataset, k.path) for k in keys)
            labels = frozenset(done_key(k.dataset, k.path, k.fingerprint, k.digest) for k in keys)
            found.append(_Orphan(fragment, rows, labels))
        return found

    def _failures_told(self) -> set[str]:
        """Return the failures that this run wrote down before it died."""
        if not self._run.resumed:
            return set()
        known = self.store.failures().select(["run", "dataset", "path", "message"]).to_pylist()
        return {_mark(**f) for f in known if f["run"] == self._run.name}

    def plan(
        self,
        samples: Iterable[Sample],
        shard_rows: int,
        on_listed: Callable[[int, int], None] = lambda listed, todo: None,
        *,
        ramp: bool = False,
    ) -> int:
        """Write the plan: the listing in shards by position, less what the store holds.

        Of a row that the listing names again, the first counts. Return the samples left to do.
        """
        orphan_of = {label: o for o in self._orphans for label in o.labels}
        keys: list[NDArray[np.bytes_]] = []
        open_: list[NDArray[np.bool_]] = []
        feed, seen, todo = iter(samples), 0, 0
        sizes = _sizes(shard_rows, ramp=ramp)
        while listed := list(islice(feed, next(sizes))):
            missing = self._ledger.missing(listed)
            keys.append(np.array([row_key(s.dataset, s.path) for s in listed], "S16"))
            open_.append(np.array(missing, bool))
            left = []
            for sample in compress(listed, missing):
                label = done_key(sample.dataset, sample.path, sample.fingerprint, sample.digest)
                orphan = orphan_of.get(label)
                if orphan is None:
                    left.append(sample)
                else:
                    orphan.covered[label] = sample
            self._plan.add(left)
            seen, todo = seen + len(listed), todo + sum(missing)
            on_listed(seen, todo)
        for orphan in self._orphans:
            self._settle(orphan)
        self._plan.flush()
        return self._count(keys, open_)

    def _settle(self, orphan: _Orphan) -> None:
        """Adopt an orphan whose rows are all still to be done; else have them done again."""
        if orphan.labels == orphan.covered.keys() and len(orphan.rows) == len(orphan.labels):
            self._staged.append(Shelved((orphan.fragment,), len(orphan.rows), (), orphan.rows))
            self._report.adopted += len(orphan.rows)
            self._taken.update(orphan.rows)
        else:
            self._plan.add(list(orphan.covered.values()))

    def _count(self, keys: list[NDArray[np.bytes_]], open_: list[NDArray[np.bool_]]) -> int:
        """Sum up the listing: what is left to do, what is skipped, what is named again."""
        rows = np.concatenate(keys) if keys else np.empty(0, "S16")
        todo = np.concatenate(open_) if open_ else np.empty(0, bool)
        unique, first, counts = np.unique(rows, return_index=True, return_counts=True)
        report = self._report
        report.inputs, report.repeated = int(rows.size), int(rows.size - unique.size)
        for key, place in zip(unique[counts > 1], first[counts > 1], strict=True):
            name = bytes(key).ljust(16, b"\0")
            self._twice[name] = not todo[place] or name in self._taken
        left = int(todo[first].sum()) - report.adopted
        report.skipped = report.inputs - left
        return left

    def shards(self) -> Iterator[Shard]:
        """Read the plan back, a shard at a time; what the listing names again is left out."""
        for shard in self._plan.shards():
            once = [s for s in shard.samples if self._first(s)] if self._twice else shard.samples
            if once:
                yield shard if len(once) == len(shard.samples) else Shard.of(once)

    def _first(self, sample: Sample) -> bool:
        key = row_key(sample.dataset, sample.path)
        seen = self._twice.get(key)
        if seen is not None:
            self._twice[key] = True
        return not seen

    def take(self, outcome: Outcome[Shard, Shelved]) -> int:
        """Book a shard's outcome and return how many samples are booked so far."""
        shelved = outcome.result
        if shelved is None:
            shelved = self._failed(outcome.chunk, outcome.error)
        self._report.done += shelved.done
        self._report.failed += len(shelved.failures)
        for stage, spent in shelved.seconds.items():
            self._report.seconds[stage] = self._report.seconds.get(stage, 0.0) + spent
        self._staged.append(shelved)
        waited = time.monotonic() - self._last_commit
        due = len(self._staged) >= _COMMIT_FRAGMENTS or waited > self._patience
        if due and self._publish == "as they come":
            self._commit()
        return self._report.done + self._report.failed

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
        spent = time.perf_counter() - start
        self._report.seconds["commit"] = self._report.seconds.get("commit", 0.0) + spent

    def _tell(self, failed: dict[str, Failure]) -> None:
        """Write failures to the errors table, each once a run."""
        new = sorted(failed.keys() - self._told)
        if new:
            digest = hashlib.blake2b(json.dumps(new).encode(), digest_size=12).hexdigest()
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
        text = json.dumps({"inputs": report.inputs, "done": report.done, "failed": report.failed})
        self.store.sink().write(f"{RUNS}/{self._run.name}/finished.json", text.encode())
        self._plan.remove()
        return report


def _sizes(rows: int, *, ramp: bool) -> Iterator[int]:
    """Yield the rows of each shard, by position.

    >>> list(islice(_sizes(128, ramp=True), 8)), next(_sizes(128, ramp=False))
    ([8, 8, 16, 16, 32, 32, 64, 64], 128)
    """
    size = _FIRST_SHARD_ROWS if ramp else rows
    while size < rows:
        yield from (size, size)
        size *= 2
    while True:
        yield rows


def _mark(dataset: str, path: str, message: str, **_: object) -> str:
    """Return what makes two failures of one run the same."""
    return "\0".join((dataset, path, message))
