"""Bring the rows of several stores into one, in one label space, fit to be trained on.

    store, report = merge([coco, nyu], lambda space: Store.create("all", [space]), unified)

Fragments of the sources are read in parallel, each becomes one of the target, under a name that
says what it was made of: one that the target holds already is not made again. A row that cannot be
moved goes to the target's errors table. What is held per row is its identity: 16 bytes of its
place, and hashes by which the same image is found across datasets.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from copy import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from pipeline.checks.duplicates import find_twins
from pipeline.checks.identities import Identities
from pipeline.errors import InputError, SegmillError, UsageError
from pipeline.labels.derive import with_mask
from pipeline.labels.relabel import Relabeller
from pipeline.loss import Loss
from pipeline.record import to_table
from pipeline.runner import LocalRunner
from pipeline.runs.failures import Failure
from pipeline.runs.ledger import Ledger, row_key
from pipeline.tables.fragment import Fragment, write_fragment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from pipeline.label_space import LabelSpace
    from pipeline.record import Record
    from pipeline.runner import Runner
    from pipeline.store import Store, Swap

    Keys: TypeAlias = "NDArray[np.bytes_]"

PAINTED: Final = "images whose mask was painted of their objects"
"""What the loss calls rows that got a mask: where objects overlap, it shows the smaller one."""
UNPAINTED: Final = "images whose objects cannot be painted, their run lengths are bad"
_KEY: Final = np.dtype("S16")
_COMMIT_FRAGMENTS: Final = 32
_SCAN_ROWS: Final = 16384


@dataclass(slots=True)
class MergeReport:
    """What a merge lost, painted and found twice."""

    loss: Loss = field(default_factory=Loss)
    rows: int = 0
    """Rows written."""
    superseded: int = 0
    """Rows left out, as a later source has the same image of the same dataset."""
    held: int = 0
    """Rows left alone, as the target holds what their fragment becomes."""
    failed: int = 0
    """Rows that cannot be moved; they are in the target's errors table."""
    painted: int = 0
    """Rows that had objects only, and got the mask that these paint."""
    facts_replaced: list[str] = field(default_factory=list)
    """Facts of which a later source, or one that was merged later, says something else."""
    shared: Counter[str] = field(default_factory=Counter)
    """Rows that are the same image as another one, by kind of finding: reported, not dropped."""


@dataclass(frozen=True, slots=True)
class _Task:
    """One fragment of a source, and which of its rows a later source supersedes."""

    source: int
    fragment: Fragment
    superseded: frozenset[bytes]
    path: str
    """Where it goes when every row can be moved."""


@dataclass(frozen=True, slots=True)
class _Merged:
    """What became of a fragment; `made` is None where no row is left."""

    made: Fragment | None
    failures: tuple[Failure, ...]
    keys: frozenset[bytes]
    loss: Loss
    painted: int
    superseded: int


def merge(
    sources: Sequence[Store],
    make_target: Callable[[LabelSpace], Store],
    space: LabelSpace | None,
    on_progress: Callable[[int], None] = lambda done: None,
    *,
    paint: bool = True,
    runner: Runner | None = None,
) -> tuple[Store, MergeReport]:
    """Bring the rows of several stores into one, in `space` or in the one that all share.

    A row that the target holds already (dataset and image path) is replaced; of rows that several
    sources hold the last source's counts. With `paint` rows that have objects but no mask get the
    mask that the objects paint, so that they can be trained on.

    Raises:
        UsageError: the stores have several label spaces and none was named.
    """
    spaces = [source.used_spaces() for source in sources]
    used = [s for named in spaces for s in named]
    space = space or _shared(used)
    report, relabel = MergeReport(), Relabeller.to(space, used)
    superseded = _survey(sources, report)
    target = make_target(space)
    for source in sources:
        report.facts_replaced += target.facts_replaced(source.facts)
        target = target.with_facts(source.facts)
    drive = _MergeDrive(target, report, _run_name(sources, space, paint=paint))
    marks = [_mark(relabel, named, paint=paint) for named in spaces]
    tasks = drive.missing(_tasks(sources, superseded, marks))
    work = _MergePlan(tuple(sources), target, relabel, paint)
    for outcome in (runner or LocalRunner()).map(work, tasks):
        if outcome.error is not None:
            raise outcome.error
        assert outcome.result is not None
        drive.take(outcome.chunk, outcome.result)
        on_progress(report.rows + report.held)
    return drive.finish(), report


def _run_name(sources: Sequence[Store], space: LabelSpace, *, paint: bool) -> str:
    """Return what the errors table calls this merge: the same when it is repeated."""
    name = hashlib.blake2b(digest_size=8)
    name.update("\0".join([*(s.url for s in sources), space.to_json(), str(paint)]).encode())
    return f"merge-{name.hexdigest()}"


