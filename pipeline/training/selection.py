"""Which labelled images to learn from: all, an even share, a number, or a list of ids."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from pipeline.errors import StoreError, UsageError

if TYPE_CHECKING:
    from pipeline.store import Store

_SHOWN = 3


def selected(store: Store, split: str, asked: str) -> frozenset[str]:
    """Return the ids of the split's labelled images that `asked` names.

    `1/8` takes every eighth of the ids in order, `46` that many, evenly spread, anything else is a
    text file with an id a line (empty lines and those that begin with # don't count).

    Raises:
        UsageError: it is none of these, or more than there are.
        StoreError: the split has no labelled image, or the list names ids that it has no mask of.
    """
    known = _labelled(store, split)
    if not known:
        raise StoreError(f"{store.url}: split {split!r} has no image with a mask")
    share = re.fullmatch(r"1/([1-9]\d*)", asked)
    if share:
        return frozenset(known[:: int(share[1])])
    if asked.isdecimal():
        wanted = int(asked)
        if not 0 < wanted <= len(known):
            raise UsageError(
                f"--labelled {asked}: split {split!r} has {len(known)} labelled images; ask for "
                "1 to that many"
            )
        return frozenset(known[i * len(known) // wanted] for i in range(wanted))
    return _listed(Path(asked), known, store, split)


def _labelled(store: Store, split: str) -> list[str]:
    """Return the sorted ids of the split's images with a mask."""
    where = pc.match_substring_regex(pc.field("split"), f"^{re.escape(split)}$")
    out: list[str] = []
    for batch in store.scan(["image_id", "classes"], where, 4096):
        out += batch["image_id"].filter(batch["classes"].is_valid()).to_pylist()
    return sorted(out)


def _listed(path: Path, known: list[str], store: Store, split: str) -> frozenset[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--labelled {path}: takes 1/8, a number, or a text file with an id a line ({error})"
        ) from None
    ids = {line for line in lines if line and not line.startswith("#")}
    if not ids:
        raise UsageError(f"--labelled {path}: names no image")
    missing = sorted(ids - set(known))
    if missing:
        raise StoreError(
            f"{store.url}: split {split!r} has no mask of {len(missing)} of the {len(ids)} images "
            f"in {path}: {', '.join(missing[:_SHOWN])}"
        )
    return frozenset(ids)
