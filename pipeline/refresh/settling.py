"""From a night's staged labels to the rows that are published: hysteresis, and what changed.

A worker takes some staged fragments, reads last night's rows of the same images beside them, lets
`hysteresis` decide pixel by pixel, and writes the rows as a fragment of the published store, which
no reader sees before the night's commit. Beside each lies a note in the night's folder with what it
came to, so that a night that is taken up again does none twice.
"""

from __future__ import annotations

import hashlib
import json
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import masks
from pipeline.errors import InputError, LayoutError, MissingFile
from pipeline.labels.margin import margin_of, with_margin
from pipeline.pseudo.rows import confidence_map
from pipeline.record import File, to_table
from pipeline.refresh.drift import Changes, Composition, Example, noted
from pipeline.refresh.hysteresis import Scale, Settled, settle
from pipeline.tables.fragment import Fragment, write_fragment
from pipeline.training.data import Channels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from pipeline.label_space import LabelMap, LabelSpace
    from pipeline.record import Record
    from pipeline.store import Store

_PART_BYTES: Final = 48 << 20
_OLD_COLUMNS: Final = ("mask", "confidence", "label_space", "extra")

Old = tuple[str, int]
"""Where last night's row lies: its fragment's path, and its place in it."""


@dataclass(frozen=True, slots=True)
class Task:
    """Staged fragments that become one published fragment."""

    name: str
    fragments: tuple[Fragment, ...]
    olds: tuple[tuple[int, str, int], ...]
    """Of rows with a label of last night: number among all staged rows, fragment, place."""

    def halves(self) -> list[Task]:
        """Return the task itself: its rows were all decoded once tonight."""
        return [self]


@dataclass(frozen=True, slots=True, eq=False)
class Moved:
    """What came of a task."""

    fragment: Fragment
    rows: Composition
    changes: Changes
    unsettled: int = 0
    """Rows whose labels of last night could not be read: tonight's stand."""

    def to_json(self) -> str:
        """Return the note of the night's folder."""
        held = asdict(self.changes) | {
            "moved": self.changes.moved.tolist(),
            "most": [list(e) for e in self.changes.most],
        }
        return json.dumps(
            {
                "fragment": asdict(self.fragment),
                "rows": self.rows.to_json(),
                "changes": held,
                "unsettled": self.unsettled,
            }
        )

    @classmethod
    def from_json(cls, text: bytes) -> Moved:
        """Read such a note."""
        value = json.loads(text)
        held = value["changes"]
        changes = Changes(
            tuple(held["names"]), np.array(held["moved"], np.int64), held["images"],
            held["changed"], held["held"], [Example(*e) for e in held["most"]],
        )  # fmt: skip
        rows = Composition.from_json(value["rows"])
        return cls(Fragment(**value["fragment"]), rows, changes, value["unsettled"])


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A picklable factory of workers."""

    staged: Store
    base: Store | None
    published: str
    """The store that the fragments are written into."""
    notes: str
    """The folder of the notes; "" writes neither fragments nor notes: only what changes counts."""
    space: LabelSpace
    night: str
    number: int
    """Of the night: days, as labels' ages are counted."""
    at: datetime
    margin: float | None
    """Of hysteresis; None for none."""
    scale: Scale | None = None
    """Of tonight's confidences."""
    last_scale: Scale | None = None

    def __call__(self) -> Callable[[Task], Moved]:
        """Return a worker with readers of its own."""
        base = None if self.base is None else copy(self.base)
        return Worker(replace(self, staged=copy(self.staged), base=base))