class _MergeDrive:
    """The driver's side: books fragments as they come, and commits them."""

    def __init__(self, target: Store, report: MergeReport, run: str) -> None:
        self._target, self._report, self._run = target, report, run
        self._ledger = Ledger.of(target)
        self._waiting: list[_Merged] = []
        self._committed = 0

    def missing(self, tasks: Iterator[_Task]) -> Iterator[_Task]:
        """Yield the tasks whose outcome the target lacks, and book the others."""
        held = {f.path for f in self._target.fragments()}
        for task in tasks:
            if task.path in held:
                self._report.superseded += len(task.superseded)
                self._report.held += task.fragment.rows - len(task.superseded)
            else:
                yield task

    def take(self, task: _Task, merged: _Merged) -> None:
        """Book what became of a fragment, and commit when enough are there."""
        report = self._report
        report.loss += merged.loss
        report.painted += merged.painted
        report.superseded += merged.superseded
        report.failed += len(merged.failures)
        report.rows += task.fragment.rows - merged.superseded - len(merged.failures)
        self._waiting.append(merged)
        # A commit walks over all fragments that are there: growing batches keep the sum linear.
        if len(self._waiting) >= max(_COMMIT_FRAGMENTS, self._committed // 8):
            self._commit()

    def finish(self) -> Store:
        """Commit the rest and return the target."""
        self._commit()
        return self._target

    def _commit(self) -> None:
        """Add fragments and take out the rows that they replace, in one step; failures first."""
        merged, self._waiting = self._waiting, []
        self._tell([f for m in merged for f in m.failures])
        made = [m.made for m in merged if m.made is not None]
        keys = frozenset().union(*(m.keys for m in merged))

        def swap(store: Store) -> Swap:
            left, gone = self._ledger.displaced(store, keys, made) if keys else ([], [])
            return [*made, *left], gone

        def rebased(store: Store) -> Swap:
            self._ledger.follow(store)
            return swap(store)

        note = {"merged": len(made), "rows": sum(f.rows for f in made)}
        self._target = self._target.commit(*swap(self._target), note=note, rebase=rebased)
        self._ledger.own.update(f.path for f in made)
        self._committed += len(merged)

    def _tell(self, failed: Sequence[Failure]) -> None:
        """Write failures to the errors table, each once however often the merge is repeated."""
        if not failed:
            return
        columns = ["run", "dataset", "path", "message"]
        known = self._target.failures().select(columns).to_pylist()
        told = {(k["dataset"], k["path"], k["message"]) for k in known if k["run"] == self._run}
        new = [f for f in failed if (f.dataset, f.path, f.message) not in told]
        name = hashlib.blake2b(digest_size=12)
        for mark in sorted((f.dataset, f.path, f.message) for f in new):
            name.update("\0".join(mark).encode("utf-8", "surrogateescape"))
        at, place = datetime.now(UTC), f"{self._run}/{name.hexdigest()}"
        self._target.add_failures(new, self._run, at, place)


def _shared(used: Sequence[LabelSpace]) -> LabelSpace:
    names = sorted({s.name for s in used})
    if len(names) > 1:
        raise UsageError(f"the stores have several label spaces ({', '.join(names)}); name one")
    if not used:
        raise UsageError("the stores have no rows to merge; name a label space with rows in it")
    return used[0]


@dataclass(slots=True)
class _Rows:
    """The identities of a source's rows, and the number of the fragment that holds each."""

    keys: Keys
    homes: NDArray[np.int32]
    paths: list[str]

    def in_fragments(self, wanted: Keys) -> dict[str, Keys]:
        """Return, by fragment, the rows among those wanted."""
        at = np.flatnonzero(np.isin(self.keys, wanted))
        at = at[np.argsort(self.homes[at], kind="stable")]
        numbers, starts = np.unique(self.homes[at], return_index=True)
        groups = np.split(self.keys[at], starts[1:])
        return {self.paths[n]: group for n, group in zip(numbers.tolist(), groups, strict=False)}


def _survey(sources: Sequence[Store], report: MergeReport) -> list[dict[str, Keys]]:
    """Note which images are the same; return of each source the rows that a later one has too."""
    held: list[_Rows] = []
    known: list[Identities] = []
    for source in sources:
        rows, identities = _identities(source)
        held.append(rows)
        known += identities
    twins = find_twins(Identities.joined(known))
    report.shared = Counter(t.kind for t in twins if t.kind not in {"row-repeated", "id-repeated"})
    later, superseded = np.zeros(0, _KEY), []
    for mine in reversed(held):
        superseded.append(mine.in_fragments(later))
        later = np.union1d(later, mine.keys)
    return superseded[::-1]


def _identities(source: Store) -> tuple[_Rows, list[Identities]]:
    columns = ("image_id", "dataset", "split", "fingerprint", "image.path")
    keys, homes = [np.zeros(0, _KEY)], [np.zeros(0, np.int32)]
    numbers: dict[str, int] = {}
    known = []
    for home, batch in source.scan_fragments(columns, _SCAN_ROWS):
        held: dict[str, Sequence[Any]] = {
            name.removeprefix("image."): batch[name].to_pylist() for name in columns
        }
        known.append(Identities.of(held))
        pairs = zip(held["dataset"], held["path"], strict=True)
        keys.append(np.array([row_key(d, p or "") for d, p in pairs], _KEY))
        homes.append(np.full(batch.num_rows, numbers.setdefault(home, len(numbers)), np.int32))
    return _Rows(np.concatenate(keys), np.concatenate(homes), list(numbers)), known


def _mark(relabel: Relabeller, spaces: Sequence[LabelSpace], *, paint: bool) -> bytes:
    """Return a digest of what becomes of the rows of a source: another one makes them anew."""
    mark = hashlib.blake2b(digest_size=16)
    mark.update(f"{paint}\0{relabel.target.to_json()}".encode())
    for space in spaces:
        mark.update(f"\0{space.to_json()}\0".encode())
        mark.update(relabel.remaps[space.name].lut.tobytes())
    return mark.digest()


def _tasks(
    sources: Sequence[Store], superseded: Sequence[dict[str, Keys]], marks: Sequence[bytes]
) -> Iterator[_Task]:
    for number, source in enumerate(sources):
        for fragment in source.fragments():
            keys = superseded[number].get(fragment.path, np.zeros(0, _KEY)).tolist()
            # NumPy takes the zero bytes at the end of a key away.
            gone = frozenset(key.ljust(_KEY.itemsize, b"\0") for key in keys)
            name = hashlib.blake2b(marks[number], digest_size=12)
            name.update(f"\0{source.url}\0{fragment.path}\0".encode())
            for key in sorted(gone):
                name.update(key)
            yield _Task(number, fragment, gone, f"data/merged/{name.hexdigest()}.parquet")


@dataclass(frozen=True, slots=True)
class _MergePlan:
    """A picklable factory: makes the worker that moves fragments."""

    sources: tuple[Store, ...]
    target: Store
    relabel: Relabeller
    paint: bool

    def __call__(self) -> Callable[[_Task], _Merged]:
        return _Mover(tuple(map(copy, self.sources)), self.target, self.relabel, self.paint)


@dataclass(frozen=True, slots=True)
class _Mover:
    sources: tuple[Store, ...]
    target: Store
    relabel: Relabeller
    paint: bool

    def __call__(self, task: _Task) -> _Merged:
        source, loss, painted = self.sources[task.source], Loss(), 0
        records: list[Record] = []
        keys: list[bytes] = []
        failures: list[Failure] = []
        left_out = 0
        for record in source.rows(task.fragment):
            key = row_key(record.dataset, record.image.path or "")
            if key in task.superseded:
                left_out += 1
                continue
            try:
                moved, lost = self._moved(record, source)
            except InputError as error:
                failures.append(Failure.of_row(record, "merge", error))
                continue
            painted += moved.mask is not None and record.mask is None
            loss += lost
            records.append(moved)
            keys.append(key)
        if painted:
            loss.attributes[PAINTED] = painted
        made = self._write(task, records, keys, complete=not failures) if records else None
        return _Merged(made, tuple(failures), frozenset(keys), loss, painted, left_out)

    def _moved(self, record: Record, source: Store) -> tuple[Record, Loss]:
        """Return a row in the target's classes.

        Raises:
            InputError: it cannot be moved: its mask is torn, it names a class that is none.
        """
        loss = Loss()
        try:
            if self.paint and record.mask is None and record.instances:
                # In the source's classes: an object whose class has no counterpart hides what lies
                # below it, and becomes void with it.
                record = self._painted(record, source, loss)
            moved, lost = self.relabel(record)
        except (SegmillError, OSError, MemoryError):
            raise
        except Exception as error:  # one bad row must not end a merge of millions
            cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
            mend = "look at it with `segmill store validate`, and ingest it again"
            raise InputError(record.image_id, cause, mend) from error
        return moved, loss + lost

    def _painted(self, record: Record, source: Store, loss: Loss) -> Record:
        try:
            return with_mask(record, source.space(record.label_space))
        except InputError:
            loss.attributes[UNPAINTED] = loss.attributes.get(UNPAINTED, 0) + 1
            return record

    def _write(
        self, task: _Task, records: Sequence[Record], keys: Sequence[bytes], *, complete: bool
    ) -> Fragment:
        """Write the rows under a name of their own: the same rows have the same."""
        path = task.path
        if not complete:  # another name, so that a repeated merge tries the failed rows again
            name = hashlib.blake2b(b"".join(sorted(keys)), digest_size=12)
            path = f"{path.removesuffix('.parquet')}-{name.hexdigest()}.parquet"
        return write_fragment(self.target.sink(), path, to_table(records))
