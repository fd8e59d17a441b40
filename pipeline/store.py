"""The label store: a Delta table of records on any file system.

Workers write fragments (`pipeline.tables.fragment`); only a driver commits, with Add and Remove
actions of its own, so that one commit is one step that readers see whole or not at all. Why Delta
and not a manifest of our own: atomic commits, concurrent writers, time travel, and readers in
every tool.

Beside the labels lie `_errors/` (a second Delta table: inputs that failed) and `_segmill/` (plans
of runs, tags). Delta leaves names that begin with an underscore alone.
"""

from __future__ import annotations

import json
import math
import time
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, cast

import pyarrow as pa

from pipeline.errors import CommitConflict, NotAStore, StoreError, UsageError
from pipeline.record import COLUMNS, SCHEMA, from_batch
from pipeline.runs.failures import append_failures, read_failures, to_table
from pipeline.tables import properties
from pipeline.tables.commit import commits, write_commit
from pipeline.tables.fragment import Fragment
from pipeline.tables.location import (
    appears,
    holds_other_files,
    is_table,
    locate,
    unreadable,
    writing,
)
from pipeline.tables.scan import (
    expressions,
    guarded,
    open_dataset,
    open_file,
    present,
    scan_by_fragment,
    scan_sql,
    scan_table,
)
from pipeline.tables.tags import is_number, read_tags, write_tag

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    import pyarrow.compute as pc
    from deltalake import DeltaTable
    from pyarrow.dataset import Dataset
    from pyarrow.lib import NativeFile

    from pipeline.files import Tree
    from pipeline.label_space import LabelSpace
    from pipeline.record import Record
    from pipeline.runs.failures import Failure
    from pipeline.tables.commit import Commit
    from pipeline.tables.properties import Properties
    from pipeline.trees.sinks import Sink

_ATTEMPTS: Final = 8

Swap = tuple[list[Fragment], list[Fragment]]
"""Fragments to add, and fragments that they replace."""


