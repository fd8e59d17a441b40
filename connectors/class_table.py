"""classes.tsv: the label space of a dataset that brings its own classes.

    # label_space: camvid-11
    # ignore_index: 11
    id	name	r	g	b	isthing	void
    0	Sky	128	128	128
    11	Void	0	0	0		1

`maskdir` always has one; other formats have one when they hold classes that are not their own
(`--label-space keep`). The two lines on top, `isthing` (0, 1 or empty) and `void` (1 or empty) may
be left out. Without them the name is made from a hash of the table, and the ignore index is the
first void class, or the highest value of the mask's type (255, 65535).
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from pipeline.errors import LayoutError
from pipeline.label_space import LabelClass, LabelSpace, label_space
from pipeline.labels.label_tables import LABEL_SPACES

if TYPE_CHECKING:
    from pipeline.files import Tree
    from pipeline.trees.sinks import Sink

NAME: Final = "classes.tsv"

_COLUMNS: Final = ("id", "name", "r", "g", "b", "isthing", "void")
_NEEDED: Final = 5
_COMMENT: Final = re.compile(r"#\s*(label_space|ignore_index)\s*[:=]\s*(.*?)\s*")
_ESCAPES: Final = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
_PLAIN: Final = {escape: char for char, escape in _ESCAPES.items()}


def classes_of(tree: Tree, name: str) -> LabelSpace:
    """Read the label space of a class table.

    Raises:
        LayoutError: the table is malformed; the message names the line.
    """
    return parse(tree.read_text(name), tree.url_of(name))


@lru_cache(maxsize=32)
def known_classes(tree: Tree, name: str, fingerprint: str) -> LabelSpace:
    """Read a class table once a process: `fingerprint` tells its versions apart."""
    return classes_of(tree, name)


def parse(text: str, path: str) -> LabelSpace:
    """Read a class table's text."""
    said: dict[str, str] = {}
    rows: list[tuple[int, list[str]]] = []
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.rstrip("\r")
        comment = _COMMENT.fullmatch(line)
        if comment:
            said[comment[1]] = comment[2]
        elif line.strip() and not line.startswith("#"):
            rows.append((number, line.split("\t")))
    columns: tuple[str, ...] = _COLUMNS
    if rows and not rows[0][1][0].strip().isdigit():
        columns = tuple(cell.strip().lower() for cell in rows.pop(0)[1])
    if not rows or not set(_COLUMNS[:_NEEDED]) <= set(columns):
        raise LayoutError(
            f"{path}: not a table of classes; expected tab-separated columns {', '.join(_COLUMNS)}"
        )
    classes = tuple(_class(columns, cells, f"{path}, line {number}") for number, cells in rows)
    try:
        ignore = int(said["ignore_index"]) if "ignore_index" in said else _ignore(classes)
        return LabelSpace(_name(said.get("label_space"), classes, ignore), classes, ignore)
    except ValueError as error:
        raise LayoutError(f"{path}: {error}") from None


def _class(columns: tuple[str, ...], cells: list[str], where: str) -> LabelClass:
    row = dict(zip(columns, cells, strict=False))
    thing = row.get("isthing", "").strip()
    try:
        return LabelClass(
            id=int(row["id"]),
            name=_unescape(row["name"]),
            colour=(int(row["r"]), int(row["g"]), int(row["b"])),
            isthing=bool(int(thing)) if thing else None,
            void=bool(int(row.get("void", "").strip() or 0)),
        )
    except (KeyError, ValueError):
        raise LayoutError(
            f"{where}: not a class: {cells}; expected id, name, r, g, b as whole numbers and text, "
            "and 0, 1 or nothing for isthing and void"
        ) from None


def _ignore(classes: tuple[LabelClass, ...]) -> int:
    void = [c.id for c in classes if c.void]
    if void:
        return void[0]
    return 255 if max(c.id for c in classes) < 255 else 65535


def _name(said: str | None, classes: tuple[LabelClass, ...], ignore: int) -> str:
    """Return the name that the table gives, unless a built-in space of that name differs."""
    if said and said not in LABEL_SPACES:
        return said
    if said:
        own = label_space(said)
        if (own.classes, own.ignore_index) == (classes, ignore):
            return said
    mark = hashlib.blake2b(repr((classes, ignore)).encode(), digest_size=4).hexdigest()
    return f"{said or 'classes'}-{mark}"


def render(space: LabelSpace) -> str:
    """Return a label space as the text of a class table that `parse` reads back to an equal one."""
    lines = [
        f"# label_space: {space.name}",
        f"# ignore_index: {space.ignore_index}",
        "\t".join(_COLUMNS),
    ]
    for c in space.classes:
        thing = "" if c.isthing is None else str(int(c.isthing))
        cells = (c.id, _escape(c.name), *c.colour, thing, "1" if c.void else "")
        lines.append("\t".join(map(str, cells)))
    return "\n".join(lines) + "\n"


def _escape(name: str) -> str:
    return "".join(_ESCAPES.get(c, c) for c in name)


def _unescape(name: str) -> str:
    return re.sub(r"\\[\\tnr]", lambda match: _PLAIN[match[0]], name)


def write_classes(sink: Sink, prefix: str, space: LabelSpace, native: str | None = None) -> None:
    """Write the class table of a space; remove an earlier run's where it is the format's own."""
    if native is None or space != label_space(native):
        sink.write(prefix + NAME, render(space).encode())
    else:
        sink.remove(prefix + NAME)
