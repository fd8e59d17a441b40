"""The runs that a store keeps word of: their folders, by name.

A name is VERB-KEY-TIME-VERSION: when the run began, and at which version of the store.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import StoreError

if TYPE_CHECKING:
    from pipeline.files import Tree
    from pipeline.store import Store

RUNS: Final = "_segmill/runs"
_SUMMARIES_ASKED: Final = 3


def latest_runs(tree: Tree) -> list[str]:
    """Return the names of a store's runs, those that began last first."""
    names = tree.names(RUNS) if tree.isdir(RUNS) else []
    return sorted(names, key=lambda name: (*_begun(name), name), reverse=True)


def _begun(name: str) -> tuple[str, int]:
    """Return when a run began, and at which version of the store; its name says so."""
    *_, at, version = ("", "", *name.rsplit("-", 2))
    return at, int(version) if version.isdecimal() else 0


def finished_run(tree: Tree, name: str) -> dict[str, Any]:
    """Return the summary of a finished run; {} where there is none, or a damaged one."""
    path = f"{RUNS}/{name}/finished.json"
    try:
        held = json.loads(tree.read(path)) if tree.exists(path) else {}
    except ValueError:
        return {}
    return held if isinstance(held, dict) else {}


def check_log(store: Store) -> None:
    """Raise StoreError when the end of the log is lost, which Delta takes for commits never made.

    So it does with an empty file, which a power cut may leave. A run's name has the version at
    which it began, and its summary the one at which it ended.
    """
    tree = store.tree()
    _check_last(store, tree)
    names = latest_runs(tree)
    seen = {name: _begun(name)[1] for name in names}
    for name in names[:_SUMMARIES_ASKED]:
        ended = finished_run(tree, name).get("version")
        seen[name] = max(seen[name], ended if isinstance(ended, int) else 0)
    if not seen:
        return
    name, version = max(seen.items(), key=lambda item: item[1])
    # A run of another process may have ended since this snapshot was read.
    if version > store.version and version > (newest := store.latest().version):
        raise StoreError(
            f"{store.url}: the run {name} saw version {version}, and _delta_log ends at {newest}: "
            "files at its end are lost, and the work that they record would be done again; put "
            f"them back from a copy of the store, or move {RUNS} away to go on without them"
        )


def _check_last(store: Store, tree: Tree) -> None:
    path = f"_delta_log/{store.version:020d}.json"
    if not tree.exists(path):  # cleaned up after a checkpoint
        return
    with tree.open(path) as file:
        if not file.read(1):
            raise StoreError(
                f"{store.url}: {path} is empty, so the work that it records would be done again; "
                f"put it back from a copy of the store; to go on without it, delete it and move "
                f"{RUNS} away"
            )
