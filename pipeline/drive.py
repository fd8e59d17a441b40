"""The driver's side of a run: plan, adopt, hand out shards, commit as they come, sum up."""

from __future__ import annotations

import hashlib
import json
import time
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.errors import InputError, StoreError
from pipeline.failures import Failure
from pipeline.fragment import Fragment, open_fragment
from pipeline.ledger import Ledger, row_key
from pipeline.record import Sample
from pipeline.run import RUNS, Run, RunReport, Shard, ShardWriter, Shelved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from pipeline.run import Labeller
    from pipeline.runner import Outcome, Runner
    from pipeline.store import Store

_PLAN_PART_BYTES: Final = 256 << 10
_COMMIT_FRAGMENTS: Final = 64
_COMMIT_SECONDS: Final = 20.0


def execute(
    store: Store,
    samples: Iterable[Sample],
    make_labeller: Callable[[], Labeller],
    *,
    run: Run,
    choose_runner: Callable[[int], Runner],
    shard_rows: int = 256,
    publish: str = "as they come",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> RunReport:
    """Label the samples that the store does not hold, and commit the rows.

    `choose_runner` gets the number of samples left to do. With `publish="at the end"` nothing is
    visible to readers before one commit at the end.

    Raises:
        SumMismatch: an input was lost or doubled; a bug of ours.
    """
    drive = _Drive(store, run, publish)
    drive.adopt()
    total = drive.plan(samples, shard_rows)
    if total:
        writer = ShardWriter(make_labeller, drive.store.sink(), run)
        runner = choose_runner(total)
        outcomes = runner.map(writer, drive.shards(), Shard.halves)
        for outcome in outcomes:
            on_progress(drive.take(outcome), total)
    return drive.finish()


class _Drive:
    """The driver's side of a run: the plan, and commits as shards come in."""

    def __init__(self, store: Store, run: Run, publish: str) -> None:
        self.store, self._run, self._publish = store, run, publish
        self._report = RunReport(run.name)
        self._ledger = Ledger.of(store)
        self._staged: list[Shelved] = []
        self._known: set[str] = set()  # failures that this run told of before it died
        self._twice: dict[bytes, bool] = {}  # rows that the listing names again -> first one seen
        self._parts = 0
        self._last_commit = time.monotonic()

    def adopt(self) -> None:
        """Commit fragments that this run wrote before it died."""
        tree, below = self.store.tree(), f"data/{self._run.name}"
        if not tree.isdir(below):
            return
        self._report.resumed = True
        held = {f.path for f in self.store.fragments()}
        for name in tree.names(below):
            path = f"{below}/{name}"
            if path in held or not name.endswith(".parquet"):
                continue
            try:
                fragment, keys = open_fragment(tree, path)
            except (OSError, ValueError):  # torn by a crash of the file system: done again
                continue
            rows = zip(keys["dataset"].to_pylist(), keys["image"].to_pylist(), strict=True)
            found = tuple(row_key(dataset, image["path"]) for dataset, image in rows)
            self._staged.append(Shelved(fragment, fragment.rows, (), found))
            self._report.adopted += fragment.rows
        known = self.store.failures().select(["run", "dataset", "path", "message"]).to_pylist()
        self._known = {_mark(**f) for f in known if f["run"] == self._run.name}
        self._commit()
        self._ledger = Ledger.of(self.store)

    def plan(self, samples: Iterable[Sample], shard_rows: int) -> int:
        """Write the plan: the listing in shards by position, less what the store holds.

        Return the number of samples that are left to do.
        """
        lines: list[bytes] = []
        listed_keys: list[NDArray[np.bytes_]] = []
        feed = iter(samples)
        while listed := list(islice(feed, shard_rows)):
            self._report.inputs += len(listed)
            left = self._ledger.missing(listed)
            if left:
                lines.append(_plan_line(Shard.of(left)))
                listed_keys.append(np.array([row_key(s.dataset, s.path) for s in left], "S16"))
            if sum(map(len, lines)) > _PLAN_PART_BYTES:
                self._write_part(lines)
        self._write_part(lines)
        keys = np.concatenate(listed_keys) if listed_keys else np.empty(0, "S16")
        unique, counts = np.unique(keys, return_counts=True)
        self._twice = {bytes(key).ljust(16, b"\0"): False for key in unique[counts > 1]}
        self._report.skipped = self._report.inputs - unique.size
        self._report.repeated = int(keys.size - unique.size)
        return int(unique.size)

    def _write_part(self, lines: list[bytes]) -> None:
        if lines:
            self.store.sink().write(self._part(self._parts), b"".join(lines))
            self._parts += 1
            lines.clear()

    def _part(self, number: int) -> str:
        return f"{RUNS}/{self._run.name}/plan-{number:05d}.jsonl"

    def shards(self) -> Iterator[Shard]:
        """Read the plan back, a shard at a time; what the listing names again is left out."""
        for number in range(self._parts):
            for line in self.store.tree().read(self._part(number)).splitlines():
                held = json.loads(line)
                samples = [Sample(**s) for s in held["samples"]]
                once = [s for s in samples if self._first(s)] if self._twice else samples
                if once:
                    yield (
                        Shard(held["shard"], tuple(samples)) if once == samples else Shard.of(once)
                    )

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
        due = len(self._staged) >= _COMMIT_FRAGMENTS or waited > _COMMIT_SECONDS
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
        return Shelved(None, 0, tuple(failures))

    def _commit(self) -> None:
        """Commit what is staged: failures first, so that none is lost between the two."""
        staged, self._staged, self._last_commit = self._staged, [], time.monotonic()
        start = time.perf_counter()
        failed = {_mark(f.dataset, f.path, f.message): f for s in staged for f in s.failures}
        new = sorted(failed.keys() - self._known)
        if new:
            name = hashlib.blake2b(json.dumps(new).encode(), digest_size=12).hexdigest()
            self.store.add_failures(
                [failed[mark] for mark in new], self._run.name, self._run.at,
                f"{self._run.name}/{name}",
            )  # fmt: skip
            self._known.update(new)
        fragments = [s.fragment for s in staged if s.fragment is not None]
        if fragments:
            keys = {key for shelved in staged for key in shelved.keys}

            def swap(store: Store) -> tuple[list[Fragment], list[Fragment]]:
                extra, gone = Ledger.of(store).displaced(store, keys, fragments)
                return [*fragments, *extra], gone

            extra, gone = self._ledger.displaced(self.store, keys, fragments)
            rows = sum(f.rows for f in fragments)
            note = {"run": self._run.name, "verb": self._run.verb, "rows": rows}
            self.store = self.store.commit([*fragments, *extra], gone, note=note, rebase=swap)
            if gone:
                self._ledger = Ledger.of(self.store)
        spent = time.perf_counter() - start
        self._report.seconds["commit"] = self._report.seconds.get("commit", 0.0) + spent

    def finish(self) -> RunReport:
        """Commit the rest, mark the run as finished and return its report."""
        if self._staged:
            self._commit()
        report = self._report
        report.version = self.store.version
        report.check_sum()
        text = json.dumps({"inputs": report.inputs, "done": report.done, "failed": report.failed})
        sink = self.store.sink()
        sink.write(f"{RUNS}/{self._run.name}/finished.json", text.encode())
        for number in range(self._parts):
            sink.remove(self._part(number))
        return report


def _mark(dataset: str, path: str, message: str, **_: object) -> str:
    """Return what makes two failures of one run the same."""
    return "\0".join((dataset, path, message))


def _plan_line(shard: Shard) -> bytes:
    samples: list[dict[str, Any]] = [
        {name: getattr(s, name) for name in Sample.__slots__} for s in shard.samples
    ]
    return (json.dumps({"shard": shard.name, "samples": samples}) + "\n").encode()
