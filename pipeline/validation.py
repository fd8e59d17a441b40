"""Validate a store: every row by itself, rows against one another, classes against splits.

    report = validate(Store.open("stores/coco"), runner=LocalRunner(), images="header")
    print(report.counts)

Parts of fragments are checked in parallel; what comes back for a row is its findings, its sums and
some 45 bytes of identity. Findings leave in the order of the store, whatever the number of workers.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pyarrow as pa

from pipeline.checks.classes import class_findings
from pipeline.checks.duplicates import find_twins
from pipeline.checks.findings import FINDINGS, KINDS, SEVERITIES, Finding, RowName
from pipeline.checks.identities import Identities
from pipeline.checks.parts import Part, PartCheck, PartResult, read_names
from pipeline.checks.rows import TOLERANCE
from pipeline.errors import InputError
from pipeline.labels.class_counts import ClassCounts
from pipeline.tables.fragment import ROW_GROUP_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from pipeline.checks.duplicates import Twins
    from pipeline.runner import Outcome, Runner
    from pipeline.store import Store

Images = Literal["none", "header", "decode"]
_KEPT: Final = 1000
_EXAMPLES: Final = 6
_TOLD: Final = 100_000
"""Findings about pairs of rows that are written out, of each kind; all are counted."""
_BLOCK: Final = 8192
_UNREADABLE: Final = (InputError, OSError, pa.ArrowException)
"""What a damaged or missing fragment raises."""


@dataclass(slots=True)
class Validation:
    """What `validate` found; `on_findings` had all of it, here are the first and the sums."""

    inputs: int = 0
    """Rows that were checked."""
    failed: int = 0
    """Rows with an error, or that cannot be read."""
    counts: Counter[str] = field(default_factory=Counter)
    """Findings by kind."""
    findings: list[Finding] = field(default_factory=list)
    """The first thousand."""
    examples: dict[str, list[Finding]] = field(default_factory=dict)
    """The first few of each kind."""
    classes: ClassCounts = field(default_factory=ClassCounts)

    def of_severity(self, severity: str) -> int:
        """Return how many findings are that bad."""
        return sum(n for kind, n in self.counts.items() if KINDS[kind].severity == severity)

    def figures(self) -> dict[str, Any]:
        """Return the sums for a JSON summary."""
        return {
            "rows": self.inputs,
            "bad_rows": self.failed,
            **{f"{s}s" if s != "info" else s: self.of_severity(s) for s in SEVERITIES},
            "kinds": {kind: self.counts[kind] for kind in KINDS if self.counts[kind]},
        }


def validate(
    store: Store,
    *,
    runner: Runner,
    images: Images = "none",
    tolerance: float = TOLERANCE,
    only: Collection[str] | None = None,
    on_findings: Callable[[pa.RecordBatch], None] = lambda _: None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Validation:
    """Check a store's rows; only those of some fragments, against all, when `only` has their paths.

    `images` opens the image files: `header` reads each whole, checks its size and compares its
    bytes with the others'; `decode` also decodes every pixel and finds look-alikes. `tolerance` is
    the share of an object's pixels that the mask may give to another class. `on_findings` gets all
    findings (`pipeline.checks.findings.FINDINGS`) in a fixed order, a batch at a time.
    """
    parts = list(_parts(store, only))
    gather = _Gather(store, on_findings, on_progress)
    check = PartCheck(store, images, tolerance)
    for outcome in runner.map(check, parts):
        gather.take(outcome)
    return gather.finish(parts)


def _parts(store: Store, only: Collection[str] | None) -> Iterator[Part]:
    """Cut the fragments into parts of about a row group."""
    number = 0
    for fragment in store.fragments():
        count = max(1, min(fragment.rows, -(-fragment.size // ROW_GROUP_BYTES)))
        deep = only is None or fragment.path in only
        for piece in range(count):
            rows = fragment.rows if piece == 0 else 0
            yield Part(number, fragment.path, piece, count, rows, deep)
            number += 1


class _Gather:
    """Adds up parts in the order of the store, however they end."""

    def __init__(
        self,
        store: Store,
        on_findings: Callable[[pa.RecordBatch], None],
        on_progress: Callable[[int], None],
    ) -> None:
        self._store, self._on_findings, self._on_progress = store, on_findings, on_progress
        self._found = Validation()
        self._batch: list[dict[str, Any]] = []
        self._identities: list[Identities] = []
        self._bad: list[Any] = []
        self._deep: list[Any] = []
        self._rows: list[int] = []
        self._waiting: dict[int, PartResult] = {}
        self._next = self._read = 0

    def take(self, outcome: Outcome[Part, PartResult]) -> None:
        """Add one part."""
        if outcome.error is not None and not isinstance(outcome.error, _UNREADABLE):
            raise outcome.error
        part, result = outcome.chunk, outcome.result
        if result is None:
            cause = " ".join(str(outcome.error).split())[:300]
            name = RowName("", "", "", part.path)
            result = PartResult([Finding("fragment", name, f"part {part.piece + 1}: {cause}")])
        self._found.inputs += part.rows if part.deep else 0
        self._waiting[part.number] = result
        while self._next in self._waiting:
            self._add(self._waiting.pop(self._next))
            self._next += 1

    def _add(self, result: PartResult) -> None:
        for finding in result.findings:
            self._tell(finding)
        self._found.classes += result.classes
        if result.identities is not None:
            self._identities.append(result.identities)
            self._bad.append(result.bad)
            self._deep.append(np.full(len(result.bad), result.deep))
        self._rows.append(len(result.bad))
        self._read += len(result.bad) if result.deep else 0
        self._on_progress(self._read)

    def _tell(self, finding: Finding) -> None:
        found = self._found
        found.counts[finding.kind] += 1
        if len(found.findings) < _KEPT:
            found.findings.append(finding)
        shown = found.examples.setdefault(finding.kind, [])
        if len(shown) < _EXAMPLES:
            shown.append(finding)
        self._batch.append(finding.to_dict())
        if len(self._batch) >= _BLOCK:
            self._flush()

    def _flush(self) -> None:
        if self._batch:
            self._on_findings(pa.RecordBatch.from_pylist(self._batch, schema=FINDINGS))
            self._batch = []

    def finish(self, parts: list[Part]) -> Validation:
        """Compare rows with one another and classes with splits; return the sums."""
        bad = np.concatenate(self._bad) if self._bad else np.zeros(0, np.bool_)
        deep = np.concatenate(self._deep) if self._deep else bad
        known = Identities.joined(self._identities)
        self._identities.clear()
        self._pairs(known, bad, deep, parts)
        for finding in class_findings(self._found.classes, self._store.label_spaces):
            self._tell(finding)
        self._flush()
        unread = self._found.inputs - int(deep.sum())
        self._found.failed = unread + int((bad & deep).sum())
        return self._found

    def _pairs(self, known: Identities, bad: Any, deep: Any, parts: list[Part]) -> None:
        told: list[Twins] = []
        written: Counter[str] = Counter()
        for twins in find_twins(known):
            if not (deep[twins.row] or deep[twins.other]):
                continue
            if KINDS[twins.kind].severity == "error":
                bad[[twins.row, twins.other]] = True
            if written[twins.kind] < _TOLD:
                told.append(twins)
                written[twins.kind] += 1
            else:
                self._found.counts[twins.kind] += 1
        wanted = np.unique(np.array([(t.row, t.other) for t in told], np.int64).ravel())
        names = read_names(self._store, list(zip(parts, self._rows, strict=True)), wanted)
        for twins in told:
            row, other = names[twins.row], names[twins.other]
            more = f", {twins.rows} rows in all" if twins.rows > 2 else ""
            where = f"{other.dataset}/{other.image_id} ({other.split})"
            self._tell(Finding(twins.kind, row, f"{twins.shared} as {where}{more}", other=other))