class Store:
    """One snapshot of a label store; `latest()` is the way to a newer one.

    Picklable: a worker that gets a store opens the same version.
    """

    def __init__(self, url: str, version: int | None, options: Mapping[str, str] | None) -> None:
        self.url, self._asked, self._options = url, version, dict(options or {})

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.url, self.version, self._options)

    @classmethod
    def open(
        cls,
        url: str | os.PathLike[str],
        version: int | str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> Store:
        """Open a store at a version, a tag's version, or the newest.

        Raises:
            NotAStore: there is none.
            StoreTooNew: it was written in a schema that this segmill does not know.
        """
        store = cls(locate(url), None, options)
        if isinstance(version, str):
            version = int(version) if is_number(version) else store.tags().get(version, version)
            if isinstance(version, str):
                known = ", ".join(store.tags()) or "none"
                raise UsageError(f"{store.url}: no tag is called {version!r}; its tags: {known}")
        store._asked = version
        properties.check_version(store.url, store._properties)
        return store

    @classmethod
    def create(
        cls,
        url: str | os.PathLike[str],
        spaces: Iterable[LabelSpace],
        options: Mapping[str, str] | None = None,
    ) -> Store:
        """Create an empty store, or open the one that is there and add the label spaces to it."""
        from deltalake import DeltaTable, Schema

        location, described = locate(url), tuple(spaces)
        if is_table(location, options):
            store = cls.open(location, options=options)
            return store.with_spaces(described)
        if holds_other_files(location) and not appears(location, options):
            cause = "the directory is not empty and holds no label store"
            raise NotAStore(f"{location}: {cause}; name another path or empty it")
        with writing(location):
            DeltaTable.create(
                location,
                Schema.from_arrow(SCHEMA.remove_metadata()),
                mode="ignore",
                name="segmill labels",
                configuration=cast("Any", properties.of_new_store(described)),
                storage_options=dict(options or {}) or None,
                raise_if_key_not_exists=False,
            )
        # Another process may have made the table meanwhile: with its label spaces, not with these.
        return cls.open(location, options=options).with_spaces(described)

    # --- what the snapshot holds -----------------------------------------------------------------

    @cached_property
    def _table(self) -> DeltaTable:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError, TableNotFoundError

        try:
            return DeltaTable(self.url, version=self._asked, storage_options=self._options or None)
        except TableNotFoundError:
            mend = "`segmill ingest` or `segmill label` makes one"
            raise NotAStore(f"{self.url}: no label store here; {mend}") from None
        except (DeltaError, OSError) as error:
            raise unreadable(self.url, self._asked, error) from None

    @cached_property
    def _properties(self) -> Properties:
        return {k: v for k, v in self._table.metadata().configuration.items() if v is not None}

    @property
    def version(self) -> int:
        """The snapshot's version."""
        return int(self._table.version())

    @cached_property
    def label_spaces(self) -> dict[str, LabelSpace]:
        """The label spaces that rows may name, by name."""
        return properties.spaces_in(self._properties)

    @property
    def facts(self) -> dict[str, Any]:
        """What the datasets in this store say of themselves as a whole, by format."""
        return properties.facts_in(self._properties)

    def space(self, name: str) -> LabelSpace:
        """Return the label space called name, of this store.

        Raises:
            StoreError: a row names a label space that the store does not describe.
        """
        try:
            return self.label_spaces[name]
        except KeyError:
            text = (
                f"no label space {name!r}; it describes: {', '.join(self.label_spaces) or 'none'}"
            )
            raise StoreError(f"{self.url}: {text}") from None

    @cached_property
    def _dataset(self) -> Dataset:
        return open_dataset(self.url, self._options, self.fragments())

    def fragments(self) -> list[Fragment]:
        """Return the snapshot's fragments, ordered by their first image_id."""
        return list(self._fragments)

    @cached_property
    def _fragments(self) -> list[Fragment]:
        table = pa.table(self._table.get_add_actions(flatten=True))
        if not table.num_rows:
            return []
        columns = [table[n].to_pylist() for n in ("path", "num_records", "size_bytes")]
        ranges = [
            table[n].to_pylist() if n in table.column_names else [""] * table.num_rows
            for n in ("min.image_id", "max.image_id")
        ]
        rows = zip(*columns, *ranges, strict=True)
        found = [Fragment(p, n or 0, s, low or "", high or "") for p, n, s, low, high in rows]
        return sorted(found, key=lambda f: (f.min_id, f.path))

    def count(self, where: pc.Expression | str | None = None) -> int:
        """Count rows; without a filter this reads the log alone."""
        if where is None:
            return sum(f.rows for f in self.fragments())
        return sum(batch.num_rows for batch in self.scan(["image_id"], where))

    # --- reading ---------------------------------------------------------------------------------

    def scan(
        self,
        columns: Sequence[str] | Mapping[str, pc.Expression] | None = None,
        where: pc.Expression | str | None = None,
        batch_rows: int = 256,
    ) -> Iterator[pa.RecordBatch]:
        """Read rows lazily, a batch at a time; only the columns asked for leave the files.

        A column may be a field of one (`image.path`); a mapping computes columns from expressions.
        `where` is a pyarrow expression, or the text of an SQL condition on the columns
        (`split = 'val' and height > 400`).
        """
        names = list(columns or COLUMNS)
        if isinstance(where, str):
            return guarded(self.url, scan_sql(self._table, names, where, batch_rows))
        if where is None and any("." in name for name in names):
            return (batch for _, batch in self.scan_fragments(names, batch_rows))
        picked = columns if isinstance(columns, dict) else expressions(names)
        return guarded(self.url, scan_table(self._dataset, picked, where, batch_rows))

    def scan_fragments(
        self,
        columns: Sequence[str],
        batch_rows: int = 16384,
        only: Sequence[Fragment] | None = None,
    ) -> Iterator[tuple[str, pa.RecordBatch]]:
        """Read columns, or fields of columns, with the path of the fragment that holds the rows."""
        there = self.fragments() if only is None else only
        found = scan_by_fragment(self.url, self._options, there, columns, batch_rows)
        return guarded(self.url, found)

    def needed(self, names: Sequence[str]) -> Sequence[str]:
        """Return the columns to read of a file for those that are asked for; see `shown`."""
        return names

    def shown(self, batch: pa.RecordBatch, names: Sequence[str]) -> pa.RecordBatch:
        """Return the columns asked for, made of those that `needed` told to read."""
        return batch

    def open_fragment(self, fragment: Fragment) -> NativeFile:
        """Open one of the snapshot's files for Arrow's readers.

        Raises:
            StoreError: it is gone.
        """
        with present(self.url):
            return open_file(self.url, self._options, fragment)

    def rows(self, fragment: Fragment, start: int = 0, stop: int | None = None) -> Iterator[Record]:
        """Read a range of a fragment's rows, whole."""
        for _, table in self.slices(fragment, COLUMNS, start, stop):
            yield from from_batch(table)

    def slices(
        self, fragment: Fragment, columns: Sequence[str], start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, pa.Table]]:
        """Read columns of a range of a fragment's rows, a row group at a time.

        Each table comes with the number of its first row in the fragment.
        """
        import pyarrow.parquet as pq

        at, stop = 0, fragment.rows if stop is None else stop
        with self.tree().open(fragment.path) as file:
            parquet = pq.ParquetFile(file)
            for number in range(parquet.num_row_groups):
                count = parquet.metadata.row_group(number).num_rows
                low, high = max(start - at, 0), min(stop - at, count)
                if low < high:
                    group = parquet.read_row_group(number, columns=list(columns))
                    yield at + low, group.slice(low, high - low)
                at += count

    def used_spaces(self, where: pc.Expression | str | None = None) -> list[LabelSpace]:
        """Return the label spaces that rows name, by name."""
        found: set[str] = set()
        batches = (
            (batch for _, batch in self.scan_fragments(["label_space"], 65536))
            if where is None
            else self.scan(["label_space"], where, 65536)
        )
        for batch in batches:
            found.update(batch["label_space"].unique().to_pylist())
        return [self.space(name) for name in sorted(found)]

    def records(
        self, where: pc.Expression | str | None = None, batch_rows: int = 64
    ) -> Iterator[Record]:
        """Read whole rows lazily."""
        for batch in self.scan(None, where, batch_rows):
            yield from from_batch(batch)

    def tree(self) -> Tree:
        """Return the store's files, for reading."""
        from pipeline.files import open_tree

        return open_tree(self.url, **self._options)

    def sink(self) -> Sink:
        """Return the store's files, for writing; picklable."""
        from pipeline.files import open_sink

        return open_sink(self.url, durable=True, **self._options)

    # --- writing: one commit, one step -----------------------------------------------------------

    def latest(self) -> Store:
        """Return the newest snapshot of this store."""
        return Store.open(self.url, options=self._options)

    def with_spaces(self, spaces: Collection[LabelSpace]) -> Store:
        """Describe more label spaces.

        Raises:
            StoreError: one is known under the same name with other classes.
        """
        new = properties.more_spaces(self.url, self.label_spaces, spaces)
        return self._described(new, lambda store: store.with_spaces(spaces))

    def facts_replaced(self, facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Return which known facts `with_facts` would replace by others, as "format: name"."""
        return properties.facts_replaced(self.facts, facts)

    def with_facts(self, facts: Mapping[str, Mapping[str, Any]]) -> Store:
        """Add what datasets say of themselves as a whole, by format.

        New facts replace old ones, as new rows do; an older version of the store still has those.
        """
        new = properties.more_facts(self.facts, facts)
        return self._described(new, lambda store: store.with_facts(facts))

    def _described(self, new: Mapping[str, str], again: Callable[[Store], Store]) -> Store:
        """Put properties into the table; `again` when another writer put some at that moment."""
        if not new:
            return self
        from deltalake.exceptions import CommitFailedError

        try:
            self._table.alter.set_table_properties(dict(new), raise_if_not_exists=False)
        except CommitFailedError:
            return again(self.latest())
        return self.latest()

    def commit(
        self,
        add: Sequence[Fragment],
        remove: Sequence[Fragment] = (),
        *,
        note: Mapping[str, Any] | None = None,
        rebase: Callable[[Store], Swap] | None = None,
    ) -> Store:
        """Add and remove fragments in one step and return the snapshot that results.

        Fragments that the table holds already are left out, so that a commit may be repeated. When
        another writer came first, or the file system did not say whether it took the commit,
        `rebase` computes the swap anew on the newest snapshot.

        Raises:
            CommitConflict: another writer keeps replacing the same fragments.
        """
        from deltalake.exceptions import CommitFailedError

        store, failed = self, None
        for attempt in range(1 if rebase is None else _ATTEMPTS):
            try:
                return store._try_commit(add, remove, note or {})
            except (CommitFailedError, StoreError) as error:
                failed = error
            time.sleep(0.05 * 2**attempt)
            store = self.latest()
            add, remove = rebase(store) if rebase else (add, remove)
        if isinstance(failed, StoreError):
            raise failed
        text = f"{self.url}: other writers committed first, time and again; run this again"
        raise CommitConflict(text) from failed

    def _try_commit(
        self, add: Sequence[Fragment], remove: Sequence[Fragment], note: Mapping[str, Any]
    ) -> Store:
        held = {f.path for f in self.fragments()}
        new = [f for f in add if f.path not in held and f.rows]
        old = [f for f in remove if f.path in held]
        if not new and not old:
            return self
        write_commit(self.url, self._table, new, old, note)
        return self.latest()

    def add_failures(self, failures: Iterable[Failure], run: str, at: datetime, name: str) -> None:
        """Write failures to the errors table; the same name twice is written once."""
        append_failures(self.url, self._options, self.sink(), to_table(failures, run, at), name)

    def failures(self) -> pa.Table:
        """Return the errors table: every input that failed, in any run."""
        return read_failures(self.url, self._options)

    # --- versions --------------------------------------------------------------------------------

    def history(self, limit: int | None = None) -> list[Commit]:
        """Return the store's commits, newest first."""
        return commits(self._table, limit)

    def restore(self, version: int | str) -> Store:
        """Make an old version the newest again, as a commit of its own; nothing is deleted."""
        from deltalake import CommitProperties
        from deltalake.exceptions import DeltaError

        target = Store.open(self.url, version, self._options).version
        note = {"segmill": json.dumps({"restored": target})}
        try:
            self.latest()._table.restore(
                target, commit_properties=CommitProperties(custom_metadata=note)
            )
        except DeltaError as error:
            text = f"{self.url}: version {target} cannot be restored, its files may be vacuumed"
            raise StoreError(f"{text} ({error})") from None
        return self.latest()

    def tags(self) -> dict[str, int]:
        """Return the store's tags and their versions."""
        return read_tags(self.tree())

    def tag(self, name: str) -> int:
        """Give this snapshot a name; `vacuum` keeps what a tag names. Return the version.

        Raises:
            UsageError: the name is a number, is empty, or holds a slash.
        """
        write_tag(self.sink(), name, self.version)
        return self.version

    def vacuum(self, *, hours: float = 168, delete: bool = False) -> list[str]:
        """Return the files that no version of the last `hours` needs; delete them if told to.

        Orphans and plans of crashed runs are among them; versions that a tag names are kept whole.
        """
        from pipeline.runs.plan import stale_plans

        found: list[str] = self._table.vacuum(
            retention_hours=math.ceil(hours),
            dry_run=not delete,
            enforce_retention_duration=False,
            full=True,
            keep_versions=sorted(set(self.tags().values())) or None,
        )
        plans, sink = stale_plans(self.tree(), hours), self.sink()
        for name in plans if delete else ():
            sink.remove(name)
        return found + plans
