"""How many pixels, images and objects each class has: from narrow columns, no pixel is decoded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.record import EMBEDDED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

COLUMNS: Final = (
    "dataset", "split", "label_space", "provenance.kind", "provenance.model_digest", "height",
    "width", "classes", "instances.category", "depth.metres_per_unit",
)  # fmt: skip
"""What `count_batch` reads; `Store.scan_fragments` gives it without masks and run lengths."""
_TOP: Final = 1 << 16
_PIXELS, _IMAGES, _OBJECTS = range(3)


class Group(NamedTuple):
    """Rows that are counted together."""

    dataset: str
    split: str
    label_space: str
    kind: str


@dataclass(slots=True)
class GroupCounts:
    """The sums of one group; `classes` is int64 [3, ids]: pixels, images and objects by class."""

    rows: int = 0
    unlabelled: int = 0
    """Rows without a mask."""
    with_objects: int = 0
    with_depth: int = 0
    embedded: int = 0
    """Rows of truth that hold their image's bytes."""
    classes: NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 0), np.int64))

    def __iadd__(self, other: GroupCounts) -> GroupCounts:
        for name in ("rows", "unlabelled", "with_objects", "with_depth", "embedded"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        if self.classes.shape[1] < other.classes.shape[1]:
            self.classes, small = other.classes.copy(), self.classes
        else:
            small = other.classes
        self.classes[:, : small.shape[1]] += small
        return self

    @property
    def pixels(self) -> NDArray[np.int64]:
        """Pixels by class id."""
        return np.asarray(self.classes[_PIXELS])

    @property
    def images(self) -> NDArray[np.int64]:
        """Images whose mask shows the class, by class id."""
        return np.asarray(self.classes[_IMAGES])

    @property
    def objects(self) -> NDArray[np.int64]:
        """Objects by class id."""
        return np.asarray(self.classes[_OBJECTS])


@dataclass(slots=True)
class ClassCounts:
    """Sums over rows, by dataset, split, label space and kind; they add up."""

    groups: dict[Group, GroupCounts] = field(default_factory=dict)

    def __iadd__(self, other: ClassCounts) -> ClassCounts:
        for group, counts in other.groups.items():
            mine = self.groups.setdefault(group, GroupCounts())
            mine += counts
        return self

    def by(self, *names: str) -> dict[tuple[str, ...], GroupCounts]:
        """Return the sums over all rows that agree in some of `Group`'s fields, sorted."""
        found: dict[tuple[str, ...], GroupCounts] = {}
        for group, counts in sorted(self.groups.items()):
            sums = found.setdefault(tuple(getattr(group, n) for n in names), GroupCounts())
            sums += counts
        return dict(sorted(found.items()))


def count_batch(batch: pa.RecordBatch) -> ClassCounts:
    """Count the rows of a batch that holds `COLUMNS`."""
    codes, groups = _groups([batch[name] for name in COLUMNS[:4]])
    width, found = len(groups), ClassCounts()
    digests = pc.fill_null(batch["provenance.model_digest"].cast(pa.string()), "")
    flags = (
        np.ones(batch.num_rows, np.bool_),
        _flags(pc.is_null(batch["classes"])),
        _flags(pc.greater(pc.fill_null(pc.list_value_length(batch["instances.category"]), 0), 0)),
        _flags(batch["depth.metres_per_unit"].is_valid()),
        _flags(pc.ends_with(digests, EMBEDDED)),
    )
    sums = [np.bincount(codes[flag], minlength=width).tolist() for flag in flags]
    cells = [
        *_cells(batch["classes"], "id", codes, "pixels"),
        *_cells(batch["instances.category"], "category", codes),
    ]
    for at, group in enumerate(groups):
        tables = [table[at] for table in cells]
        longest = max((len(t) for t in tables), default=0)
        classes = np.stack([np.pad(t, (0, longest - len(t))) for t in tables])
        rows, bare, objects, depth, embedded = (int(s[at]) for s in sums)
        found.groups[group] = GroupCounts(rows, bare, objects, depth, embedded, classes)
    return found


def _flags(values: Any) -> NDArray[np.bool_]:
    return np.asarray(values.to_numpy(zero_copy_only=False), np.bool_)


def _groups(columns: Sequence[pa.Array]) -> tuple[NDArray[np.int64], list[Group]]:
    """Return the group of each row, and the groups."""
    codes, names = np.zeros(len(columns[0]), np.int64), []
    for column in columns:
        coded = pc.fill_null(column.cast(pa.string()), "").dictionary_encode()
        names.append(coded.dictionary.to_pylist())
        codes = codes * len(names[-1]) + coded.indices.to_numpy(zero_copy_only=False)
    used, positions = np.unique(codes, return_inverse=True)
    groups = []
    for code in used.tolist():
        parts = []
        for held in reversed(names):
            code, at = divmod(code, len(held))
            parts.append(held[at])
        groups.append(Group(*reversed(parts)))
    return positions.ravel(), groups


def _cells(
    lists: pa.ListArray, key: str, codes: NDArray[np.int64], weight: str | None = None
) -> list[list[NDArray[np.int64]]]:
    """Add up a column of lists by group and class id: the weights, where there are any; and items.

    Ids outside 0..65535 are left out: no label space holds them.
    """
    parents = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    items = lists.flatten()
    if pa.types.is_struct(items.type):
        ids = pc.fill_null(items.field(key), -1).to_numpy(zero_copy_only=False).astype(np.int64)
    else:  # an SQL engine gives the field itself
        ids = pc.fill_null(items, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    groups = int(codes.max(initial=-1)) + 1
    good = (ids >= 0) & (ids < _TOP)
    size = int(ids[good].max(initial=-1)) + 1
    place = codes[parents[good]] * size + ids[good]
    tables = []
    if weight is not None:
        values = pc.fill_null(items.field(weight), 0).to_numpy(zero_copy_only=False)[good]
        total = np.zeros(groups * size, np.int64)
        np.add.at(total, place, values)
        tables.append(total)
    tables.append(np.bincount(place, minlength=groups * size).astype(np.int64))
    return [list(table.reshape(groups, size)) for table in tables]
