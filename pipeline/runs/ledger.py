"""What a store holds already, in 32 bytes a row: the memory that makes runs exactly-once.

A row's identity is (dataset, image path); its label is done when the fingerprint of the image and
the digest of the labeller agree as well. Keys of many rows lie in temporary files (`index`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from pipeline.errors import StoreError
from pipeline.runs.index import Index, KeyPile, joined
from pipeline.runs.keys import as_numbers, keys_of, row_key, row_keys
from pipeline.samples import one_ahead
from pipeline.tables.fragment import Fragment, write_fragment

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from pipeline.runs.keys import Keys
    from pipeline.store import Store

__all__ = ["IDENTITY", "Ledger", "State", "row_key", "row_keys"]

IDENTITY: Final = ("dataset", "image.path", "fingerprint", "provenance.model_digest")
"""The columns that say what a row is, and what its label was made of."""
_MOST_PARTS: Final = 12


class State(IntEnum):
    """What a snapshot holds of an image."""

    NEW = 0
    CHANGED = 1
    """A row, of another fingerprint or labeller."""
    DONE = 2


@dataclass(slots=True)
class Ledger:
    """The identities of a snapshot's rows and labels, and the fragment that holds each row.

    `paths` names the fragments by number; one that a later snapshot no longer has keeps its number.
    """

    paths: list[str] = field(default_factory=list)
    own: set[str] = field(default_factory=set)
    """Fragments of the ledger's owner, who asks for their rows no more: they are never read."""
    _parts: list[Index] = field(default_factory=list)
    _alive: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, bool))

    @classmethod
    def of(cls, store: Store) -> Ledger:
        """Read the identities of a snapshot; narrow columns only."""
        ledger = cls()
        ledger.follow(store)
        return ledger

    def follow(self, store: Store) -> None:
        """Go on to another snapshot: read the fragments that are new, drop what is gone."""
        there = {f.path: f for f in store.fragments()}
        self._alive = np.array([path in there for path in self.paths], bool)
        known = {path for path in self.paths if path in there} | self.own
        new = [path for path in there if path not in known]
        if not new:
            return
        numbers = {path: n for n, path in enumerate(new, len(self.paths))}
        pile = KeyPile(4)
        batches = store.scan_fragments(IDENTITY, only=[there[path] for path in new])
        try:
            for home, batch in one_ahead(batches):
                keys = keys_of(*batch.columns)
                pile.add(*keys, np.full(batch.num_rows, numbers[home], np.uint64))
        except (FileNotFoundError, pa.ArrowInvalid) as error:
            why = " ".join(str(error).split())
            raise StoreError(
                f"{store.url}: a file of its rows is missing or damaged ({why}); put it back, or "
                "go back to a version that lacks it (`segmill store history`, `store restore`)"
            ) from None
        self.paths += new
        self._alive = np.append(self._alive, np.ones(len(new), bool))
        self._parts.append(Index.of(pile))
        if len(self._parts) > _MOST_PARTS:  # the first, of the start, stays as it is
            self._parts = [self._parts[0], joined(self._parts[1:], self._alive)]

    def states(self, keys: Keys) -> NDArray[np.uint8]:
        """Tell the `State` of each sample."""
        states = np.zeros(keys.high.size, np.uint8)
        for part in self._parts:
            for asked, row in part.hits(keys.high, keys.low):
                alive = self._alive[part.home[row]]
                asked, row = asked[alive], row[alive]
                same = part.label[row] == keys.label[asked]
                found = np.where(same, State.DONE, State.CHANGED).astype(np.uint8)
                states[asked] = np.maximum(states[asked], found)
        return states

    def displaced(
        self, store: Store, keys: Collection[bytes], coming: Sequence[Fragment]
    ) -> tuple[list[Fragment], list[Fragment]]:
        """Return what takes the place of old rows: fragments of what is left, and those to remove.

        `keys` are the rows that the fragments `coming` hold. The old fragments are read whole, one
        at a time, and what is left of each is written under a name of its own.
        """
        new = {f.path for f in coming}
        numbers = [n for n in self._homes(keys) if self.paths[n] not in new]
        if not numbers:
            return [], []
        held = {f.path: f for f in store.fragments()}
        left, gone = [], []
        for number in numbers:
            path = self.paths[number]
            if path not in held:
                raise StoreError(f"{store.url}: the ledger is of another version; please report it")
            gone.append(held[path])
            rest = _without(store, path, keys)
            self.paths[number] = rest.path if rest is not None else ""
            self._alive[number] = rest is not None
            if rest is not None:
                left.append(rest)
        return left, gone

    def _homes(self, keys: Collection[bytes]) -> list[int]:
        """Return the numbers of the fragments that hold some of the rows."""
        if not keys:
            return []
        high, low = as_numbers(keys)
        homes = [part.home[row] for part in self._parts for _, row in part.hits(high, low)]
        found = np.unique(np.concatenate([np.empty(0, np.uint64), *homes])).astype(np.int64)
        return [int(n) for n in found[self._alive[found]]]


def _without(store: Store, path: str, keys: Collection[bytes]) -> Fragment | None:
    """Write a fragment's rows less those named; None when no row is left."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(store.tree().read(path)))
    paths = pc.struct_field(table["image"], "path").combine_chunks()
    kept = [key not in keys for key in row_keys(table["dataset"].combine_chunks(), paths)]
    if not any(kept):
        return None
    rest = table.filter(pa.array(kept))
    digest = hashlib.blake2b(path.encode(), digest_size=12)
    for key in sorted(keys):
        digest.update(key)
    return write_fragment(store.sink(), f"data/kept/{digest.hexdigest()}.parquet", rest)
