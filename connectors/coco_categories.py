"""COCO's categories as a label space, and a label space as categories.

Ids stay as they are: the official 80 have ids 1..90 with gaps. A category may say more than COCO's
id, name and supercategory: `color` [r, g, b] and `isthing` as in the panoptic files, and `void`.
Files of a space that is not the official one name it, and its ignore index, in a top-level key
`segmill`, so that it comes back equal; tools that don't know these keys pass them by.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import LayoutError, UsageError
from pipeline.label_space import LabelClass, LabelSpace, label_space, voc_colour
from pipeline.label_tables import LABEL_SPACES

if TYPE_CHECKING:
    from collections.abc import Mapping

KEY: Final = "segmill"
"""The top-level key that names the label space."""

OFFICIAL: Final = "coco-80"
_CHANNELS: Final = 3


def space_of(said: Mapping[str, Any], path: str) -> LabelSpace | None:
    """Return the label space of a file's facts; None when it has no categories.

    Categories with the ids and names of the official 80 are `coco-80`. Others make a space named by
    a hash of them, so that files which agree share one.

    Raises:
        LayoutError: the categories are malformed, or two share an id or a name.
    """
    categories = said.get("categories")
    if categories is None or categories == []:
        return None
    if not isinstance(categories, list) or not all(isinstance(c, dict) for c in categories):
        raise LayoutError(f"{path}: categories is no list of objects")
    own = said.get(KEY)
    named = isinstance(own, dict)
    if not named and _is_official(categories):
        return label_space(OFFICIAL)
    try:
        classes = tuple(_class(c, things=not named) for c in categories)
        ignore = own.get("ignore_index") if isinstance(own, dict) else None
        if type(ignore) is not int:
            ignore = 255 if max(c.id for c in classes) < 255 else 65535
        said_name = own.get("label_space") if isinstance(own, dict) else None
        return LabelSpace(_name(said_name, classes, ignore), classes, ignore)
    except UsageError as error:
        raise LayoutError(f"{path}: categories: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise LayoutError(
            f"{path}: categories: expected objects with a whole number as id and a text as name "
            f"({error!r})"
        ) from None


def _is_official(categories: list[dict[str, Any]]) -> bool:
    space = label_space(OFFICIAL)
    wanted = sorted((c.id, c.name) for c in space.classes if not c.void)
    found = [(c.get("id"), c.get("name")) for c in categories]
    typed = all(type(number) is int and isinstance(name, str) for number, name in found)
    return typed and sorted(found) == wanted


def _class(category: dict[str, Any], *, things: bool) -> LabelClass:
    number, name, thing = category["id"], category["name"], category.get("isthing")
    if type(number) is not int or not isinstance(name, str):
        raise TypeError(f"{number!r} {name!r}")
    return LabelClass(
        id=number,
        name=name,
        colour=_colour(category.get("color"), number),
        isthing=bool(thing) if isinstance(thing, int) else (True if things else None),
        void=category.get("void") is True,
    )


def _colour(value: Any, number: int) -> tuple[int, int, int]:
    if isinstance(value, list) and len(value) == _CHANNELS:
        red, green, blue = value
        if all(type(v) is int and 0 <= v <= 255 for v in value):
            return red, green, blue
    return voc_colour(number & 255)


def _name(said: Any, classes: tuple[LabelClass, ...], ignore: int) -> str:
    """Return the name that the file gives, unless a built-in space of that name differs."""
    if isinstance(said, str) and said:
        if said not in LABEL_SPACES:
            return said
        own = label_space(said)
        if (own.classes, own.ignore_index) == (classes, ignore):
            return said
    mark = hashlib.blake2b(repr((classes, ignore)).encode(), digest_size=4).hexdigest()
    return f"coco-{mark}"


def categories_of(space: LabelSpace) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Return a space's categories, and the value of `KEY`, None for the official ones."""
    if space == label_space(OFFICIAL):
        official = (c for c in space.classes if not c.void)
        return [{"supercategory": "", "id": c.id, "name": c.name} for c in official], None
    said: list[dict[str, Any]] = []
    for c in space.classes:
        entry = {"supercategory": "", "id": c.id, "name": c.name, "color": list(c.colour)}
        if c.isthing is not None:
            entry["isthing"] = int(c.isthing)
        if c.void:
            entry["void"] = True
        said.append(entry)
    return said, {"label_space": space.name, "ignore_index": space.ignore_index}


def pack_ids(space: LabelSpace) -> str:
    """Return the ids that a file's annotations may name as ranges: "1-11,13-25".

    >>> from pipeline.label_space import label_space
    >>> pack_ids(label_space("camvid-11"))
    '0-11'
    """
    runs: list[list[int]] = []
    void = space.name == OFFICIAL  # its one void class is no category
    for number in sorted(c.id for c in space.classes if not (void and c.void)):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{a}-{b}" for a, b in runs)


@lru_cache(maxsize=8)
def unpack_ids(packed: str) -> frozenset[int]:
    """Return the ids that `pack_ids` packed."""
    runs = (run.split("-") for run in packed.split(",") if run)
    return frozenset(n for first, last in runs for n in range(int(first), int(last) + 1))
