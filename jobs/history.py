"""What `store history` shows: versions, and what their runs came to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.runs.history import so_far

if TYPE_CHECKING:
    from pipeline.tables.commit import Commit

COLUMNS = ("version", "tag", "at (UTC)", "what", "rows", "sum")


def entry(commit: Commit, tag: str) -> dict[str, Any]:
    """Return a version as plain data."""
    return {
        "version": commit.version,
        "tag": tag,
        "at": f"{commit.at:%Y-%m-%dT%H:%M:%SZ}",
        "operation": commit.operation,
        "note": dict(commit.note),
    }


def row(commit: Commit, tag: str) -> tuple[str, ...]:
    """Return a version as a row of the table."""
    note = commit.note
    rows = f"{note['rows']:,}" if "rows" in note else ""
    at = f"{commit.at:%Y-%m-%d %H:%M:%S}"
    return str(commit.version), tag, at, _what(commit), rows, _sum(so_far(commit))


def _what(commit: Commit) -> str:
    note = commit.note
    if "verb" in note:
        return str(note["verb"])
    said = next(((k, v) for k, v in note.items() if k != "rows"), None)
    return f"{said[0]} {said[1]}" if said else commit.operation.lower()


def _sum(run: dict[str, Any]) -> str:
    """Return what a run had come to when it committed, in a few words."""
    if not run:
        return ""
    said = [f"{run['done']:,} of {run['inputs']:,} done"]
    said += [f"{run[key]:,} {key}" for key in ("skipped", "failed") if run[key]]
    said.append(f"{run['images_per_second']:,.1f}/s")
    said.append(f"{run['workers']} worker{'s' * (run['workers'] != 1)}")
    if "model" in run:
        said.append(f"{run['model']} ({run['model_digest'][:12]})")
    return ", ".join(said)


def run_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Return a run's whole summary as rows of two columns."""
    found = []
    for name, value in summary.items():
        if isinstance(value, dict):
            text = ", ".join(f"{k} {v:,}" for k, v in value.items()) or "none"
        else:
            text = f"{value:,}" if isinstance(value, (int, float)) else str(value)
        found.append((name, text if not isinstance(value, bool) else str(value).lower()))
    return found
