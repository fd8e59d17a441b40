"""Bring the rows of several stores into one, in one label space, fit to be trained on.

    store, report = merge([coco, nyu], lambda space: Store.create("all", [space]), unified)

Fragments of the sources are read in parallel, each becomes one of the target. What is held per row
is its identity: 16 bytes of its place, and hashes by which the same image is found across datasets.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from pipeline.derive import with_mask
from pipeline.duplicates import find_twins
from pipeline.errors import InputError, UsageError
from pipeline.fragment import Fragment, write_fragment
from pipeline.identities import Identities
from pipeline.ledger import Ledger, row_key
from pipeline.loss import Loss
from pipeline.record import to_table
from pipeline.relabel import Relabeller
from pipeline.runner import LocalRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from pipeline.label_space import LabelSpace
    from pipeline.record import Record
    from pipeline.runner import Runner
    from pipeline.store import Store

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
    painted: int = 0
    """Rows that had objects only, and got the mask that these paint."""
    shared: Counter[str] = field(default_factory=Counter)
    """Rows that are the same image as another one, by kind of finding: reported, not dropped."""


@dataclass(frozen=True, slots=True)
class _Task:
    """One fragment of a source, and which of its rows a later source supersedes."""

    source: int
    fragment: Fragment
    superseded: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class _Merged:
    """What became of a fragment; `made` is None where no row is left."""

    made: Fragment | None
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
    used = [s for source in sources for s in source.used_spaces()]
    space = space or _shared(used)
    report, relabel = MergeReport(), Relabeller.to(space, used)
    superseded = _survey(sources, report)
    target = make_target(space)
    for source in sources:
        target = target.with_facts(source.facts)
    ledger = Ledger.of(target)
    work = _MergePlan(tuple(sources), target, relabel, paint)
    waiting: list[_Merged] = []
    committed = 0
    for outcome in (runner or LocalRunner()).map(work, _tasks(sources, superseded)):
        if outcome.error is not None:
            raise outcome.error
        assert outcome.result is not None
        waiting.append(outcome.result)
        report.loss += outcome.result.loss
        report.painted += outcome.result.painted
        report.superseded += outcome.result.superseded
        report.rows += outcome.chunk.fragment.rows - outcome.result.superseded
        # A commit walks over all fragments that are there: growing batches keep the sum linear.
        if len(waiting) >= max(_COMMIT_FRAGMENTS, committed // 8):
            target, committed = _commit(target, ledger, waiting), committed + len(waiting)
            waiting = []
        on_progress(report.rows)
    return _commit(target, ledger, waiting), report


def _shared(used: Sequence[LabelSpace]) -> LabelSpace:
    names = sorted({s.name for s in used})
    if len(names) > 1:
        raise UsageError(f"the stores have several label spaces ({', '.join(names)}); name one")
    if not used:
        raise UsageError("the stores have no rows to merge; name a label space with rows in it")
    return used[0]


def _survey(sources: Sequence[Store], report: MergeReport) -> list[Keys]:
    """Note which images are the same, and return of each source the rows that a later one has."""
    keys: list[Keys] = []
    known: list[Identities] = []
    columns = ("image_id", "dataset", "split", "fingerprint", "image.path")
    for source in sources:
        here = [np.zeros(0, _KEY)]
        for _, batch in source.scan_fragments(columns, _SCAN_ROWS):
            held: dict[str, Sequence[Any]] = {
                name.removeprefix("image."): batch[name].to_pylist() for name in columns
            }
            known.append(Identities.of(held))
            pairs = zip(held["dataset"], held["path"], strict=True)
            here.append(np.array([row_key(d, p or "") for d, p in pairs], _KEY))
        keys.append(np.sort(np.concatenate(here)))
    twins = find_twins(Identities.joined(known))
    report.shared = Counter(t.kind for t in twins if t.kind not in {"row-repeated", "id-repeated"})
    later, superseded = np.zeros(0, _KEY), []
    for mine in reversed(keys):
        superseded.append(np.intersect1d(mine, later))
        later = np.union1d(later, mine)
    return superseded[::-1]


def _tasks(sources: Sequence[Store], superseded: Sequence[Keys]) -> Iterator[_Task]:
    for number, source in enumerate(sources):
        gone = frozenset(superseded[number].tolist())
        for fragment in source.fragments():
            yield _Task(number, fragment, gone)


def _commit(target: Store, ledger: Ledger, merged: Sequence[_Merged]) -> Store:
    """Add fragments and take out the rows that they replace, in one step."""
    made = [m.made for m in merged if m.made is not None]
    keys = frozenset().union(*(m.keys for m in merged))
    left, gone = ledger.displaced(target, keys, made) if keys else ([], [])
    note = {"merged": len(made), "rows": sum(f.rows for f in made)}
    return target.commit([*made, *left], gone, note=note)


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
        for record in source.rows(task.fragment):
            key = row_key(record.dataset, record.image.path or "")
            if key in task.superseded:
                continue
            if self.paint and record.mask is None and record.instances:
                # In the source's classes: an object whose class has no counterpart hides what lies
                # below it, and becomes void with it.
                record = self._painted(record, source, loss)
                painted += record.mask is not None
            moved, lost = self.relabel(record)
            loss += lost
            records.append(moved)
            keys.append(key)
        if painted:
            loss.attributes[PAINTED] = painted
        made = self._write(source, task, records, keys) if records else None
        left_out = task.fragment.rows - len(records)
        return _Merged(made, frozenset(keys), loss, painted, left_out)

    def _painted(self, record: Record, source: Store, loss: Loss) -> Record:
        try:
            return with_mask(record, source.space(record.label_space))
        except InputError:
            loss.attributes[UNPAINTED] = loss.attributes.get(UNPAINTED, 0) + 1
            return record

    def _write(
        self, source: Store, task: _Task, records: Sequence[Record], keys: Sequence[bytes]
    ) -> Fragment:
        """Write the rows under a name of their own: the same rows have the same."""
        name = hashlib.blake2b(digest_size=12)
        name.update(f"{source.url}\0{task.fragment.path}\0{self.paint}\0".encode())
        name.update(self.relabel.target.to_json().encode())
        for key in sorted(keys):
            name.update(key)
        path = f"data/merged/{name.hexdigest()}.parquet"
        return write_fragment(self.target.sink(), path, to_table(records))
