"""The work of validation on one part of a fragment: names come in, findings and sums go out."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.checks.findings import KINDS, Finding, RowName
from pipeline.checks.identities import Identities
from pipeline.checks.images import ImageFacts, check_image
from pipeline.checks.rows import Problem, row_problems
from pipeline.labels.class_counts import COLUMNS as COUNTED
from pipeline.labels.class_counts import ClassCounts, count_batch
from pipeline.record import COLUMNS, from_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from pipeline.record import Record
    from pipeline.store import Store

_ROWS: Final = 64
_TOLD: Final = 10
"""Problems of one kind that are told of one row."""
_NARROW_ROWS: Final = 16384
_NAMES: Final = ("image_id", "dataset", "split", "fingerprint", "image.path")
_NARROW: Final = tuple(dict.fromkeys([*_NAMES, *COUNTED]))


@dataclass(frozen=True, slots=True)
class Part:
    """A share of a fragment's row groups: piece `piece` of `pieces`, number `number` of all."""

    number: int
    path: str
    piece: int
    pieces: int
    rows: int
    """The fragment's rows, at its first piece; 0 at the others."""
    deep: bool = True
    """Whether to check the rows themselves, or only to note who they are."""


@dataclass(slots=True)
class PartResult:
    """What a worker hands back for a part; `bad` tells which rows have an error."""

    findings: list[Finding]
    classes: ClassCounts = field(default_factory=ClassCounts)
    identities: Identities | None = None
    bad: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    deep: bool = True


@dataclass(frozen=True, slots=True)
class PartCheck:
    """A picklable factory: makes the worker that checks parts."""

    store: Store
    images: str
    tolerance: float

    def __call__(self) -> Callable[[Part], PartResult]:
        """Make the worker; it opens the store anew, so that threads share no reader."""
        return _Worker(copy(self.store), self.images, self.tolerance)


@dataclass(frozen=True, slots=True)
class _Worker:
    store: Store
    images: str
    tolerance: float

    def __call__(self, part: Part) -> PartResult:
        result = PartResult([], deep=part.deep)
        identities: list[Identities] = []
        bad: list[NDArray[np.bool_]] = []
        for batch in batches(self.store, part, self._columns(part)):
            checked = self._check(batch, result) if part.deep else _unchecked(batch)
            identities.append(Identities.of(_named(batch), **checked[1]))
            bad.append(checked[0])
            result.classes += count_batch(_countable(batch))
        if identities:
            result.identities = Identities.joined(identities)
            result.bad = np.concatenate(bad)
        return result

    def _columns(self, part: Part) -> list[str]:
        if not part.deep:
            return list(_NARROW)
        image = "image" if self.images != "none" else "image.path"
        return [image if name == "image" else name for name in COLUMNS]

    def _check(
        self, batch: pa.RecordBatch, result: PartResult
    ) -> tuple[NDArray[np.bool_], dict[str, NDArray[np.int64]]]:
        bad = np.zeros(batch.num_rows, np.bool_)
        seen = {n: np.zeros(batch.num_rows, np.int64) for n in ("content", "look")}
        names = _row_names(batch)
        for at, record in enumerate(_records(batch)):
            problems, facts = self._of_row(record)
            if facts is not None:
                seen["content"][at], seen["look"][at] = facts.content, facts.look
            bad[at] = any(KINDS[p.kind].severity == "error" for p in problems)
            for kind, what, number in _shortened(problems):
                result.findings.append(Finding(kind, names[at], what, number))
        return bad, seen if self.images != "none" else {}

    def _of_row(self, record: Record | Exception) -> tuple[list[Problem], ImageFacts | None]:
        if isinstance(record, Exception):
            return [_unreadable(record)], None
        facts = None
        problems: list[Problem] = []
        try:
            for problem in row_problems(record, self.store.label_spaces, self.tolerance):
                problems.append(problem)  # noqa: PERF402 - what came before an error is kept
            if self.images != "none":
                facts = check_image(record, decode=self.images == "decode")
                problems += facts.problems
        # A row may be wrong in ways that nobody thought of; the others are checked all the same.
        except Exception as error:
            problems.append(_unreadable(error))
        return problems, facts


