"""What a store holds, by class, dataset and split: one pass over narrow columns."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.labels.class_counts import COLUMNS, ClassCounts, GroupCounts, count_batch

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    import pyarrow.compute as pc

    from pipeline.store import Store

BY: Final = {"none": (), "dataset": ("dataset",), "split": ("split",), "both": ("dataset", "split")}
"""What `--by` means: which classes are counted apart."""
_SCAN_ROWS: Final = 16384
_SIZES: Final = 1000


@dataclass(slots=True)
class Statistics:
    """What a store holds: rows by group, pixels, images and objects by class; no pixel decoded."""

    counts: ClassCounts = field(default_factory=ClassCounts)
    names: dict[str, dict[int, tuple[str, bool]]] = field(default_factory=dict)
    """The name of each class of each label space, and whether it is void."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)

    @classmethod
    def of(cls, store: Store, counts: ClassCounts | None = None) -> Statistics:
        """Return the statistics of some counts, with the names of the store's classes."""
        names = {}
        for name, space in store.label_spaces.items():
            names[name] = {space.ignore_index: ("(ignored)", True)}
            names[name] |= {c.id: (c.name, c.id not in space.train_ids) for c in space.classes}
        return cls(counts or ClassCounts(), names)

    def classes(self, by: str = "none") -> list[dict[str, Any]]:
        """Return one row a class that occurs, the largest first within its dataset and split.

        `share` is of the pixels of that label space, dataset and split that are not void; None for
        void classes.
        """
        rows = []
        for key, sums in self.counts.by(*BY[by], "label_space").items():
            apart = dict(zip(BY[by], key, strict=False))
            rows += [apart | row for row in self._of_space(key[-1], sums)]
        return rows

    def _of_space(self, space: str, sums: GroupCounts) -> list[dict[str, Any]]:
        names = self.names.get(space, {})
        present = np.flatnonzero(sums.classes.any(axis=0)).tolist()
        known = {i: names.get(i, (f"class {i}", True)) for i in present}
        total = sum(int(sums.pixels[i]) for i in present if not known[i][1])
        order = sorted(present, key=lambda i: (known[i][1], -sums.pixels[i], -sums.objects[i], i))
        return [
            {
                "label_space": space,
                "class": known[i][0],
                "pixels": int(sums.pixels[i]),
                "share": None if known[i][1] else round(int(sums.pixels[i]) / max(1, total), 6),
                "images": int(sums.images[i]),
                "objects": int(sums.objects[i]),
            }
            for i in order
        ]

    def groups(self) -> list[dict[str, Any]]:
        """Return one row a dataset, split, label space and kind."""
        return [
            {
                **group._asdict(),
                "rows": sums.rows,
                "without_mask": sums.unlabelled,
                "with_objects": sums.with_objects,
                "with_depth": sums.with_depth,
                "embedded": sums.embedded,
            }
            for group, sums in sorted(self.counts.groups.items())
        ]

    def to_dict(self, by: str = "none") -> dict[str, Any]:
        """Return the statistics as plain data."""
        sums = self.counts.by().get((), GroupCounts())
        return {
            "rows": sums.rows,
            "without_mask": sums.unlabelled,
            "with_objects": sums.with_objects,
            "depth_share": round(sums.with_depth / max(1, sums.rows), 6),
            "embedded_share": round(sums.embedded / max(1, sums.rows), 6),
            "groups": self.groups(),
            "classes": self.classes(by),
            "sizes": [
                {"height": h, "width": w, "rows": n} for (h, w), n in self.sizes.most_common(_SIZES)
            ],
        }


def statistics(store: Store, where: pc.Expression | str | None = None) -> Statistics:
    """Count a store's rows, and its pixels, images and objects by class.

    Without a filter masks and run lengths stay unread; with one the objects are read whole.
    """
    total = Statistics.of(store)
    for batch in _batches(store, where):
        total.counts += count_batch(batch)
        sides = [np.asarray(batch[n].fill_null(0), np.int64) for n in ("height", "width")]
        sizes, rows = np.unique(np.stack(sides), axis=1, return_counts=True)
        for height, width, count in zip(*sizes.tolist(), rows.tolist(), strict=True):
            total.sizes[height, width] += count
    return total


def _batches(store: Store, where: pc.Expression | str | None) -> Iterator[pa.RecordBatch]:
    if where is None:
        yield from (batch for _, batch in store.scan_fragments(COLUMNS, _SCAN_ROWS))
        return
    plain = ["instances" if name.startswith("instances") else name for name in COLUMNS]
    for batch in store.scan(plain, where, batch_rows=1024):
        yield batch.rename_columns(list(COLUMNS))
