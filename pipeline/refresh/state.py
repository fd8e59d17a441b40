"""Which night's labels are in force: read from the published store's own log.

A night is published by one commit, whose note names the night and its model. So labels and champion
change in the same moment, and no file beside the store can contradict it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pipeline.refresh.record import Model
from pipeline.store import Store
from pipeline.tables.location import is_table, locate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.refresh.record import Nights
    from pipeline.tables.commit import Commit

_COMMITS: Final = 1000


@dataclass(frozen=True, slots=True)
class InForce:
    """A published snapshot, and the night that it is of."""

    store: Store
    night: str
    champion: Model
    version: int
    """That the night's own commit made; the snapshot may be newer by commits of others."""


def open_published(url: str) -> Store | None:
    """Open the published store at its newest version; None where there is none yet."""
    return Store.open(url) if is_table(locate(url)) else None


def note_of(night: str, champion: Model) -> dict[str, Any]:
    """Return what a night's commit says."""
    return {"night": night, "champion": champion.model_dump(mode="json")}


def in_force(store: Store | None, nights: Nights) -> InForce | None:
    """Return the night whose labels a snapshot shows; None where no night was published.

    Where the log no longer holds the night's commit (it is kept for 30 days), the nights' own
    records tell.
    """
    if store is None:
        return None
    commits = [c for c in store.history(_COMMITS) if c.version <= store.version]
    commit = _night_commit(commits)
    if commit is not None:
        champion = Model.model_validate(commit.note["champion"])
        return InForce(store, commit.note["night"], champion, commit.version)
    for night in nights.newest():
        told = night.published
        if told is None or night.challenger is None or told.version > store.version:
            continue
        if night.rolled_back is None:
            return InForce(store, night.id, night.challenger, told.version)
    return None


def _night_commit(newest_first: Sequence[Commit]) -> Commit | None:
    """Return the night's commit that is in force: a restored version leads back to its own."""
    below: int | None = None
    for commit in newest_first:
        if below is not None and commit.version > below:
            continue
        below = None
        if "night" in commit.note:
            return commit
        if "restored" in commit.note:
            below = int(commit.note["restored"])
    return None
