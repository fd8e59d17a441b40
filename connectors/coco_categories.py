"""COCO's categories as a label space, and a label space as categories.

Ids stay as they are: the official 80 have ids 1..90 with gaps. A category may say more than COCO's
id, name and supercategory: `color` [r, g, b] and `isthing` as in the panoptic files, and `void`.
Files of a space that is not the official one name it, and its ignore index, in a top-level key
`segmill`, so that it comes back equal; tools that don't know these keys pass them by.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from connectors.class_table import NAME as CLASS_TABLE
from connectors.class_table import known_classes
from connectors.coco_json import ends_of
from connectors.coco_supercategories import SUPERCATEGORY
from pipeline.errors import LayoutError, UsageError
from pipeline.label_space import LabelClass, LabelSpace, label_space, voc_colour
from pipeline.labels.label_tables import LABEL_SPACES

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from pipeline.files import Tree

KEY: Final = "segmill"
"""The top-level key that names the label space."""

OFFICIAL: Final = "coco-80"
_CHANNELS: Final = 3
_COLD: Final = Lock()


def key_of(tree: Tree, root: str, name: str | None, native: str) -> list[str]:
    """Return what `space_by` finds a file's classes by, in any process; nothing for the native.

    A class table in the root goes before a file's categories.
    """
    if tree.exists(root + CLASS_TABLE):
        return ["table", root + CLASS_TABLE, tree.entry(root + CLASS_TABLE).fingerprint]
    if name is None:
        return []
    key = ["json", name, tree.entry(name).fingerprint]
    return [] if space_by(tree, key, native) == label_space(native) else key


def space_by(tree: Tree, key: Collection[str], native: str) -> LabelSpace:
    """Return the label space that `key_of` described."""
    if not key:
        return label_space(native)
    kind, name, fingerprint = key
    if kind == "table":
        return known_classes(tree, name, fingerprint)
    with _COLD:  # threads that start together wait for the first to read the file
        return _known(tree, name, fingerprint, native)


@lru_cache(maxsize=32)
def _known(tree: Tree, name: str, fingerprint: str, native: str) -> LabelSpace:
    del fingerprint  # tells a file's versions apart
    said = {key: value for key, value in ends_of(tree, name) if key in ("categories", KEY)}
    if not isinstance(said.get("categories"), list):
        raise LayoutError(f"{tree.url_of(name)}: categories are no list; correct the file")
    return space_of(said, tree.url_of(name), native) or label_space(native)


def space_of(said: Mapping[str, Any], path: str, native: str = OFFICIAL) -> LabelSpace | None:
    """Return the label space of a file's facts; None when it has no categories.

    Categories that are all among those of `native` are that space. Others make a space named by a
    hash of them, so that files which agree share one, of whatever format.

    Raises:
        LayoutError: the categories are malformed, or two share an id or a name.
    """
    categories = said.get("categories")
    if categories is None or categories == []:
        return None
    if not isinstance(categories, list) or not all(isinstance(c, dict) for c in categories):
        raise LayoutError(f"{path}: categories are no list of objects; correct the file")
    own = said.get(KEY)
    if not isinstance(own, dict):
        if _are_of(label_space(native), categories):
            return label_space(native)
        own = {}
    try:
        classes = tuple(_class(c) for c in categories)
        ignore = own.get("ignore_index")
        if type(ignore) is not int:
            ignore = 255 if max(c.id for c in classes) < 255 else 65535
        return LabelSpace(_name(own.get("label_space"), classes, ignore), classes, ignore)
    except UsageError as error:
        raise LayoutError(f"{path}: categories are malformed ({error}); correct the file") from None
    except (KeyError, TypeError, ValueError) as error:
        raise LayoutError(
            f"{path}: categories are malformed: expected objects with a whole number as id and a "
            f"text as name ({error!r})"
        ) from None


def _are_of(space: LabelSpace, categories: list[dict[str, Any]]) -> bool:
    real = {(i, space.by_id[i].name) for i in space.ids if i != space.ignore_index}
    named = [(c.get("id"), c.get("name")) for c in categories]
    typed = all(type(number) is int and isinstance(name, str) for number, name in named)
    return typed and set(named) <= real and len(set(named)) == len(named)


def _class(category: dict[str, Any]) -> LabelClass:
    number, name, thing = category["id"], category["name"], category.get("isthing")
    if type(number) is not int or not is_name(name):
        raise TypeError(f"{number!r} {name!r}")
    return LabelClass(
        id=number,
        name=name,
        colour=_colour(category.get("color"), number),
        isthing=bool(thing) if isinstance(thing, int) else None,
        void=category.get("void") is True,
    )


def _colour(value: Any, number: int) -> tuple[int, int, int]:
    """Return a category's colour; VOC's of its id where the file has none, or one that is none."""
    if isinstance(value, list) and len(value) == _CHANNELS:
        red, green, blue = value
        if all(type(v) is int and 0 <= v <= 255 for v in value):
            return red, green, blue
    return voc_colour(number & 255)


def is_name(value: Any) -> bool:
    """Tell whether a JSON's value is text that a file may be called; not half a character."""
    try:
        return isinstance(value, str) and bool(value.encode())
    except UnicodeEncodeError:
        return False


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


def categories_of(
    space: LabelSpace, stated: Any, things: Collection[int], wanted: Collection[int] | None = None
) -> list[dict[str, Any]]:
    """Return the categories to write: as a dataset of the space stated them, else made here.

    `things` are the classes without a word on it that objects use; `wanted` the classes to write.
    """
    classes = [
        c for c in space.classes if c.id != space.ignore_index and (not wanted or c.id in wanted)
    ]
    if isinstance(stated, list) and all(isinstance(c, dict) for c in stated):
        named = {(c.get("id"), c.get("name")) for c in stated}
        if named == {(c.id, c.name) for c in classes}:
            return stated
    return [
        _category(c)
        | {
            "color": list(c.colour),
            "isthing": int(c.id in things if c.isthing is None else c.isthing),
        }
        for c in classes
    ]


def named_categories(space: LabelSpace) -> dict[str, Any]:
    """Return a space's categories, void ones too, and under `KEY` its name and ignore index.

    The official ones go without all this, as in COCO's own files of instances.
    """
    if space == label_space(OFFICIAL):
        return {"categories": [_category(c) for c in space.classes if not c.void]}
    said: list[dict[str, Any]] = []
    for c in space.classes:
        entry = _category(c) | {"color": list(c.colour)}
        if c.isthing is not None:
            entry["isthing"] = int(c.isthing)
        if c.void:
            entry["void"] = True
        said.append(entry)
    name = {"label_space": space.name, "ignore_index": space.ignore_index}
    return {"categories": said, KEY: name}


def _category(c: LabelClass) -> dict[str, Any]:
    return {"supercategory": SUPERCATEGORY.get(c.name, ""), "id": c.id, "name": c.name}


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
