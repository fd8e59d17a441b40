"""The class tables and remaps shipped as data in `connectors/label_spaces/`, read when asked for.

`NAME.tsv` lists the classes of a built-in label space; `SOURCE_to_TARGET.tsv` maps class names to
class names. Here they are names and routes only; `pipeline.label_space` makes them classes.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.resources.abc import Traversable

Names = dict[str, str]
"""Class names of one label space → class names of another."""

LABEL_SPACES: Final = (
    "ade20k-150",
    "camvid-11",
    "camvid-32",
    "cityscapes-19",
    "cityscapes-34",
    "coco-80",
    "coco-panoptic-133",
    "coco-stuff",
    "nyu-13",
    "nyu-40",
    "nyu-894",
    "sunrgbd-37",
    "unified",
    "voc-21",
)
"""The names that `label_space` knows."""

TABLES: Final = frozenset(
    {
        ("camvid-32", "camvid-11"),
        ("cityscapes-34", "cityscapes-19"),
        ("coco-stuff", "coco-panoptic-133"),
        ("nyu-40", "nyu-13"),
        ("nyu-894", "nyu-40"),
        ("sunrgbd-37", "nyu-40"),
    }
)
_UNIFIED: Final = (
    "ade20k-150",
    "camvid-11",
    "camvid-32",
    "cityscapes-34",
    "coco-80",
    "coco-panoptic-133",
    "coco-stuff",
    "nyu-40",
    "sunrgbd-37",
    "voc-21",
)
"""The spaces with a table to `unified` and one back."""


@cache
def _folder() -> Traversable:
    from importlib.resources import files

    return files("connectors") / "label_spaces"


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
    if source in _UNIFIED:
        found["unified"] = table(source, "unified")
    if source == "unified":
        found |= {name: table("unified", name) for name in _UNIFIED}
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
