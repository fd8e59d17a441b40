"""Pictures of a few scored images, ready to be embedded in a page.

A photo is embedded once; truth, prediction and error are small palette PNGs that lie on it.
"""

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
    from pipeline.metrics.confused import Confused, Confusion
    from pipeline.metrics.confusion import Counts
    from pipeline.metrics.gather import ImageScore
    from pipeline.store import Store
    from pipeline.tables.rows import RowKey

SIDE: Final = 480
"""The longer side of an embedded picture, in pixels."""
_SMALL: Final = 320
"""The same of an example of a confusion, and where there are many examples."""
_MANY: Final = 60
_CONFUSIONS: Final = 8


@dataclass(frozen=True, slots=True)
class Example:
    """One image of the report; pictures are data URIs, `photo` is None when the file is gone.

    `error` is clear where the prediction is right; it and the label maps lie on the photo.
    """

    score: ImageScore
    height: int
    width: int
    photo: str | None
    truth: str
    predicted: str
    error: str


@dataclass(frozen=True, slots=True)
class ConfusedExample:
    """One image in which a class was taken for another; `where` shows those pixels."""

    image_id: str
    pixels: int
    height: int
    width: int
    photo: str | None
    where: str


@dataclass(frozen=True, slots=True)
class ConfusedPair:
    """Two classes, by their positions, with the images where the one was taken for the other."""

    truth: int
    predicted: int
    examples: tuple[ConfusedExample, ...]


def examples(
    truth: Store, pred: Store, images: Sequence[ImageScore], space: LabelSpace
) -> list[Example]:
    """Read the images' files and masks and return them drawn in the colours of `space`."""
    side = SIDE if len(images) <= _MANY else _SMALL
    columns = ["mask.bytes", "label_space", "image.path", "image.bytes"]
    mine = _rows(truth, [i.pair.truth for i in images], columns)
    theirs = _rows(pred, [i.pair.predicted for i in images], columns[:2])
    return [
        _example(
            image,
            _labels(truth, mine[image.pair.truth], space, side),
            _labels(pred, theirs[image.pair.predicted], space, side),
            _photo(mine[image.pair.truth], side),
            space,
        )
        for image in images
    ]


def confused_examples(
    truth: Store, pred: Store, counts: Counts, confused: Confused, space: LabelSpace
) -> list[ConfusedPair]:
    """Return the pairs of classes that are most confused, `counts` [C, C + 1], with their images.

    A pair without images is left out; the pictures' longer side is 320 pixels.
    """
    wrong = counts[:, : len(counts)].copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]
    rows, columns = (a.tolist() for a in np.unravel_index(order, wrong.shape))
    chosen = {(i, j): confused.of(i, j) for i, j in zip(rows, columns, strict=True) if wrong[i, j]}
    found = [e for entries in chosen.values() for e in entries]
    names = ["mask.bytes", "label_space", "image.path", "image.bytes"]
    mine = _rows(truth, list({e.pair.truth for e in found}), names)
    theirs = _rows(pred, list({e.pair.predicted for e in found}), names[:2])
    return [
        ConfusedPair(
            i,
            j,
            tuple(
                _confused(
                    e,
                    _labels(truth, mine[e.pair.truth], space, _SMALL),
                    _labels(pred, theirs[e.pair.predicted], space, _SMALL),
                    _photo(mine[e.pair.truth], _SMALL),
                    space,
                )
                for e in entries
            ),
        )
        for (i, j), entries in chosen.items()
        if entries
    ]


def _confused(
    entry: Confusion,
    truth: LabelMap,
    predicted: LabelMap,
    photo: NDArray[np.uint8] | None,
    space: LabelSpace,
) -> ConfusedExample:
    ids = space.train_ids
    where = (truth == ids[entry.truth]) & (predicted == ids[entry.predicted])
    return ConfusedExample(
        image_id=entry.pair.truth.image_id,
        pixels=entry.pixels,
        height=truth.shape[0],
        width=truth.shape[1],
        photo=None if photo is None else _uri("webp", pictures.webp(photo)),
        where=_uri("png", pictures.error_png(where, np.zeros_like(where))),
    )


def _rows(
    store: Store, keys: Sequence[RowKey], columns: Sequence[str]
) -> dict[RowKey, dict[str, Any]]:
    found = rows_of(store, keys, columns)
    return {key: dict(zip(columns, row, strict=True)) for key, row in found}


def _labels(store: Store, row: dict[str, Any], space: LabelSpace, side: int) -> LabelMap:
    """Return a row's mask, small, in the ids of `space`."""
    mask = pictures.shrink_labels(decode(row["mask.bytes"]), side)
    return find_remap(store.space(row["label_space"]), space).apply(mask)


def _photo(row: dict[str, Any], side: int) -> NDArray[np.uint8] | None:
    """Return a row's image, small; None when its file is gone or bad."""
    from pipeline.files import read_url
    from pipeline.images import decode as decode_image

    path, data = row["image.path"], row["image.bytes"]
    try:
        held = data if data is not None else read_url(path)
        return pictures.shrink(decode_image(held, path or "image"), side)
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
    return Example(
        score=score,
        height=truth.shape[0],
        width=truth.shape[1],
        photo=None if photo is None else _uri("webp", pictures.webp(photo)),
        truth=_uri("png", pictures.labels_png(truth, space, clear_void=True)),
        predicted=_uri("png", pictures.labels_png(predicted, space, clear_void=True)),
        error=_uri("png", pictures.error_png((truth != predicted) & ~void, void)),
    )


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
