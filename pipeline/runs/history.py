"""What runs came to, as the store that they wrote keeps it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import StoreError, UsageError
from pipeline.runs.names import RUNS, latest_runs
from pipeline.tables.tags import is_number

if TYPE_CHECKING:
    from pipeline.store import Store
    from pipeline.tables.commit import Commit

_TOLD: Final = 5


def run_summary(store: Store, name: str) -> dict[str, Any]:
    """Return the summary of a run, by its name, the beginning of it, or a version that it made.

    `finished` tells whether it is whole. A run that goes on, or that died, has what it had come to
    at its last commit.

    Raises:
        UsageError: the store knows no such run, or several begin like that.
    """
    tree = store.tree()
    if is_number(name):
        made = (c.note.get("run", name) for c in store.history() if c.version == int(name))
        name = next(made, name)
    names = latest_runs(tree)
    found = [name] if name in names else [run for run in names if run.startswith(name)]
    if len(found) != 1:
        latest = ", ".join(names[:_TOLD]) or "none"
        what = "several runs are" if found else "no run is"
        raise UsageError(f"{store.url}: {what} called {name!r}; the latest runs: {latest}")
    (run,) = found
    begun = _read(store, f"{RUNS}/{run}/run.json")
    finished = f"{RUNS}/{run}/finished.json"
    if tree.exists(finished):
        held = _read(store, finished)
    else:
        held = next((so_far(c) for c in store.history() if c.note.get("run") == run), {})
    return {
        "run": run,
        "verb": begun.get("verb"),
        "at": begun.get("at"),
        "finished": tree.exists(finished),
        **held,
    }


def _read(store: Store, path: str) -> dict[str, Any]:
    try:
        held = json.loads(store.tree().read(path))
    except ValueError:
        held = None
    if not isinstance(held, dict):
        raise StoreError(
            f"{store.url}: {path} is damaged; the rows are whole, and `store history` without "
            "--run tells what the run came to at its commits"
        )
    return held


def so_far(commit: Commit) -> dict[str, Any]:
    """Return what the run of a commit had come to by then; {} where the commit is no run's."""
    held = commit.note.get("so_far", {})
    return dict(held) if isinstance(held, dict) else {}
