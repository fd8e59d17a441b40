"""What a night's training learns from: truth, and the newest published labels beside it.

    store = MixedStore(Store.open("stores/truth"), Store.open("stores/labels"), view, "train")

To a reader it is the store of truth, whose rows of one split are joined by the published rows, as a
view shows them. There are never labels of two nights in it: it holds one snapshot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.pseudo.viewed_store import ViewedStore
from pipeline.record import COLUMNS
from pipeline.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.label_space import LabelSpace
    from pipeline.pseudo.view import View

_MOST_ROWS: Final = 256
_PSEUDO: Final = "pseudo"


class MixedStore(Store):
    """One snapshot of truth and one of labels; for reading."""

    def __init__(self, truth: Store, labels: Store, view: View, split: str) -> None:
        super().__init__(truth.url, truth.version, truth._options)
        self.labels, self.view, self.split = ViewedStore(labels, view), view, split

    def __reduce__(self) -> tuple[Any, ...]:
        truth = Store(self.url, self.version, self._options)
        labels = Store(self.labels.url, self.labels.version, self.labels._options)
        return MixedStore, (truth, labels, self.view, self.split)

    def space(self, name: str) -> LabelSpace:
        """Return the label space called name, of truth or of the labels."""
        known = self.label_spaces
        return known[name] if name in known else self.labels.space(name)

    def scan(
        self,
        columns: Sequence[str] | Mapping[str, pc.Expression] | None = None,
        where: pc.Expression | str | None = None,
        batch_rows: int = 256,
    ) -> Iterator[pa.RecordBatch]:
        """Read the rows of truth, then those of the labels, whose split reads as `split`.

        Of the labels only columns and Arrow's expressions can be asked for.
        """
        yield from super().scan(columns, where, batch_rows)
        names = list(columns or COLUMNS)
        assert not isinstance(columns, dict) and not isinstance(where, str)  # noqa: PT018
        needed = list(dict.fromkeys([*names, "split", "provenance.kind"]))
        for batch in self.labels.scan(needed, None, min(batch_rows, _MOST_ROWS)):
            made = pc.equal(batch["provenance.kind"].cast(pa.string()), _PSEUDO)
            split = pa.array([self.split] * batch.num_rows, batch["split"].type)
            place = batch.schema.get_field_index("split")
            rows = pa.Table.from_batches([batch.set_column(place, "split", split).filter(made)])
            shown = rows if where is None else rows.filter(where)
            yield from shown.select(names).combine_chunks().to_batches()
