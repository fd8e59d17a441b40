"""One step of a store's log: fragments in, fragments out; and the steps taken so far."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.tables.location import writing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from deltalake import DeltaTable

    from pipeline.tables.fragment import Fragment


@dataclass(frozen=True, slots=True)
class Commit:
    """One entry of a store's history; `note` is what segmill wrote into it."""

    version: int
    at: datetime
    operation: str
    note: Mapping[str, Any]


def commits(table: DeltaTable, limit: int | None) -> list[Commit]:
    """Return a table's commits, newest first."""
    from datetime import UTC, datetime

    return [
        Commit(
            version=entry["version"],
            at=datetime.fromtimestamp(entry["timestamp"] / 1000, UTC),
            operation=entry["operation"],
            note=json.loads(entry.get("segmill", "{}")),
        )
        for entry in table.history(limit)
    ]


def write_commit(
    url: str,
    table: DeltaTable,
    add: Sequence[Fragment],
    remove: Sequence[Fragment],
    note: Mapping[str, Any],
) -> None:
    """Add and remove fragments in one step.

    Raises:
        deltalake.exceptions.CommitFailedError: another writer committed on this version first.
        StoreError: the file system did not take the commit, or did not say whether it did.
    """
    from deltalake import CommitProperties, Transaction
    from deltalake.transaction import AddAction, RemoveAction

    now = int(time.time() * 1000)
    actions: list[Any] = [AddAction(f.path, f.size, {}, now, True, f.statistics()) for f in add]
    actions += [RemoveAction(f.path, True, now, f.size, {}) for f in remove]
    with writing(url):
        table.create_write_transaction(
            actions,
            mode="append",
            schema=table.schema(),
            commit_properties=CommitProperties(
                custom_metadata={"segmill": json.dumps(note, default=str)},
                # Appends alone never conflict, and two writers of one row would double it: with
                # this, whoever commits on an older snapshot is refused and computes anew.
                app_transactions=[Transaction("segmill", int(table.version()) + 1)],
            ),
        )
