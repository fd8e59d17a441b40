"""The class tables and remaps shipped as data in `connectors/label_spaces/`, read when asked for.

`NAME.tsv` lists the classes of a built-in label space; `SOURCE_to_TARGET.tsv` maps class names to
class names. Here they are names and routes only; `pipeline.label_space` makes them classes.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

Names = dict[str, str]
"""Class names of one label space → class names of another."""


def _folder() -> Path:
    """Return where the tables lie: beside the package `connectors`, which is not imported."""
    spec = find_spec("connectors")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "label_spaces"


_FILES: Final = frozenset(f.stem for f in _folder().glob("*.tsv"))
LABEL_SPACES: Final = tuple(sorted(name for name in _FILES if "_to_" not in name))
"""The names that `label_space` knows: a new one is one file more."""

_HUB: Final = "unified"
_WAYS: Final = frozenset(
    (source, target)
    for source, _, target in (name.partition("_to_") for name in _FILES)
    if source in LABEL_SPACES and target in LABEL_SPACES
)
TABLES: Final = frozenset(way for way in _WAYS if _HUB not in way)

_OPEN: Final = frozenset(
    (source, target)
    for source, mark, target in (name.partition("_to_") for name in _FILES)
    if mark and source not in LABEL_SPACES and target in LABEL_SPACES
)
"""Tables of spaces that a dataset brings itself, such as the classes of an ADE20K release."""


def open_tables(name: str) -> tuple[tuple[str, str], ...]:
    """Return the tables for a space that is not built in, called as a table's source or NAME-x.

    Such a table has class names, or class numbers, on the left.
    """
    return tuple(way for way in sorted(_OPEN) if name == way[0] or name.startswith(way[0] + "-"))


def rows(name: str) -> Iterator[list[str]]:
    """Yield the cells of each line below the header of `name.tsv`."""
    text = (_folder() / f"{name}.tsv").read_text(encoding="utf-8")
    for line in text.splitlines()[1:]:
        yield line.split("\t")


@cache
def table(source: str, target: str) -> Names:
    """Read a remap's table as source name → target name; void ones are left out."""
    return {s: t for s, t, _note in rows(f"{source}_to_{target}") if t}


@cache
def _reverse(source: str, target: str) -> Names:
    """Turn the table target → source round where that is unique, or where the names agree."""
    groups: dict[str, list[str]] = {}
    for fine, coarse in table(target, source).items():
        groups.setdefault(coarse, []).append(fine)
    back = {}
    for coarse, members in groups.items():
        same = [name for name in members if plain(name) == plain(coarse)]
        if same or len(members) == 1:
            back[coarse] = (same or members)[0]
    return back


def plain(name: str) -> str:
    """Return the name without case, spaces and punctuation."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def steps(source: str) -> dict[str, Names]:
    """Return the spaces one table away, best first: tables, tables turned round, unified."""
    found = {b: table(a, b) for a, b in sorted(TABLES) if a == source}
    found |= {a: _reverse(b, a) for a, b in sorted(TABLES) if b == source}
    if (source, _HUB) in _WAYS:
        found[_HUB] = table(source, _HUB)
    if source == _HUB:
        found |= {b: table(_HUB, b) for a, b in sorted(_WAYS) if a == _HUB}
    return found


def routes(source: str) -> dict[str, tuple[str, ...]]:
    """Return the shortest way by tables from source to every space that one reaches."""
    found: dict[str, tuple[str, ...]] = {source: (source,)}
    queue = [source]
    for here in queue:
        for step in steps(here):
            if step not in found:
                found[step] = (*found[here], step)
                queue.append(step)
    return found
