"""Writes a night's page and the page of all nights into the work directory.

The pages come after the record, and a page that fails does not fail its night: what is published is
published, whatever the page makes of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pipeline.errors import SegmillError
from pipeline.store import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.label_space import LabelSpace
    from pipeline.refresh.record import Night, Nights
    from pipeline.report.changed import Changed

HISTORY: Final = "index.html"
_MOST: Final = 1000
"""Nights of the history, the last ones: what a night with nothing new has time to read."""


def write_pages(nights: Nights, *which: Night) -> str | None:
    """Write the pages of some nights and the history; return why that failed, None if it did not.

    The page's place is noted in the night's `paths`, which is the caller's to write down.
    """
    from pipeline.report.history_page import history_page
    from pipeline.report.night_page import PAGE, colours_of, night_page

    try:
        for night in which:
            name = f"{nights.folder(night.id)}/{PAGE}"
            night.paths["page"] = nights.sink.url_of(name)
            spaces, pictures = _seen(night)
            colours = {n: c for space in spaces for n, c in colours_of(space).items()}
            nights.sink.write(name, night_page(night, colours=colours, pictures=pictures))
        nights.sink.write(HISTORY, history_page(nights.newest(_MOST)))
    except Exception as error:
        # Of any kind: labels that are in force must not count as failed for their picture's sake.
        return f"pages: {' '.join(str(error).split()) or type(error).__name__}"
    return None


def _seen(night: Night) -> tuple[Sequence[LabelSpace], list[Changed]]:
    """Return the classes of what a night published, and pictures of what changed; else nothing."""
    from pipeline.report.changed import changed_pictures

    published = night.published
    if published is None:
        return (), []
    try:
        new = Store.open(published.store, published.version)
        spaces = new.used_spaces()
        most = (night.drift.get("changes") or {}).get("most") or []
        if published.base_version is None or not most or len(spaces) != 1:
            return spaces, []
        old = Store.open(published.store, published.base_version)
        return spaces, changed_pictures(old, new, most, spaces[0])
    except (SegmillError, OSError):
        return (), []  # vacuumed, or out of reach: the figures are in the record
