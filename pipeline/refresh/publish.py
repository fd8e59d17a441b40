"""The one commit that publishes a night: fragments in, fragments out, tag and champion with it.

A published row stays if tonight's listing has its image, as the same file, and the row was made by
what labels tonight; every other pseudo-label goes. So a snapshot never mixes two models, and rows
of truth are never touched.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import CommitConflict, StoreError, WriteFailed
from pipeline.refresh.keys import Column, Rows, number_of
from pipeline.refresh.record import Published
from pipeline.refresh.state import in_force, note_of, open_published
from pipeline.tables.fragment import write_fragment

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pipeline.label_space import LabelSpace
    from pipeline.refresh.keys import Listed
    from pipeline.refresh.record import Model, Nights
    from pipeline.store import Store
    from pipeline.tables.fragment import Fragment

_ATTEMPTS: Final = 8


class PublishedMeanwhile(StoreError):
    """Another night was published while this one was made: it is not what it was compared with."""


@dataclass(frozen=True, slots=True, eq=False)
class Staying:
    """Which rows of a published snapshot tonight's snapshot keeps."""

    rows: Rows
    stays: NDArray[np.bool_]

    @classmethod
    def of(cls, store: Store | None, listed: Listed, digest: str) -> Staying:
        """Compare a snapshot's rows with the listing, and with what labels tonight."""
        rows = Rows.of(store)
        place = Column.of(listed.high, listed.low).find(rows.high, rows.low)
        same = np.zeros(len(rows), np.bool_)
        there = place >= 0
        same[there] = listed.fingerprint[place[there]] == rows.fingerprint[there]
        return cls(rows, same & (rows.digest == number_of(digest)))

    def missing(self, listed: Listed) -> NDArray[np.bool_]:
        """Return which of the listed images have no row that stays."""
        kept = Column.of(self.rows.high[self.stays], self.rows.low[self.stays])
        found: NDArray[np.bool_] = kept.find(listed.high, listed.low) < 0
        return found

    def going(self) -> dict[str, NDArray[np.int32]]:
        """Return, by fragment, the places of rows that go."""
        gone = np.flatnonzero(~self.stays)
        gone = gone[np.argsort(self.rows.fragment[gone], kind="stable")]
        numbers, starts = np.unique(self.rows.fragment[gone], return_index=True)
        groups = np.split(self.rows.row[gone], starts[1:])
        pairs = zip(numbers.tolist(), groups, strict=False)
        return {self.rows.paths[number]: places for number, places in pairs}


@dataclass(frozen=True, slots=True)
class Publication:
    """What is to be published."""

    url: str
    night: str
    tag: str
    champion: Model
    base: str | None
    """The night that was in force when this one began."""
    add: Sequence[Fragment]
    listed: Listed
    space: LabelSpace

    def note(self) -> dict[str, Any]:
        """Return what the commit says."""
        rows = sum(f.rows for f in self.add)
        return {"verb": "refresh", "rows": rows, **note_of(self.night, self.champion)}

    def tagged(self, store: Store) -> Published:
        """Give the snapshot its tag."""
        return tagged(store, self.tag, sum(f.rows for f in self.add))


def publish(asked: Publication, nights: Nights, check: Callable[[], None]) -> Published:
    """Publish a night, unless its commit is there already; the tag follows.

    `check` raises when this process may not publish any more; it is called right before the commit.

    Raises:
        PublishedMeanwhile: another night was published since this one began.
        CommitConflict: other writers committed first, time and again.
    """
    from pipeline.store import Store

    failed: Exception | None = None
    for _ in range(_ATTEMPTS):
        store = open_published(asked.url) or Store.create(asked.url, [asked.space])
        store = store.with_spaces([asked.space])
        found = in_force(store, nights)
        if found is not None and found.night == asked.night:
            return asked.tagged(Store.open(asked.url, found.version))
        if (None if found is None else found.night) != asked.base:
            raise PublishedMeanwhile(
                f"{asked.url}: night {'none' if found is None else found.night} is in force, and "
                f"{asked.night} was made on {asked.base or 'none'}; run it again with --again"
            )
        staying = Staying.of(store, asked.listed, asked.champion.label_digest)
        left, gone = _leftovers(store, staying)
        check()
        try:
            done = store.commit([*asked.add, *left], gone, note=asked.note())
        except (CommitConflict, WriteFailed) as error:
            failed = error
            continue
        if done.version == store.version:  # not a row differs: the night says so all the same
            return asked.tagged(done)
        return asked.tagged(Store.open(asked.url, store.version + 1))
    raise CommitConflict(f"{asked.url}: other writers committed first, time and again") from failed


def tagged(store: Store, tag: str, added: int = 0) -> Published:
    """Give a night's snapshot its tag, and return what is published."""
    if store.tags().get(tag) != store.version:
        store.tag(tag)
    rows = Rows.of(store)
    return Published(
        store=store.url,
        base_version=store.version - 1,
        version=store.version,
        tag=tag,
        rows=len(rows),
        added=added,
        truth_rows=len(rows.truth),
    )


def _leftovers(store: Store, staying: Staying) -> tuple[list[Fragment], list[Fragment]]:
    """Return fragments of what stays of fragments that lose rows, and those that go."""
    held = {f.path: f for f in store.fragments()}
    left, gone = [], []
    for path, places in staying.going().items():
        gone.append(held[path])
        if len(places) < held[path].rows:
            left.append(_without(store, path, places))
    return left, gone


def _without(store: Store, path: str, places: NDArray[np.int32]) -> Fragment:
    """Write a fragment's rows less some, under a name of its own."""
    table = pq.read_table(pa.BufferReader(store.tree().read(path)))
    kept = np.ones(table.num_rows, np.bool_)
    kept[places] = False
    name = hashlib.blake2b(path.encode() + np.sort(places).tobytes(), digest_size=12)
    rest = table.filter(pa.array(kept))
    return write_fragment(store.sink(), f"data/kept/{name.hexdigest()}.parquet", rest)
