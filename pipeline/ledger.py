"""What a store holds already, in 36 bytes a row: the memory that makes runs exactly-once.

A row's identity is (dataset, image path); its label is done when the fingerprint of the image and
the digest of the labeller agree as well.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.errors import StoreError
from pipeline.fragment import Fragment, write_fragment

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
class Ledger:
    """The identities of a snapshot's rows and labels, and the fragment that holds each row.

    `rows` and `done` are sorted 16-byte keys; `homes[i]` is the number in `paths` of the fragment
    with `rows[i]`.
    """

    rows: NDArray[np.bytes_]
    done: NDArray[np.bytes_]
    homes: NDArray[np.int32]
    paths: list[str]

    @classmethod
    def of(cls, store: Store) -> Ledger:
        """Read the identities of a snapshot; narrow columns only."""
        numbers: dict[str, int] = {}
        rows: list[NDArray[np.bytes_]] = []
        done: list[NDArray[np.bytes_]] = []
        homes: list[NDArray[np.int32]] = []
        if not store.fragments():
            return cls(np.empty(0, _KEY), np.empty(0, _KEY), np.empty(0, np.int32), [])
        columns = ["dataset", "image.path", "fingerprint", "provenance.model_digest"]
        for home, batch in store.scan_fragments(columns):
            names, paths, prints, digests = (c.to_pylist() for c in batch.columns)
            marks = zip(names, paths, prints, [d or "" for d in digests], strict=True)
            done.append(np.array([done_key(*m) for m in marks], _KEY))
            rows.append(np.array([row_key(n, p) for n, p in zip(names, paths, strict=True)], _KEY))
            number = numbers.setdefault(home, len(numbers))
            homes.append(np.full(batch.num_rows, number, np.int32))
        keys, places = np.concatenate(rows), np.concatenate(homes)
        order = np.argsort(keys, kind="stable")
        return cls(keys[order], np.sort(np.concatenate(done)), places[order], list(numbers))

    def missing(self, samples: Sequence[Sample]) -> list[bool]:
        """Tell of each sample whether the snapshot lacks its label."""
        if not self.done.size:
            return [True] * len(samples)
        keys = [done_key(s.dataset, s.path, s.fingerprint, s.digest) for s in samples]
        held = _contains(self.done, np.array(keys, _KEY))
        return [not there for there in held.tolist()]

    def displaced(
        self, store: Store, keys: Collection[bytes], coming: Sequence[Fragment]
    ) -> tuple[list[Fragment], list[Fragment]]:
        """Return what takes the place of old rows: fragments of what is left, and those to remove.

        `keys` are the rows that the fragments `coming` hold. The old fragments are read whole, one
        at a time, and what is left of each is written under a name of its own.
        """
        wanted = np.array(sorted(keys), _KEY)
        low, high = (np.searchsorted(self.rows, wanted, side) for side in ("left", "right"))
        hits = [i for a, b in zip(low, high, strict=True) for i in range(a, b)]
        if not hits:
            return [], []
        new = {f.path for f in coming}
        held = {f.path: f for f in store.fragments()}
        left, gone = [], []
        for number in np.unique(self.homes[hits]):
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
