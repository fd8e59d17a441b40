"""Image, truth, prediction and error of a few scored images, ready to be embedded in a page."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.errors import InputError
from pipeline.label_space import find_remap
from pipeline.masks import decode
from pipeline.report import pictures
from pipeline.tables.rows import rows_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.label_space import LabelMap, LabelSpace
    from pipeline.metrics.gather import ImageScore
    from pipeline.store import Store
    from pipeline.tables.rows import RowKey

SIDE: Final = 320
"""The longer side of an embedded picture, in pixels."""


@dataclass(frozen=True, slots=True)
class Example:
    """One image of the report; pictures are data URIs, `photo` is None when the file is gone."""

    score: ImageScore
    height: int
    width: int
    photo: str | None
    truth: str
    predicted: str
    error: str


def examples(
    truth: Store, pred: Store, images: Sequence[ImageScore], space: LabelSpace
) -> list[Example]:
    """Read the images' files and masks and return them drawn in the colours of `space`."""
    columns = ["mask.bytes", "label_space", "image.path", "image.bytes"]
    mine = _rows(truth, [i.pair.truth for i in images], columns)
    theirs = _rows(pred, [i.pair.predicted for i in images], columns[:2])
    return [
        _example(
            image,
            _labels(truth, mine[image.pair.truth], space),
            _labels(pred, theirs[image.pair.predicted], space),
            _photo(mine[image.pair.truth]),
            space,
        )
        for image in images
    ]


def _rows(
    store: Store, keys: Sequence[RowKey], columns: Sequence[str]
) -> dict[RowKey, dict[str, Any]]:
    found = rows_of(store, keys, columns)
    return {key: dict(zip(columns, row, strict=True)) for key, row in found}


def _labels(store: Store, row: dict[str, Any], space: LabelSpace) -> LabelMap:
    """Return a row's mask, small, in the ids of `space`."""
    mask = pictures.shrink_labels(decode(row["mask.bytes"]), SIDE)
    return find_remap(store.space(row["label_space"]), space).apply(mask)


def _photo(row: dict[str, Any]) -> NDArray[np.uint8] | None:
    """Return a row's image, small; None when its file is gone or bad."""
    from pipeline.files import read_url
    from pipeline.images import decode as decode_image

    path, data = row["image.path"], row["image.bytes"]
    try:
        held = data if data is not None else read_url(path)
        return pictures.shrink(decode_image(held, path or "image"), SIDE)
    except (InputError, OSError):
        return None


def _example(
    score: ImageScore,
    truth: LabelMap,
    predicted: LabelMap,
    photo: NDArray[np.uint8] | None,
    space: LabelSpace,
) -> Example:
    void = np.isin(truth, [i for i in np.unique(truth) if pictures.is_void(space, int(i))])
    error = pictures.error_picture(photo, (truth != predicted) & ~void, void)
    return Example(
        score=score,
        height=truth.shape[0],
        width=truth.shape[1],
        photo=None if photo is None else _uri("jpeg", pictures.jpeg(photo)),
        truth=_uri("png", pictures.labels_png(truth, space)),
        predicted=_uri("png", pictures.labels_png(predicted, space)),
        error=_uri("jpeg", pictures.jpeg(error)),
    )


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