def _shortened(problems: list[Problem]) -> list[Problem]:
    """Return the problems of a row, of each kind a few: an image may hold thousands of objects."""
    by_kind: dict[str, list[Problem]] = {}
    for problem in problems:
        by_kind.setdefault(problem.kind, []).append(problem)
    kept = []
    for kind, same in by_kind.items():
        kept += same[:_TOLD]
        if len(same) > _TOLD:
            kept.append(Problem(kind, f"{len(same) - _TOLD} more like these in this row"))
    return kept


def _unreadable(error: Exception) -> Problem:
    text = " ".join(str(error).split())[:200]
    return Problem("row", f"the row breaks its reader ({type(error).__name__}: {text})")


def _unchecked(batch: pa.RecordBatch) -> tuple[NDArray[np.bool_], dict[str, NDArray[np.int64]]]:
    return np.zeros(batch.num_rows, np.bool_), {}


def batches(store: Store, part: Part, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Read columns of a part's rows, a few at a time; fields of columns come below their column."""
    import pyarrow.parquet as pq

    from pipeline.tables.scan import leaf

    rows = _ROWS if part.deep else _NARROW_ROWS
    with store.tree().open(part.path) as file:
        parquet = pq.ParquetFile(file)
        total = parquet.num_row_groups
        first, last = (total * p // part.pieces for p in (part.piece, part.piece + 1))
        wanted = list(range(first, last))
        for batch in parquet.iter_batches(rows, wanted, columns=[leaf(c) for c in columns]):
            if batch.num_rows:
                yield batch


def _field(batch: pa.RecordBatch, name: str) -> pa.Array:
    column, _, inner = name.partition(".")
    array = batch[column]
    return pc.struct_field(array, inner) if inner and pa.types.is_struct(array.type) else array


def _named(batch: pa.RecordBatch) -> dict[str, Sequence[Any]]:
    return {n.removeprefix("image."): _field(batch, n).to_pylist() for n in _NAMES}


def _countable(batch: pa.RecordBatch) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([_field(batch, n) for n in COUNTED], names=list(COUNTED))


def _row_names(batch: pa.RecordBatch) -> list[RowName]:
    columns = [_field(batch, n) for n in ("dataset", "image_id", "split", "image.path")]
    texts = [pc.fill_null(column.cast(pa.string()), "").to_pylist() for column in columns]
    return list(map(RowName._make, zip(*texts, strict=True)))


def _records(batch: pa.RecordBatch) -> list[Record | Exception]:
    """Return the rows; the error of a row that is no record."""
    try:
        return list(from_batch(batch))
    except Exception:
        return [_record(batch.slice(at, 1)) for at in range(batch.num_rows)]


def _record(row: pa.RecordBatch) -> Record | Exception:
    try:
        return next(from_batch(row))
    except Exception as error:
        return error


def read_names(
    store: Store, parts: Sequence[tuple[Part, int]], wanted: NDArray[np.int64]
) -> dict[int, RowName]:
    """Return the names of rows, given by their numbers in the order of the parts, ascending.

    `parts` come with how many rows each of them counts for: none where it could not be read.
    """
    names: dict[int, RowName] = {}
    start = 0
    for part, rows in parts:
        low, high = np.searchsorted(wanted, [start, start + rows]).tolist()
        if low < high:
            names |= _names_of(store, replace(part, deep=False), start, wanted[low:high])
        start += rows
    return names


def _names_of(
    store: Store, part: Part, start: int, wanted: NDArray[np.int64]
) -> Iterator[tuple[int, RowName]]:
    """Yield the names of a part's rows, the first of which is number `start`."""
    for batch in batches(store, part, _NAMES):
        low, high = np.searchsorted(wanted, [start, start + batch.num_rows]).tolist()
        if low < high:
            here = wanted[low:high]
            found = _row_names(batch.take(pa.array(here - start)))
            yield from zip(here.tolist(), found, strict=True)
        start += batch.num_rows
