"""What a store holds already, in 40 bytes a row: the memory that makes runs exactly-once.

A row's identity is (dataset, image path); its label is done when the fingerprint of the image and
the digest of the labeller agree as well.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.errors import StoreError
from pipeline.tables.fragment import Fragment, write_fragment

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from pipeline.record import Sample
    from pipeline.store import Store

_KEY: Final = np.dtype("S16")


def row_key(dataset: str, path: str) -> bytes:
    """Return the 16-byte identity of a row."""
    text = f"{dataset}\0{path}"
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def done_key(dataset: str, path: str, fingerprint: str, digest: str) -> bytes:
    """Return the 16-byte identity of a label."""
    text = f"{dataset}\0{path}\0{fingerprint}\0{digest}"
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()


@dataclass(slots=True)
class _Index:
    """Sorted 16-byte keys, and the number of the fragment that each lies in."""

    keys: NDArray[np.bytes_] = field(default_factory=lambda: np.empty(0, _KEY))
    homes: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))

    def keep(self, held: NDArray[np.bool_]) -> None:
        """Drop the keys of fragments that are no longer there; `held` is by number."""
        kept = held[self.homes]
        self.keys, self.homes = self.keys[kept], self.homes[kept]

    def add(self, keys: NDArray[np.bytes_], homes: NDArray[np.int32]) -> None:
        """Merge unsorted keys in."""
        order = np.argsort(keys, kind="stable")
        keys, homes = keys[order], homes[order]
        if self.keys.size:
            at = np.searchsorted(self.keys, keys, "right")
            keys, homes = np.insert(self.keys, at, keys), np.insert(self.homes, at, homes)
        self.keys, self.homes = keys, homes


@dataclass(slots=True)
class Ledger:
    """The identities of a snapshot's rows and labels, and the fragment that holds each row.

    `paths` names the fragments by number; one that a later snapshot no longer has keeps its number.
    """

    rows: _Index = field(default_factory=_Index)
    done: _Index = field(default_factory=_Index)
    paths: list[str] = field(default_factory=list)
    own: set[str] = field(default_factory=set)
    """Fragments of the ledger's owner, who asks for their rows no more: they are never read."""

    @classmethod
    def of(cls, store: Store) -> Ledger:
        """Read the identities of a snapshot; narrow columns only."""
        ledger = cls()
        ledger.follow(store)
        return ledger

    def follow(self, store: Store) -> None:
        """Go on to another snapshot: read the fragments that are new, drop what is gone."""
        there = {f.path: f for f in store.fragments()}
        if self.paths:
            held = np.array([path in there for path in self.paths])
            if not held.all():
                self.rows.keep(held)
                self.done.keep(held)
        known = {path for path in self.paths if path in there} | self.own
        new = [path for path in there if path not in known]
        numbers = {path: n for n, path in enumerate(new, len(self.paths))}
        if not numbers:
            return
        rows: list[NDArray[np.bytes_]] = []
        done: list[NDArray[np.bytes_]] = []
        homes: list[NDArray[np.int32]] = []
        columns = ["dataset", "image.path", "fingerprint", "provenance.model_digest"]
        for home, batch in store.scan_fragments(columns, only=[there[path] for path in numbers]):
            names, paths, prints, digests = (c.to_pylist() for c in batch.columns)
            marks = zip(names, paths, prints, [d or "" for d in digests], strict=True)
            done.append(np.array([done_key(*m) for m in marks], _KEY))
            rows.append(np.array([row_key(n, p) for n, p in zip(names, paths, strict=True)], _KEY))
            homes.append(np.full(batch.num_rows, numbers[home], np.int32))
        self.paths += numbers
        if rows:
            places = np.concatenate(homes)
            self.rows.add(np.concatenate(rows), places)
            self.done.add(np.concatenate(done), places)

    def missing(self, samples: Sequence[Sample]) -> list[bool]:
        """Tell of each sample whether the snapshot lacks its label."""
        if not self.done.keys.size:
            return [True] * len(samples)
        keys = [done_key(s.dataset, s.path, s.fingerprint, s.digest) for s in samples]
        held = _contains(self.done.keys, np.array(keys, _KEY))
        return [not there for there in held.tolist()]

    def displaced(
        self, store: Store, keys: Collection[bytes], coming: Sequence[Fragment]
    ) -> tuple[list[Fragment], list[Fragment]]:
        """Return what takes the place of old rows: fragments of what is left, and those to remove.

        `keys` are the rows that the fragments `coming` hold. The old fragments are read whole, one
        at a time, and what is left of each is written under a name of its own.
        """
        wanted = np.array(sorted(keys), _KEY)
        low, high = (np.searchsorted(self.rows.keys, wanted, side) for side in ("left", "right"))
        hits = [i for a, b in zip(low, high, strict=True) for i in range(a, b)]
        if not hits:
            return [], []
        new = {f.path for f in coming}
        held = {f.path: f for f in store.fragments()}
        left, gone = [], []
        for number in np.unique(self.rows.homes[hits]):
            path = self.paths[number]
            if path in new or not path:
                continue
            if path not in held:
                raise StoreError(f"{store.url}: the ledger is of another version; please report it")
            gone.append(held[path])
            rest = _without(store, path, keys)
            self.paths[number] = rest.path if rest is not None else ""
            if rest is not None:
                left.append(rest)
        return left, gone


def _contains(keys: NDArray[np.bytes_], wanted: NDArray[np.bytes_]) -> NDArray[np.bool_]:
    at = np.minimum(np.searchsorted(keys, wanted), keys.size - 1)
    return np.asarray(keys[at] == wanted)


def _without(store: Store, path: str, keys: Collection[bytes]) -> Fragment | None:
    """Write a fragment's rows less those named; None when no row is left."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(store.tree().read(path)))
    columns = zip(table["dataset"].to_pylist(), table["image"].to_pylist(), strict=True)
    kept = [row_key(dataset, image["path"]) not in keys for dataset, image in columns]
    if not any(kept):
        return None
    rest = table.filter(pa.array(kept))
    digest = hashlib.blake2b(path.encode(), digest_size=12)
    for key in sorted(keys):
        digest.update(key)
    return write_fragment(store.sink(), f"data/kept/{digest.hexdigest()}.parquet", rest)
