"""Looking after a store: the differences of two versions, and compaction."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from pipeline.record import SCHEMA
from pipeline.runs.ledger import row_key
from pipeline.tables.fragment import Fragment, write_fragment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.store import Store

SMALL_BYTES: Final = 32 << 20
GOOD_BYTES: Final = 128 << 20


@dataclass(frozen=True, slots=True)
class Difference:
    """The rows by which two snapshots differ, as (dataset, image_id)."""

    added: tuple[tuple[str, str], ...]
    removed: tuple[tuple[str, str], ...]
    changed: tuple[tuple[str, str], ...]


def difference(old: Store, new: Store) -> Difference:
    """Compare two snapshots by the labels of their rows; some hundred bytes a row are held.

    Fragments that both hold are not read. A row is changed when its mask, instances, label space or
    image labels are others; who made it and when does not count.
    """
    shared = {f.path for f in old.fragments()} & {f.path for f in new.fragments()}
    before, after = _digests(old, shared), _digests(new, shared)
    names = {key: value[1] for key, value in (*before.items(), *after.items())}
    changed = [k for k in before.keys() & after.keys() if before[k][0] != after[k][0]]

    def told(keys: Any) -> tuple[tuple[str, str], ...]:
        return tuple(sorted(names[k] for k in keys))

    return Difference(
        told(after.keys() - before.keys()), told(before.keys() - after.keys()), told(changed)
    )


def _digests(store: Store, leave_out: set[str]) -> dict[bytes, tuple[bytes, tuple[str, str]]]:
    """Return, by row, a digest of its label and its name."""
    found = {}
    columns = ["dataset", "image_id", "image.path", "label_space", "mask.bytes", "instances",
               "image_labels"]  # fmt: skip
    for path, batch in store.scan_fragments(columns, batch_rows=256):
        if path in leave_out:
            continue
        rows = [column.to_pylist() for column in batch.columns]
        for dataset, image_id, image, space, mask, instances, labels in zip(*rows, strict=True):
            digest = hashlib.blake2b(repr((space, instances, labels)).encode(), digest_size=16)
            digest.update(mask or b"")
            found[row_key(dataset, image)] = (digest.digest(), (dataset, image_id))
    return found


def compact(store: Store) -> tuple[Store, int]:
    """Join small fragments into good ones, in the order of their ids; return how many went.

    The rows stay what they are; one commit for each fragment that results.
    """
    small = [f for f in store.fragments() if f.size < SMALL_BYTES]
    gone = 0
    while small:
        group: list[Fragment] = []
        size = 0
        while small and (size < GOOD_BYTES or len(group) < 2):
            group.append(small.pop(0))
            size += group[-1].size
        if len(group) < 2:
            break
        store = _join(store, group)
        gone += len(group)
    return store, gone


def _join(store: Store, group: Sequence[Fragment]) -> Store:
    import pyarrow.parquet as pq

    tree = store.tree()
    tables = [pq.read_table(pa.BufferReader(tree.read(f.path))).cast(SCHEMA) for f in group]
    digest = hashlib.blake2b("\0".join(f.path for f in group).encode(), digest_size=12).hexdigest()
    joined = write_fragment(store.sink(), f"data/joined/{digest}.parquet", pa.concat_tables(tables))
    return store.commit([joined], group, note={"compact": len(group), "rows": joined.rows})
