"""Taking a night's labels back: the snapshot of an earlier night is the newest again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.refresh.lease import Lease
from pipeline.refresh.models import point_to
from pipeline.refresh.pages import write_pages
from pipeline.refresh.record import Nights, RolledBack, now
from pipeline.refresh.state import in_force, open_published
from pipeline.tables.location import locate

if TYPE_CHECKING:
    from pipeline.refresh.config import Config
    from pipeline.refresh.record import Night


def rollback(config: Config, to: str | None = None) -> RolledBack:
    """Bring back the labels of the night before the one in force, or of the night named.

    One commit restores the snapshot, and with it the champion, which is of the night's commit. The
    next refresh compares with what is then in force. Nothing is deleted.

    Raises:
        LeaseHeld: a refresh is at work.
        UsageError: no night is in force, there is none before it, or the one named is none of them.
        StoreError: files of that version were vacuumed.
    """
    with Lease.take(locate(config.labels), config.lease_minutes) as lease:
        nights = Nights(config.work)
        found = in_force(open_published(config.labels), nights)
        if found is None:
            raise UsageError(f"{config.labels}: no night was published; there is nothing to undo")
        target = _target(nights, found.night, to)
        assert target.published is not None
        lease.check()
        store = found.store.restore(target.published.version)
        done = RolledBack(at=now(), to=target.id, version=store.version)
        taken = [
            night
            for night in nights.newest()
            if target.id < night.id <= found.night and night.published and not night.rolled_back
        ]
        for night in taken:
            night.rolled_back = done
            nights.write(night)
        restored = in_force(store, nights)
        if restored is not None:
            point_to(config, restored.champion, restored.night)
        write_pages(nights, *taken)
        return done


def _target(nights: Nights, current: str, to: str | None) -> Night:
    """Return the night to go back to."""
    known = [
        night
        for night in nights.newest()
        if night.published is not None and night.rolled_back is None and night.id < current
    ]
    if to is None:
        if not known:
            raise UsageError(f"night {current} is the first that was published; none is before it")
        return known[0]
    for night in known:
        if night.id == to:
            return night
    names = ", ".join(n.id for n in known[:5]) or "none"
    raise UsageError(f"no labels of night {to!r} to go back to from {current}; there are: {names}")
