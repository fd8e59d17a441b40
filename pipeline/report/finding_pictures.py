"""The images behind a few findings, small: photo, mask over it, and the object that it is about."""

from __future__ import annotations

import base64
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline import masks
from pipeline.errors import InputError
from pipeline.report import pictures
from pipeline.tables.rows import RowKey, place_of, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from pipeline.checks.findings import Finding, RowName
    from pipeline.label_space import LabelMap, LabelSpace
    from pipeline.store import Store

    Pixels = NDArray[np.uint8]

SIDE: Final = 320
_COLUMNS: Final = (
    "height", "width", "label_space", "image.path", "image.bytes", "mask.bytes", "instances",
)  # fmt: skip
_ALPHA: Final = 0.55
_MARK: Final = (255, 48, 48)
_EVIDENT: Final = frozenset({"image-missing", "fragment", "row", "label-space"})
"""Kinds of findings that no picture explains."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture as a data URI, and what it shows."""

    caption: str
    uri: str


Pictures = list[Picture]


def finding_pictures(
    store: Store, findings: Iterable[Finding], most: int = 3
) -> dict[Finding, Pictures]:
    """Read the images and labels behind the first findings of each kind; bad ones are left out."""
    found: dict[Finding, Pictures] = {}
    drawn: dict[str, int] = {}
    for finding in findings:
        if finding.row is None or finding.kind in _EVIDENT or drawn.get(finding.kind, 0) >= most:
            continue
        made = _of_row(store, finding.row, finding.object)
        if finding.other is not None:
            theirs = _of_row(store, finding.other, None)
            made = [*made[:1], *theirs[:1]]
        if made:
            found[finding] = made
            drawn[finding.kind] = drawn.get(finding.kind, 0) + 1
    return found


def _of_row(store: Store, name: RowName, number: int | None) -> Pictures:
    key = RowKey(name.image_id, name.dataset, place_of(name.path or None))
    for _, values in rows_of(store, [key], _COLUMNS):
        row = dict(zip(_COLUMNS, values, strict=True))
        try:
            return _draw(row, store.label_spaces.get(row["label_space"]), number, name)
        # The row is bad, that is why it is shown; whatever it trips over, the page goes on.
        except Exception:
            return []
    return []


def _draw(
    row: Mapping[str, Any], space: LabelSpace | None, number: int | None, name: RowName
) -> Pictures:
    photo = _photo(row)
    mask = None if space is None else _mask(row)
    where = name.split or "no split"
    made = [] if photo is None else [Picture(f"image ({where})", _jpeg(photo))]
    base = photo if photo is not None else _grey(mask)
    if mask is not None and space is not None:
        height, width = base.shape[:2]
        caption = "mask"
        if mask.shape != (row["height"], row["width"]):
            caption, base = f"mask, {mask.shape[1]}x{mask.shape[0]}", _grey(mask)
            height, width = base.shape[:2]
        small = _nearest(mask, height, width)
        base = _blend(base, small, space)
        made.append(Picture(caption, _jpeg(base)))
    marked = _marked(base, row, number)
    if marked is not None:
        made.append(Picture(f"object {number}", _jpeg(marked)))
    return made


def _photo(row: Mapping[str, Any]) -> Pixels | None:
    from pipeline.files import read_url
    from pipeline.images import decode

    path, data = row["image.path"], row["image.bytes"]
    try:
        held = data if data is not None else read_url(path or "")
        return pictures.shrink(decode(held, path or "image"), SIDE)
    except (InputError, OSError):
        return None


def _mask(row: Mapping[str, Any]) -> LabelMap | None:
    if row["mask.bytes"] is None:
        return None
    try:
        return masks.decode(row["mask.bytes"])
    except InputError:
        return None


def _grey(mask: LabelMap | None) -> Pixels:
    height, width = (3, 4) if mask is None else mask.shape
    scale = SIDE if mask is None else 1
    shape = pictures.fit(scale * height, scale * width, SIDE)
    return np.full((*shape, 3), 128, np.uint8)


def _nearest(mask: LabelMap, height: int, width: int) -> LabelMap:
    import cv2

    small = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
    return np.asarray(small, mask.dtype)


def _blend(photo: Pixels, mask: LabelMap, space: LabelSpace) -> Pixels:
    """Lay the mask's colours over the photo; void lets it through, ids of no class are red."""
    out = photo.astype(np.float32)
    for index in np.unique(mask).tolist():
        here = mask == index
        if index not in space.by_id and index != space.ignore_index:
            out[here] = _MARK
        elif not pictures.is_void(space, index):
            out[here] = (1 - _ALPHA) * out[here] + _ALPHA * np.array(
                pictures.colour_of(space, index), np.float32
            )
    return out.astype(np.uint8)


def _marked(base: Pixels, row: Mapping[str, Any], number: int | None) -> Pixels | None:
    """Draw the object's outline and box."""
    import cv2

    same = [i for i in row["instances"] or () if i["id"] == number]
    if number is None or not same:
        return None
    out, height, width = base.copy(), row["height"], row["width"]
    scale = np.array([base.shape[1] / width, base.shape[0] / height])
    thing = same[0]
    with suppress(InputError):
        shape = masks.rle_decode(thing["rle"] or "", height, width)
        small = _nearest(np.ascontiguousarray(shape), *base.shape[:2])
        outline, _ = cv2.findContours(small, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(out, outline, -1, (255, 255, 255), 2)
    if thing["bbox"] and len(thing["bbox"]) == 4:
        x, y, w, h = thing["bbox"]
        first, last = np.array([x, y]) * scale, np.array([x + w, y + h]) * scale
        start, stop = (np.clip(p, -1e4, 1e4).astype(int).tolist() for p in (first, last))
        cv2.rectangle(out, start, stop, _MARK, 2)
    return out


def _jpeg(pixels: Pixels) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(pictures.jpeg(pixels)).decode()}"
