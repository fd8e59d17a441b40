"""Pictures of images whose labels changed from one night to the next: old, new, what changed."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.errors import InputError
from pipeline.files import read_url
from pipeline.images import decode as decode_image
from pipeline.label_space import find_remap
from pipeline.masks import decode
from pipeline.report import pictures
from pipeline.tables.rows import RowKey, place_of, rows_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.label_space import LabelMap, LabelSpace
    from pipeline.store import Store

SIDE: Final = 320
"""The longer side of an embedded picture, in pixels."""
_COLUMNS: Final = ("mask.bytes", "label_space", "image.path", "image.bytes")


@dataclass(frozen=True, slots=True)
class Changed:
    """One image; pictures are data URIs, `photo` is None where the file is gone or bad."""

    image_id: str
    share: float
    """Of its pixels, those that changed."""
    height: int
    width: int
    photo: str | None
    old: str
    new: str
    where: str
    """Clear where nothing changed; a pixel that has no label tonight is grey."""


def changed_pictures(
    old: Store, new: Store, most: Sequence[Mapping[str, Any]], space: LabelSpace, count: int = 6
) -> list[Changed]:
    """Draw the first `count` images of `most` that both snapshots hold, in the colours of `space`.

    `most` is what `Changes.figures` says of examples. An image that can't be drawn is left out: the
    page is no place to fail.
    """
    keys = [
        RowKey(e["image_id"], e["dataset"], place_of(e["path"] or None)) for e in most[: 2 * count]
    ]
    before, after = _rows(old, keys), _rows(new, keys)
    found: list[Changed] = []
    for key, example in zip(keys, most, strict=False):
        if key not in before or key not in after or len(found) == count:
            continue
        try:
            maps = _labels(old, before[key], space), _labels(new, after[key], space)
            found.append(_drawn(example, *maps, after[key], space))
        except InputError:
            continue
    return found


def _rows(store: Store, keys: Sequence[RowKey]) -> dict[RowKey, dict[str, Any]]:
    # One at a time: a reading goes from the least id to the greatest, and these lie far apart.
    held = (rows_of(store, [key], _COLUMNS) for key in keys)
    return {k: dict(zip(_COLUMNS, row, strict=True)) for rows in held for k, row in rows}


def _labels(store: Store, row: Mapping[str, Any], space: LabelSpace) -> LabelMap:
    if row["mask.bytes"] is None:
        raise InputError(row["image.path"] or "image", "the row has no mask", "label it again")
    mask = pictures.shrink_labels(decode(row["mask.bytes"]), SIDE)
    return find_remap(store.space(row["label_space"]), space).apply(mask)


def _drawn(
    example: Mapping[str, Any],
    old: LabelMap,
    new: LabelMap,
    row: Mapping[str, Any],
    space: LabelSpace,
) -> Changed:
    if old.shape != new.shape:
        raise InputError(example["path"], "the masks are of different sizes", "label it again")
    void = np.isin(new, [i for i in np.unique(new) if pictures.is_void(space, int(i))])
    return Changed(
        image_id=example["image_id"],
        share=example["share"],
        height=new.shape[0],
        width=new.shape[1],
        photo=_photo(row),
        old=_uri("png", pictures.labels_png(old, space, clear_void=True)),
        new=_uri("png", pictures.labels_png(new, space, clear_void=True)),
        where=_uri("png", pictures.error_png((old != new) & ~void, (old != new) & void)),
    )


def _photo(row: Mapping[str, Any]) -> str | None:
    path, data = row["image.path"], row["image.bytes"]
    try:
        held = data if data is not None else read_url(path)
        small = pictures.shrink(decode_image(held, path or "image"), SIDE)
    except (InputError, OSError):
        return None
    return _uri("webp", pictures.webp(small))


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
