"""Labels of labelling tools, which know classes by name and colour, and label spaces.

A `classes.tsv` beside the tool's file says all: `export` and `convert` write it. Without one the
names tell: when they are all the classes of a built-in space it is that one, else a space of its
own, numbered in the tool's order. What no shape covers is the class `background` where the space
has one, else void. Void pixels are written as a shape only where `background` covers the rest.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from connectors.class_table import NAME as CLASS_TABLE
from connectors.class_table import known_classes
from pipeline.errors import BadAnnotation, LayoutError, UsageError
from pipeline.label_space import LABEL_SPACES, LabelClass, LabelSpace, label_space, voc_colour

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pipeline.files import Tree

Colour = tuple[int, int, int]
Labels = tuple[tuple[str, Colour | None], ...]
"""The names of a tool's labels, in its order, with their colours where it has any."""

_IGNORED: Final = "ignore {}"
_HEX: Final = re.compile(r"#?([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})")
_NAMES_OF_VOID: Final = ("ignore", "void", "unlabeled", "unlabelled")


def table_of(tree: Tree, root: str) -> LabelSpace | None:
    """Return the label space of the class table in a root, None without one."""
    name = root + CLASS_TABLE
    if not tree.exists(name):
        return None
    return known_classes(tree, name, tree.entry(name).fingerprint)


@lru_cache(maxsize=32)
def space_of(labels: Labels, format: str, path: str) -> LabelSpace:
    """Return the label space of a tool's labels.

    Raises:
        LayoutError: two labels share a name, or one is no text.
    """
    names = {name for name, _ in labels}
    for known in LABEL_SPACES:
        space = label_space(known)
        ignored = space.by_id.get(space.ignore_index)
        may_lack = {_ignored(space), ignored.name if ignored else ""}
        if names <= set(space.by_name) | may_lack and set(space.by_name) - may_lack <= names:
            return space
    ids = range(len(labels))
    top = 255 if len(labels) < 256 else 65535
    ignore = next((i for i in ids if labels[i][0].lower() in _NAMES_OF_VOID), top)
    mark = hashlib.blake2b(repr(labels).encode("utf-8", "replace"), digest_size=4).hexdigest()
    try:
        classes = tuple(
            LabelClass(i, name, colour or voc_colour(i + 1), void=i == ignore)
            for i, (name, colour) in enumerate(labels)
        )
        return LabelSpace(f"{format}-{mark}", classes, ignore)
    except UsageError as error:
        raise LayoutError(f"{path}: the labels are malformed ({error}); correct them") from None


def labels_of(space: LabelSpace) -> list[LabelClass]:
    """Return the classes that a tool needs: all, and one for void where shapes have to say so."""
    classes = list(space.classes)
    ignore = space.ignore_index
    if ignore not in space.by_id and ground_of(space) != ignore:
        classes.append(LabelClass(ignore, _ignored(space), (0, 0, 0), void=True))
    return classes


def _ignored(space: LabelSpace) -> str:
    return _IGNORED.format(space.ignore_index)


def ground_of(space: LabelSpace) -> int:
    """Return the id of pixels that no shape covers."""
    ground = space.by_name.get("background")
    return ground.id if ground else space.ignore_index


def name_of(space: LabelSpace, category: int) -> str:
    """Return the label of a class, the ignore index included."""
    known = space.by_id.get(category)
    return known.name if known else _ignored(space)


def id_of(space: LabelSpace, name: str, where: str) -> int:
    """Return the class of a label.

    Raises:
        BadAnnotation: the space has no such class.
    """
    known = space.by_name.get(name)
    if known is not None:
        return known.id
    if name == _ignored(space):
        return space.ignore_index
    raise BadAnnotation(
        where,
        f"label {name[:80]!r} is not a class of label space {space.name!r}",
        f"correct the label, or add the class to {CLASS_TABLE}",
    )


def is_object(space: LabelSpace, category: int) -> bool:
    """Tell whether a shape of this class is an object: void and background are none."""
    known = space.by_id.get(category)
    void = known is None or known.void or category == space.ignore_index
    return not void and category != ground_of(space)


def hex_of(colour: Sequence[int]) -> str:
    """Return a colour as `#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def colour_of(text: str | None) -> Colour | None:
    """Return the colour of `#rrggbb`, None for any other text."""
    found = _HEX.fullmatch(text.strip()) if text else None
    return (int(found[1], 16), int(found[2], 16), int(found[3], 16)) if found else None


def once(labels: Iterable[tuple[str, Colour | None]]) -> Labels:
    """Return labels without repetitions of a name."""
    found: dict[str, Colour | None] = {}
    for name, colour in labels:
        found.setdefault(name, colour)
    return tuple(found.items())
