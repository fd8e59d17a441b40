"""Cityscapes: label files that are damaged, contradict each other, or are not what they say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.errors import (
    BadAnnotation,
    CorruptMask,
    InputError,
    LabelOutOfRange,
    SizeMismatch,
)
from tests.connectors.cityscapes_tree import (
    SCENE,
    SCENE_OBJECTS,
    SCENE_VALUES,
    SHAPE,
    box,
    labels_of,
    numbers,
    polygons,
    put_labels,
    read_one,
    wide,
)
from tests.connectors.trees import grey, photo

if TYPE_CHECKING:
    from pathlib import Path

GOOD: dict[str, bytes | str] = {
    "_labelIds.png": grey(labels_of(SCENE_VALUES)),
    "_instanceIds.png": wide(SCENE_VALUES),
    "_polygons.json": polygons(*SCENE),
}
BAD: list[tuple[str, bytes | str, type[InputError], str]] = [
    ("_labelIds.png", wide(SCENE_VALUES), LabelOutOfRange, "26001"),
    ("_labelIds.png", photo(SHAPE), CorruptMask, "RGB"),
    ("_instanceIds.png", grey(labels_of(SCENE_VALUES)), CorruptMask, "8 bits"),
    ("_instanceIds.png", photo(SHAPE), CorruptMask, "RGB"),
    ("_instanceIds.png", wide(SCENE_VALUES)[:-40], CorruptMask, "instanceIds"),
    ("_instanceIds.png", b"", CorruptMask, "instanceIds"),
    ("_instanceIds.png", wide(SCENE_VALUES[:, 1:]), SizeMismatch, "31x24"),
    ("_instanceIds.png", wide(SCENE_VALUES + 1), BadAnnotation, "another class"),
    ("_instanceIds.png", wide(SCENE_VALUES.clip(34000)), LabelOutOfRange, "34000"),
    ("_instanceIds.png", wide(np.full(SHAPE, 300)), LabelOutOfRange, "300"),
    ("_polygons.json", "{", BadAnnotation, "not JSON"),
    ("_polygons.json", "[" * 100_000, BadAnnotation, "not JSON"),
    ("_polygons.json", b"\xff\xfe{}", BadAnnotation, "not JSON"),
    ("_polygons.json", "[]", BadAnnotation, "objects"),
    ("_polygons.json", "null", BadAnnotation, "objects"),
    ("_polygons.json", polygons(imgWidth=2048, imgHeight=1024), SizeMismatch, "2048x1024"),
    ("_polygons.json", polygons(imgWidth="32"), SizeMismatch, "32x24"),
    ("_polygons.json", polygons(objects=[1]), BadAnnotation, "without a label"),
    ("_polygons.json", polygons(objects=[{"label": "car"}]), BadAnnotation, "no polygon"),
]


@pytest.mark.parametrize(("tail", "data", "error", "said"), BAD)
def test_bad_label_file(
    tmp_path: Path, tail: str, data: bytes | str, error: type[InputError], said: str
) -> None:
    put_labels(tmp_path, GOOD)
    assert numbers(read_one(tmp_path)) == SCENE_OBJECTS
    put_labels(tmp_path, {tail: data})
    with pytest.raises(error, match=said) as caught:
        read_one(tmp_path)
    assert caught.value.path.endswith(f"_gtFine{tail}")


@pytest.mark.parametrize(
    ("label", "points", "said"),
    [
        ("car", [[1, 1], [2, 2]], "2 points"),
        ("car", [], "0 points"),
        ("car", [[1, 1], [2, 2], [3]], "not x, y"),
        ("car", [[1, 1, 1], [2, 2, 2], [3, 3, 3]], "not x, y"),
        ("car", [[1, 1], [2, 2], [3, None]], "not x, y"),
        ("car", [[1, 1], [2, 2], [3, "x"]], "not x, y"),
        ("car", [[1, 1], [2, 2], [3, 1e300]], "not x, y"),
        ("car", [[1, 1], [2, 2], [3, 10**400]], "not x, y"),
        ("car", [[1, 1], [2, 2], [3, float("nan")]], "not x, y"),
        ("tomato", box(1, 1, 5, 5), "tomato"),
        ("tomatogroup", box(1, 1, 5, 5), "tomatogroup"),
        ("group", box(1, 1, 5, 5), "'group'"),
    ],
)
def test_polygons_that_cannot_be_drawn(
    tmp_path: Path, label: str, points: list[Any], said: str
) -> None:
    """An error where the polygons are all there is; beside both rasters they are only kept."""
    text = polygons((label, points))
    put_labels(tmp_path, {"_polygons.json": text})
    with pytest.raises(BadAnnotation, match=said):
        read_one(tmp_path)
    put_labels(tmp_path, {**GOOD, "_polygons.json": text})
    record = read_one(tmp_path)
    assert record.extras()["polygons"] == text
    assert numbers(record) == SCENE_OBJECTS


def test_a_thousand_cars_and_one(tmp_path: Path) -> None:
    cars = [("car", box(1, 1, 3, 3))] * 1001
    put_labels(tmp_path, {"_polygons.json": polygons(*cars[:1000])})
    assert [i.id for i in read_one(tmp_path).instances or ()] == [26999]
    put_labels(tmp_path, {"_polygons.json": polygons(*cars)})
    with pytest.raises(BadAnnotation, match="class 26"):
        read_one(tmp_path)
