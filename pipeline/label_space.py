"""Label spaces: ordered lists of classes with one ignore index, and the remaps between them.

The built-in ones are tables (`pipeline.labels.label_tables`), read when they are asked for.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from pipeline.errors import RemapError, UnknownName, UsageError
from pipeline.labels.label_tables import (
    LABEL_SPACES,
    TABLES,
    open_tables,
    plain,
    routes,
    rows,
    steps,
    table,
)
from pipeline.loss import Loss

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from pipeline.labels.label_tables import Names
    from pipeline.record import ClassPixels

__all__ = [
    "LABEL_SPACES",
    "LabelClass",
    "LabelMap",
    "LabelSpace",
    "Loss",
    "Remap",
    "find_remap",
    "label_space",
    "voc_colour",
]

LabelMap: TypeAlias = "NDArray[np.unsignedinteger[Any]]"
"""Class ids of pixels: [H, W], uint8 or uint16."""

_TOP_ID: Final = 65535  # masks hold 16 bits at most


@dataclass(frozen=True, slots=True)
class LabelClass:
    """One class: id in masks, name, RGB colour; void classes are never trained nor evaluated."""

    id: int
    name: str
    colour: tuple[int, int, int]
    isthing: bool | None = None
    void: bool = False


@dataclass(frozen=True)
class LabelSpace:
    """An ordered list of classes with one ignore index, which may itself be a listed void class.

    Raises:
        UsageError: two classes share an id or a name, an id or colour is out of range, the space's
            own name does not fit on a line, or a name is no text that a file can hold.
    """

    name: str
    classes: tuple[LabelClass, ...]
    ignore_index: int

    def __post_init__(self) -> None:
        ids, names = [c.id for c in self.classes], [c.name for c in self.classes]
        for kind, values in (("id", list(map(str, ids))), ("name", names)):
            twice = sorted(v for v, count in Counter(values).items() if count > 1)
            if twice:
                raise UsageError(
                    f"label space {self.name!r}: {kind} {', '.join(twice)} is given to more than "
                    "one class; make each unique"
                )
        self._check_texts(names)
        bad = [i for i in (*ids, self.ignore_index) if not 0 <= i <= _TOP_ID]
        if bad:
            raise UsageError(f"label space {self.name!r}: ids {bad} are not in 0..{_TOP_ID}")
        for c in self.classes:
            if len(c.colour) != 3 or not all(0 <= v <= 255 for v in c.colour):
                raise UsageError(
                    f"label space {self.name!r}: colour {c.colour} of class {c.name!r} is not three"
                    " values in 0..255"
                )

    def _check_texts(self, names: Iterable[str]) -> None:
        if any(c in self.name for c in "\n\r") or self.name != self.name.strip():
            raise UsageError(
                f"label space name {self.name!r} has line breaks or spaces around it; rename it"
            )
        for text in (self.name, *names):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise UsageError(
                    f"label space {self.name!r}: the name {text!r} is no Unicode text (half of a "
                    "surrogate pair); correct it"
                ) from None

    def __hash__(self) -> int:
        # Spaces key caches that are asked once an image: don't walk 895 classes there.
        return hash((self.name, self.ignore_index, len(self.classes)))

    def __reduce__(self) -> tuple[type[LabelSpace], tuple[str, tuple[LabelClass, ...], int]]:
        return LabelSpace, (self.name, self.classes, self.ignore_index)  # without cached tables

    @cached_property
    def ids(self) -> tuple[int, ...]:
        """Return the listed ids, in order."""
        return tuple(c.id for c in self.classes)

    @cached_property
    def train_ids(self) -> tuple[int, ...]:
        """Return the ids of the classes that are not void, in order: a model's output channels."""
        return tuple(c.id for c in self.classes if not c.void and c.id != self.ignore_index)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes that are trained on and scored, in the order of `train_ids`."""
        return tuple(self.by_id[i].name for i in self.train_ids)

    @cached_property
    def max_id(self) -> int:
        """Return the greatest value that a mask may hold, the ignore index included."""
        return max((*self.ids, self.ignore_index))

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        """Return the type of a mask's pixels."""
        return np.uint8 if self.max_id <= 255 else np.uint16

    @cached_property
    def by_id(self) -> Mapping[int, LabelClass]:
        """Return the classes by id."""
        return {c.id: c for c in self.classes}

    @cached_property
    def by_name(self) -> Mapping[str, LabelClass]:
        """Return the classes by name."""
        return {c.name: c for c in self.classes}

    @cached_property
    def _palette(self) -> bytes:
        entries = bytearray(b"".join(bytes(voc_colour(i)) for i in range(256)))
        if self.ignore_index <= 255 and self.ignore_index not in self.by_id and self.ignore_index:
            entries[3 * self.ignore_index : 3 * self.ignore_index + 3] = bytes(3)
        for c in self.classes:
            if c.id <= 255:
                entries[3 * c.id : 3 * c.id + 3] = bytes(c.colour)
        return bytes(entries)

    def palette(self) -> bytes:
        """Return 256 RGB entries by id (768 bytes); ids without a class have VOC's colours.

        An ignore index that is not a listed class is black. Ids above 255 have no entry.
        """
        return self._palette

    def cell_palette(self) -> bytes | None:
        """Return the palette that mask cells of this space carry; None where they have 16 bits."""
        return self._palette if self.dtype is np.uint8 else None

    @cached_property
    def _allowed(self) -> NDArray[np.bool_]:
        table = np.zeros(256 if self.max_id <= 255 else _TOP_ID + 1, dtype=np.bool_)
        table[[*self.ids, self.ignore_index]] = True
        table.flags.writeable = False
        return table

    def allowed(self) -> NDArray[np.bool_]:
        """Return, for every value of `dtype`, whether a mask may hold it: bool [256] or [65536]."""
        return self._allowed

    def to_json(self) -> str:
        """Return the space as JSON text that `from_json` reads back to an equal space."""
        classes = [
            {"id": c.id, "name": c.name, "colour": list(c.colour)}
            | ({} if c.isthing is None else {"isthing": c.isthing})
            | ({"void": True} if c.void else {})
            for c in self.classes
        ]
        space = {"name": self.name, "ignore_index": self.ignore_index, "classes": classes}
        return json.dumps(space, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> LabelSpace:
        """Build a space from the text of `to_json`.

        Raises:
            UsageError: the text is not JSON, or not a label space.
        """
        try:
            value = json.loads(text)
            classes = tuple(_class_from_json(c) for c in value["classes"])
            return cls(str(value["name"]), classes, int(value["ignore_index"]))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(
                f"not a label space ({error!r}); expected JSON with name, ignore_index and classes,"
                " each with id, name and colour [r, g, b]"
            ) from None


def _class_from_json(value: dict[str, Any]) -> LabelClass:
    red, green, blue = value["colour"]
    thing = value.get("isthing")
    return LabelClass(
        id=int(value["id"]),
        name=str(value["name"]),
        colour=(int(red), int(green), int(blue)),
        isthing=None if thing is None else bool(thing),
        void=bool(value.get("void", False)),
    )


def voc_colour(index: int) -> tuple[int, int, int]:
    """Return Pascal VOC's colour of a palette index: its bits dealt to R, G, B from the top.

    >>> voc_colour(15), voc_colour(255)
    ((192, 128, 128), (224, 224, 192))
    """
    channels = [0, 0, 0]
    for place in range(7, -1, -1):
        for channel in range(3):
            channels[channel] |= (index >> channel & 1) << place
        index >>= 3
    return channels[0], channels[1], channels[2]


@cache
def label_space(name: str) -> LabelSpace:
    """Return the built-in label space called name.

    Raises:
        UnknownName: no such label space is built in.
    """
    if name not in LABEL_SPACES:
        raise UnknownName("label space", name, LABEL_SPACES)
    classes, ignore = [], -1
    for number, title, red, green, blue, thing, role in rows(name):
        classes.append(
            LabelClass(
                id=int(number),
                name=title,
                colour=(int(red), int(green), int(blue)),
                isthing=bool(int(thing)) if thing else None,
                void=role != "class",
            )
        )
        if role == "ignore":
            ignore = int(number)
    return LabelSpace(name, tuple(classes), ignore)


@dataclass(frozen=True)
class Remap:
    """A look-up table from one label space to another; `via` names the spaces between.

    `lut` covers every value of the source's pixel type; values that no class of the target stands
    for lead to its ignore index.
    """

    source: LabelSpace
    target: LabelSpace
    lut: LabelMap
    via: tuple[str, ...] = ()

    def apply(self, mask: LabelMap) -> LabelMap:
        """Return the mask in the target's ids: [H, W] of the target's pixel type."""
        if mask.dtype == np.uint16 and len(self.lut) == 256:
            wide = np.full(_TOP_ID + 1, self.target.ignore_index, dtype=self.lut.dtype)
            wide[:256] = self.lut
            return np.take(wide, mask)
        if mask.dtype != np.uint8 or self.lut.dtype != np.uint8 or len(self.lut) != 256:
            return np.take(self.lut, mask)
        import cv2  # takes a sixth of NumPy's time

        return np.asarray(cv2.LUT(mask, self.lut))

    @cached_property
    def _fates(self) -> tuple[dict[int, str], dict[int, tuple[str, str]]]:
        """Return the source classes that turn into void, and those that share a target class."""
        lost: dict[int, str] = {}
        groups: dict[int, list[LabelClass]] = {}
        for c in self.source.classes:
            target = int(self.lut[c.id])
            if c.id == self.source.ignore_index:
                continue
            if target == self.target.ignore_index:
                lost[c.id] = c.name
            else:
                groups.setdefault(target, []).append(c)
        shared = {
            c.id: (self.target.by_id[target].name, c.name)
            for target, group in groups.items()
            if len(group) > 1
            for c in group
        }
        return lost, shared

    def loss(self, classes: Iterable[ClassPixels]) -> Loss:
        """Return what the remap loses of a mask that holds these classes."""
        lost, shared = self._fates
        loss = Loss()
        for c in classes:
            loss.pixels += c.pixels
            if c.id in lost:
                loss.to_void[lost[c.id]] = c.pixels
            elif c.id in shared:
                target, source = shared[c.id]
                loss.merged[target] = sorted({*loss.merged.get(target, ()), source})
        return loss


def _by_names(source: LabelSpace, target: LabelSpace) -> Names:
    """Match class names, first as written, then without case, spaces and punctuation."""
    spelt = {plain(c.name): c.name for c in reversed(target.classes) if not c.void}
    found = {}
    for c in source.classes:
        if c.name in target.by_name:
            found[c.name] = c.name
        elif not c.void and plain(c.name) in spelt:
            found[c.name] = spelt[plain(c.name)]
    return found


def _real(space: LabelSpace) -> set[str]:
    return {space.by_id[i].name for i in space.train_ids}


def _remap(source: LabelSpace, target: LabelSpace, names: Names, via: tuple[str, ...]) -> Remap:
    size = 256 if source.dtype is np.uint8 else _TOP_ID + 1
    lut: LabelMap = np.full(size, target.ignore_index, dtype=target.dtype)
    for c in source.classes:
        if c.id != source.ignore_index and names.get(c.name) in target.by_name:
            lut[c.id] = target.by_name[names[c.name]].id
    lut.flags.writeable = False
    return Remap(source, target, lut, via)


def _is_built_in(space: LabelSpace) -> bool:
    return space.name in LABEL_SPACES and space == label_space(space.name)


def find_remap(source: LabelSpace, target: LabelSpace) -> Remap:
    """Find the remap that loses least: identity, a table, equal names, the way by `unified`.

    A space that a dataset brings itself has a table by its name: `ade20k-full-5f0c` goes by
    `ade20k-full_to_ade20k-150`, which has that release's class numbers.

    Equal names serve when either space has all the classes of the other; when no table leads
    further, some shared names are enough.

    Raises:
        RemapError: the two share no class by any of these ways; it lists what would work.
    """
    names = _by_names(source, target)
    if source.classes == target.classes and source.ignore_index == target.ignore_index:
        return _remap(source, target, {c.name: c.name for c in source.classes}, ())
    by_table = _by_open_table(source, target)
    if by_table is not None:
        return by_table
    tables = _is_built_in(source) and _is_built_in(target)
    if tables and (source.name, target.name) in TABLES:
        return _remap(source, target, table(source.name, target.name), ())
    matched = {names[n] for n in names} & _real(target)
    if matched and (_real(source) <= set(names) or matched == _real(target)):
        return _remap(source, target, names, ())
    if tables:
        route = routes(source.name).get(target.name)
        chained = _chain(route) if route else {}
        if route and chained.keys() & _real(source):
            return _remap(source, target, chained, route[1:-1])
    if matched:
        return _remap(source, target, names, ())
    raise RemapError(_no_way(source, target))


def _by_open_table(source: LabelSpace, target: LabelSpace) -> Remap | None:
    """Return the remap by a table for spaces that datasets bring, and onward from its target."""
    if not _is_built_in(target):
        return None
    for way in open_tables(source.name):
        first, route = table(*way), routes(way[1]).get(target.name)
        onward = _chain(route) if route else {}
        names = {}
        for c in source.classes:
            step = first.get(c.name) or first.get(str(c.id))
            if step in onward:
                names[c.name] = onward[step]
        if route and names:
            return _remap(source, target, names, route[:-1])
    return None


def _chain(route: tuple[str, ...]) -> Names:
    names = {c.name: c.name for c in label_space(route[0]).classes}
    for here, step in pairwise(route):
        onward = steps(here)[step]
        names = {s: onward[t] for s, t in names.items() if t in onward}
    return names


def _no_way(source: LabelSpace, target: LabelSpace) -> str:
    known = sorted(set(routes(source.name)) - {source.name}) if _is_built_in(source) else []
    reach = [*known] or [
        n for n in LABEL_SPACES if _by_names(source, label_space(n)).keys() & _real(source)
    ]
    ways = f"label spaces that work: {', '.join(reach)}" if reach else "no built-in space works"
    return (
        f"no remap from label space {source.name!r} to {target.name!r}: no table and no class name "
        f"in common; {ways}; or keep the classes with --label-space keep"
    )
