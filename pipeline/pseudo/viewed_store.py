"""A label store as a view shows it: every reader that scans rows gets hard labels.

    store = open_viewed("stores/night", None, View.parse("thresholds.json"))

Masks and class counts are made when they are read; the files stay as they are. Rows without
confidence, as those of truth, are shown as they are.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipeline.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pyarrow as pa
    import pyarrow.compute as pc

    from pipeline.pseudo.view import SpaceView, View

_SHOWN = frozenset({"mask", "mask.bytes", "classes"})
"""Columns that a view changes."""
_NEEDED = ("mask.bytes", "confidence.bytes", "label_space", "image_labels", "image_id")


def open_viewed(url: str, version: int | str | None = None, view: View | None = None) -> Store:
    """Open a store, seen through a view where there is one; errors as of `Store.open`.

    Raises:
        UsageError: the view is of another label space than a row's.
    """
    store = Store.open(url, version)
    if view is None:
        return store
    for space in store.used_spaces():
        view.of(space)
    return ViewedStore(store, view)


class ViewedStore(Store):
    """One snapshot of a label store, seen through a view; for reading."""

    def __init__(self, store: Store, view: View) -> None:
        super().__init__(store.url, store.version, store._options)
        self.view = view
        self._views: dict[str, SpaceView] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return ViewedStore, (Store(self.url, self.version, self._options), self.view)

    def latest(self) -> Store:
        """Return the newest snapshot, seen through the same view."""
        return ViewedStore(super().latest(), self.view)

    def scan(
        self,
        columns: Sequence[str] | Mapping[str, pc.Expression] | None = None,
        where: pc.Expression | str | None = None,
        batch_rows: int = 256,
    ) -> Iterator[pa.RecordBatch]:
        """Read rows as `Store.scan` does; what the view changes is read as the view shows it."""
        from pipeline.record import COLUMNS

        names = list(columns or COLUMNS)
        if isinstance(columns, dict) or not _SHOWN & set(names):
            yield from super().scan(columns, where, batch_rows)
            return
        for batch in super().scan(self.needed(names), where, min(batch_rows, 256)):
            yield self.shown(batch, names)

    def needed(self, names: Sequence[str]) -> Sequence[str]:
        """Return the columns asked for and those that a view is made of."""
        more = [n for n in _NEEDED if n not in names] if _SHOWN & set(names) else []
        return [*names, *more]

    def shown(self, batch: pa.RecordBatch, names: Sequence[str]) -> pa.RecordBatch:
        """Return the columns asked for as the view shows them."""
        import pyarrow as pa

        if not _SHOWN & set(names):
            return batch
        needed = zip(*(batch[n].to_pylist() for n in _NEEDED), strict=True)
        shown = [self._row(*row, counted="classes" in names) for row in needed]
        arrays = []
        for name in names:
            array = batch[name]
            if name == "mask.bytes":
                array = pa.array([s[0] for s in shown], array.type)
            elif name == "mask":
                held = array.to_pylist()
                cells = zip(held, shown, strict=True)
                array = pa.array([h and h | {"bytes": s[0]} for h, s in cells], array.type)
            elif name == "classes":
                held = array.to_pylist()
                counts = zip(held, shown, strict=True)
                array = pa.array([h if s[1] is None else s[1] for h, s in counts], array.type)
            arrays.append(array)
        return pa.RecordBatch.from_arrays(arrays, names=list(names))

    def _row(
        self,
        mask: bytes | None,
        sure: bytes | None,
        space: str,
        present: list[int] | None,
        image_id: str,
        *,
        counted: bool,
    ) -> tuple[bytes | None, list[dict[str, Any]] | None]:
        """Return a row's mask cell and class counts; None for counts that stay as they are."""
        from pipeline.errors import InputError

        if mask is None or sure is None:
            return mask, None
        if space not in self._views:
            self._views[space] = self.view.of(self.space(space))
        view = self._views[space]
        try:
            seen = view.cell(mask, sure, present or None, image_id)
            return seen, [asdict(c) for c in view.counted(seen, sure)] if counted else None
        except InputError:
            # A broken cell is whoever reads the mask's to count as a failure: it must not pass for
            # labels that nobody chose.
            return b"", [] if counted else None