@dataclass(slots=True, eq=False)
class Worker:
    """Settles the rows of a task."""

    plan: Plan
    channels: Channels = field(init=False)

    def __post_init__(self) -> None:
        self.channels = Channels(self.plan.space)

    def __call__(self, task: Task) -> Moved:
        """Settle a task's rows, unless an earlier attempt did."""
        plan = self.plan
        known = self._known(task)
        if known is not None:
            return known
        changes, unsettled = Changes.empty(plan.space), 0
        olds = self._olds(task)
        rows: list[Record] = []
        staged = (r for f in task.fragments for r in plan.staged.rows(f))
        for place, record in enumerate(staged):
            old = olds.get(place)
            try:
                row = self._fresh(record) if old is None else self._settled(record, old, changes)
            except (InputError, ValueError):
                row, unsettled = self._fresh(record), unsettled + 1
            rows.append(row)
        table = to_table(rows)
        composed = Composition.empty(plan.space)
        for batch in table.to_batches():
            composed.add_batch(batch, plan.staged, self.channels)
        if not plan.notes:
            return Moved(Fragment("", len(rows), 0), composed, changes, unsettled)
        path = f"data/night-{plan.night}/{task.name}.parquet"
        from pipeline.files import open_sink

        fragment = write_fragment(open_sink(plan.published, durable=True), path, table)
        moved = Moved(fragment, composed, changes, unsettled)
        open_sink(plan.notes, durable=True).write(f"{task.name}.json", moved.to_json().encode())
        return moved

    def _known(self, task: Task) -> Moved | None:
        """Return what an earlier attempt made of the task."""
        if not self.plan.notes:
            return None
        from pipeline.files import open_tree

        try:
            return Moved.from_json(open_tree(self.plan.notes).read(f"{task.name}.json"))
        except (LayoutError, MissingFile, ValueError, KeyError, TypeError):
            return None

    def _olds(self, task: Task) -> dict[int, dict[str, Any]]:
        """Return last night's rows, by the number of the staged row."""
        base = self.plan.base
        if base is None or not task.olds:
            return {}
        found: dict[int, dict[str, Any]] = {}
        tree = base.tree()
        for path in sorted({path for _, path, _ in task.olds}):
            wanted = {place: number for number, home, place in task.olds if home == path}
            with tree.open(path) as file:
                for place, row in _rows_at(pq.ParquetFile(file), sorted(wanted)):
                    found[wanted[place]] = row
        return found

    def _fresh(self, record: Record) -> Record:
        return self._written(record, None)

    def _written(self, record: Record, settled: Settled | None) -> Record:
        """Return a row as it is published: it names the night, and when its labels changed."""
        plan = self.plan
        provenance = replace(record.provenance, run=f"night-{plan.night}", at=plan.at)
        extra = noted(record.extras(), plan.number, settled)
        return replace(record, provenance=provenance, extra=json.dumps(extra, sort_keys=True))

    def _settled(self, record: Record, old: dict[str, Any], changes: Changes) -> Record:
        """Return a row after hysteresis, and add what changed.

        Raises:
            InputError: a cell is damaged.
            ValueError: the masks are of different sizes.
        """
        plan = self.plan
        path = record.image.path or record.image_id
        before, sure_before = (None if old[n] is None else old[n]["bytes"] for n in _CELLS)
        mask, sure = (None if c is None else c.bytes for c in (record.mask, record.confidence))
        same_space = old["label_space"] == record.label_space
        if before is None or sure_before is None or mask is None or sure is None or not same_space:
            return self._fresh(record)
        ids, old_ids = masks.decode(mask, path), masks.decode(before, path)
        if ids.shape != old_ids.shape:
            return self._fresh(record)
        levels = confidence_map(sure, ids.shape, path)
        old_levels = confidence_map(sure_before, ids.shape, path)
        settled = self._decided(old_ids, old_levels, ids, levels)
        example = Example(0.0, record.image_id, record.dataset, path)
        lut = self.channels.lut(plan.space)
        changes.add(lut, old_ids, settled.ids, example, held=settled.held)
        extra = json.loads(old["extra"]) if old["extra"] else {}
        history = {k: v for k, v in extra.items() if k in _HISTORY}
        kept = replace(record, extra=json.dumps(record.extras() | history))
        if settled.held:
            was = settled.ids != ids
            kept = self._with_cells(kept, settled, levels, was, sure)
        return self._written(kept, settled)

    def _decided(
        self, old_ids: LabelMap, old_levels: LabelMap, ids: LabelMap, levels: LabelMap
    ) -> Settled:
        """Return the labels that stand, with confidences as probabilities."""
        plan, ignore = self.plan, self.plan.space.ignore_index
        if plan.margin is None:
            had, has = old_ids != ignore, ids != ignore
            gained = int(np.count_nonzero(has & ~had))
            return Settled(ids, levels, had & (old_ids != ids), gained, 0)
        scale, last = plan.scale, plan.last_scale
        p = levels if scale is None else scale.probability(ids, levels)
        old_p = old_levels if last is None else last.probability(old_ids, old_levels)
        return settle(old_ids, old_p, ids, p, margin=plan.margin, ignore_index=ignore)

    def _with_cells(
        self, record: Record, settled: Settled, levels: LabelMap, was: Any, cell: bytes
    ) -> Record:
        """Return a row with labels that were kept: on tonight's scale, with no lead known."""
        plan, ids = self.plan, settled.ids
        held = settled.confidence
        told = held if plan.scale is None else plan.scale.level(ids, held)
        confidence = np.where(was, told, levels).astype(np.uint8)
        encoded = masks.encode(confidence)
        margin = margin_of(cell)
        if margin is not None:
            encoded = with_margin(encoded, np.where(was, 0, margin).astype(np.uint8))
        return replace(
            record,
            mask=File(bytes=masks.encode(ids, plan.space.cell_palette())),
            confidence=File(bytes=encoded),
            classes=masks.class_pixels(ids, plan.space, confidence),
        )


_CELLS: Final = ("mask", "confidence")
_HISTORY: Final = ("changed_night", "flipped_pixels")


def _rows_at(parquet: pq.ParquetFile, places: list[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield some rows of a file, reading the row groups that hold them."""
    first = 0
    for number in range(parquet.num_row_groups):
        count = parquet.metadata.row_group(number).num_rows
        mine = [p for p in places if first <= p < first + count]
        if mine:
            group = parquet.read_row_group(number, columns=list(_OLD_COLUMNS))
            taken = group.take(pa.array([p - first for p in mine], pa.int64()))
            yield from zip(mine, taken.to_pylist(), strict=True)
        first += count


def tasks(
    staged: Store, fragments: Sequence[Fragment], olds: Callable[[str, int], Sequence[Old | None]]
) -> Iterator[Task]:
    """Put staged fragments together into tasks of bounded size.

    `olds` gives, for a staged fragment's path and rows, where last night's row of each lies.
    """
    held: list[Fragment] = []
    for fragment in fragments:
        if held and sum(f.size for f in held) + fragment.size > _PART_BYTES:
            yield _task(held, olds)
            held = []
        held.append(fragment)
    if held:
        yield _task(held, olds)


def _task(fragments: Sequence[Fragment], olds: Callable[[str, int], Sequence[Old | None]]) -> Task:
    found, first = [], 0
    for fragment in fragments:
        for place, old in enumerate(olds(fragment.path, fragment.rows)):
            if old is not None:
                found.append((first + place, *old))
        first += fragment.rows
    name = hashlib.blake2b(digest_size=12)
    for fragment in fragments:
        name.update(f"{fragment.path}\0".encode())
    return Task(name.hexdigest(), tuple(fragments), tuple(found))
