"""What a run wrote before it died and did not commit: adopted where it still fits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipeline.runs.index import Index, KeyPile
from pipeline.runs.keys import batch_keys, keys_of
from pipeline.runs.ledger import State
from pipeline.samples import compact, joined
from pipeline.tables.fragment import Fragment, open_fragment

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.run import Run
    from pipeline.runs.keys import Keys
    from pipeline.store import Store


@dataclass(slots=True)
class Orphan:
    """A fragment that nothing references, its rows, and the listed samples that it covers."""

    fragment: Fragment
    keys: Keys
    covered: list[pa.RecordBatch] = field(default_factory=list)
    changed: int = 0
    """Of those covered, how many the store holds of another fingerprint or labeller."""

    def fits(self) -> bool:
        """Tell whether each of its rows is still to be done, once."""
        rows = _distinct(self.keys)
        if len(rows) != self.fragment.rows or not self.covered:
            return False
        return bool(np.array_equal(rows, _distinct(batch_keys(joined(self.covered)))))


def _distinct(keys: Keys) -> NDArray[np.uint64]:
    return np.unique(np.stack(keys, axis=1), axis=0)


class Orphans:
    """The orphans of a run."""

    def __init__(self, found: list[Orphan]) -> None:
        self.found = found
        pile = KeyPile(4)
        for number, orphan in enumerate(found):
            pile.add(*orphan.keys, np.full(orphan.keys.high.size, number, np.uint64))
        self._index = Index.of(pile)

    @classmethod
    def of(cls, store: Store, run: Run) -> Orphans:
        """Read what a run that is taken up wrote and did not commit."""
        tree, below = store.tree(), f"data/{run.name}"
        if not run.resumed or not tree.isdir(below):
            return cls([])
        held, found = {f.path for f in store.fragments()}, []
        for entry in tree.walk(below, (".parquet",)):
            if entry.name in held:
                continue
            try:
                fragment, rows = open_fragment(tree, entry.name)
            except (OSError, ValueError):  # torn by a crash of the file system: done again
                continue
            found.append(Orphan(fragment, keys_of(*rows.columns)))
        return cls(found)

    def take(
        self, batch: pa.RecordBatch, keys: Keys, states: NDArray[np.uint8]
    ) -> NDArray[np.bool_]:
        """Note which samples that are not done an orphan covers, and tell which."""
        missing = states != State.DONE
        homes = np.full(batch.num_rows, -1, np.int64)
        if self.found:
            for asked, row in self._index.hits(keys.high, keys.low):
                same = missing[asked] & (self._index.label[row] == keys.label[asked])
                homes[asked[same]] = self._index.home[row[same]].astype(np.int64)
        for number in np.unique(homes[homes >= 0]).tolist():
            rows = np.flatnonzero(homes == number)
            self.found[number].covered.append(compact(batch.take(pa.array(rows))))
            self.found[number].changed += int((states[rows] == State.CHANGED).sum())
        return homes >= 0
