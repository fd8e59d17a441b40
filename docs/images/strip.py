"""Draw the README's picture from a tour: image, labels, prediction; one row an image.

    .venv/bin/python docs/images/strip.py demo/tour-001 docs/images/demo.jpg [IMAGE_ID ...]

Without names it takes images whose own mIoU is good, far apart in the list.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pyarrow.parquet as pq

from pipeline import masks
from pipeline.files import read_url
from pipeline.images import decode
from pipeline.store import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.label_space import LabelSpace
    from pipeline.record import Record

ROWS, GAP = 3, 6


def colours(record: Record, space: LabelSpace) -> NDArray[np.uint8]:
    """Return the record's mask in its classes' colours, [H,W,3]."""
    assert record.mask is not None
    assert record.mask.bytes is not None
    palette = np.frombuffer(space.palette(), np.uint8).reshape(-1, 3)
    return palette[masks.decode(record.mask.bytes)]


def good(tour: str) -> list[str]:
    """Return the images that the model did well on, spread over the list."""
    table = pq.read_table(f"{tour}/report/per_image.parquet", columns=["image_id", "miou"])
    rows = sorted(table.to_pylist(), key=lambda row: -row["miou"])[: max(ROWS, len(table) // 4)]
    names = sorted(row["image_id"] for row in rows)
    return [names[k * (len(names) - 1) // (ROWS - 1)] for k in range(ROWS)]


def strip(tour: str, names: list[str]) -> NDArray[np.uint8]:
    """Return the picture, RGB."""
    truth, labels = Store.open(f"{tour}/truth"), Store.open(f"{tour}/labels")
    rows = []
    for name in names:
        where = f"image_id = '{name}'"
        true, made = next(truth.records(where)), next(labels.records(where))
        assert true.image.path is not None
        parts = [
            decode(read_url(true.image.path), name),
            colours(true, truth.space(true.label_space)),
            colours(made, labels.space(made.label_space)),
        ]
        rows.append(cv2.hconcat([_framed(part) for part in parts]))
    return np.asarray(cv2.vconcat(rows))[GAP:, GAP:]


def _framed(part: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Add a white gap above and to the left."""
    return np.pad(part, ((GAP, 0), (GAP, 0), (0, 0)), constant_values=255)


if __name__ == "__main__":
    tour, path, *names = sys.argv[1:]
    picture = strip(tour, names or good(tour))
    cv2.imwrite(path, picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
