"""The annotations of the full ADE20K releases: the JSON of 2021 and the `_atr.txt` of 2017.

Both are kept as text, to be written back as they were. JSON values vary in type: a list of one is
often the one itself, nothing is `[]`, numbers may be texts.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, NamedTuple

from pipeline.errors import BadAnnotation, UnsafePath

_MEND: Final = "correct the annotation, or get the file again"
_TOP_LEVEL: Final = 99


class Noted(NamedTuple):
    """One object of the JSON: class number, part level, its whole's id, mask below the folder.

    `part_of` is None for a whole, -1 for a part whose whole is not named; `mask` is "" where no
    mask is named, `box` (x, y, w, h) then comes from the polygon, None without one.
    """

    id: int
    name: str
    number: int
    level: int
    part_of: int | None
    mask: str
    box: tuple[float, float, float, float] | None


def decoded(data: bytes) -> tuple[str, str]:
    """Return an annotation's text, exact to the byte, and its encoding: utf-8, else latin-1."""
    try:
        return data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        return data.decode("latin-1"), "latin-1"


def annotation_in(text: str, path: str) -> dict[str, Any]:
    """Return the JSON's `annotation`.

    Raises:
        BadAnnotation: the text is not JSON, or lacks it.
    """
    try:
        value = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise BadAnnotation(path, f"not JSON ({error})", _MEND) from None
    found = value.get("annotation") if isinstance(value, dict) else None
    if not isinstance(found, dict):
        raise BadAnnotation(path, "an object with the key annotation is expected", _MEND)
    return found


def json_objects(text: str, path: str) -> list[Noted]:
    """Return the objects of the JSON, in order.

    Raises:
        BadAnnotation: it is malformed.
        UnsafePath: a mask's name leads out of the image's folder.
    """
    items = annotation_in(text, path).get("object", [])
    items = [items] if isinstance(items, dict) else items
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise BadAnnotation(path, "object is no list of objects", _MEND)
    return [_noted(item, at, path) for at, item in enumerate(items)]


def _noted(item: dict[str, Any], at: int, path: str) -> Noted:
    parts = item.get("parts")
    parts = parts if isinstance(parts, dict) else {}
    where = f"object {at}"
    level = _whole(parts.get("part_level", 0) or 0, f"{where}: part_level", path)
    owner = _first(parts.get("ispartof"))
    part_of = None if owner is None else _whole(owner, f"{where}: ispartof", path)
    if level > 0 and part_of is None:
        part_of = -1
    if not 0 <= level <= _TOP_LEVEL:
        raise BadAnnotation(path, f"{where}: part_level {level}", _MEND)
    mask = item.get("instance_mask") or ""
    if not isinstance(mask, str):
        raise BadAnnotation(path, f"{where}: instance_mask is no text", _MEND)
    if mask[:1] == "/" or ".." in mask.split("/") or "\0" in mask:
        raise UnsafePath(path, f"{where}: mask {mask!r} leads out of the folder", _MEND)
    return Noted(
        id=_whole(item.get("id"), f"{where}: id", path),
        name=str(item.get("name") or ""),
        number=_whole(item.get("name_ndx"), f"{where}: name_ndx", path),
        level=max(level, 1) if part_of is not None else level,
        part_of=part_of,
        mask=mask,
        box=None if mask else _box(item.get("polygon")),
    )


def _first(value: Any) -> Any:
    return (value[0] if value else None) if isinstance(value, list) else value


def _whole(value: Any, what: str, path: str) -> int:
    """Return a whole number of 63 bits, which may come as a text, a float, or a list of one."""
    value = _first(value)
    try:
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            number = int(value)
            if number == float(value) and abs(number) < 1 << 53:
                return number
    except (ValueError, OverflowError):
        pass
    raise BadAnnotation(path, f"{what} is {str(value)[:40]!r}, no whole number", _MEND)


def _box(polygon: Any) -> tuple[float, float, float, float] | None:
    sides = []
    for axis in ("x", "y"):
        values = polygon.get(axis) if isinstance(polygon, dict) else None
        values = values if isinstance(values, list) else [values]
        if not all(isinstance(v, int | float) and abs(v) < 1e9 for v in values) or not values:
            return None
        sides.append((float(min(values)), float(max(values))))
    (left, right), (top, bottom) = sides
    return left, top, right - left, bottom - top


def atr_lines(text: str, path: str) -> dict[tuple[int, int], str]:
    """Return the class name, the fourth field, of each (part level, instance number).

    Raises:
        BadAnnotation: a line has not the fields `number # level # occluded # class # raw # "..."`.
    """
    names = {}
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        if not line.strip():
            continue
        cells = [cell.strip() for cell in re.split(r"\s#(?:\s|$)", line.strip())]
        if len(cells) < 5 or not (cells[0].isdecimal() and cells[1].isdecimal()):
            cause = f"line {number} is not six fields with ' # ' between: {line[:80]!r}"
            raise BadAnnotation(path, cause, _MEND)
        if len(cells[0]) > 9 or len(cells[1]) > 2:
            raise BadAnnotation(path, f"line {number}: number or level is out of range", _MEND)
        names[int(cells[1]), int(cells[0])] = cells[3]
    return names
