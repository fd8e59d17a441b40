"""Tags: names of a store's versions, one small file each in `_segmill/tags`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from pipeline.errors import LayoutError, UsageError

if TYPE_CHECKING:
    from pipeline.files import Tree
    from pipeline.trees.sinks import Sink

_FOLDER: Final = "_segmill/tags"


def is_number(text: str) -> bool:
    """Tell a version from a tag."""
    return text.isascii() and text.isdigit()


def read_tags(tree: Tree) -> dict[str, int]:
    """Return a store's tags and their versions."""
    try:
        if not tree.isdir(_FOLDER):
            return {}
        names = [n for n in tree.names(_FOLDER) if n.endswith(".json")]
        held = [json.loads(tree.read(f"{_FOLDER}/{n}")) for n in names]
    except LayoutError:
        return {}
    return {tag["name"]: int(tag["version"]) for tag in held}


def write_tag(sink: Sink, name: str, version: int) -> None:
    """Give a version a name; an older tag of that name moves.

    Raises:
        UsageError: the name is a number, is empty, or holds a slash.
    """
    if not name or is_number(name) or "/" in name or name.startswith("."):
        raise UsageError(f"a tag is a name without slashes that is no number, not {name!r}")
    text = json.dumps({"name": name, "version": version})
    sink.write(f"{_FOLDER}/{name}.json", text.encode())
