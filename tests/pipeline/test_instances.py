from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pycocotools import mask as coco

from pipeline import masks
from pipeline.errors import BadAnnotation
from pipeline.label_space import label_space
from pipeline.labels.regions import Regions
from pipeline.record import Instance
from tests.pipeline.label_files import SHAPES, blobs

VOC = label_space("voc-21")
# pycocotools' own Cython, on NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@st.composite
def binaries(draw: st.DrawFn) -> np.ndarray:
    """Draw noise, or boxes of ones: objects that touch every side of the image and each other."""
    height, width = draw(SHAPES)
    if draw(st.booleans()):
        return draw(arrays.arrays(np.uint8, (height, width), elements=st.integers(0, 1)))
    binary = np.zeros((height, width), np.uint8)
    for _ in range(draw(st.integers(0, 3))):
        top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        bottom, right = draw(st.integers(top, height)), draw(st.integers(left, width))
        binary[top:bottom, left:right] = 1
    return binary


def by_coco(binary: np.ndarray) -> dict:
    return coco.encode(np.asfortranarray(binary.astype(np.uint8)))


@settings(max_examples=150, deadline=None)
@given(binary=binaries())
def test_run_lengths_are_those_of_pycocotools(binary: np.ndarray) -> None:
    height, width = binary.shape
    expected = by_coco(binary)
    text = masks.rle_encode(binary)
    assert text == expected["counts"].decode()
    assert masks.rle_encode(binary.astype(bool)) == text
    back = masks.rle_decode(text, height, width)
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, binary)
    np.testing.assert_array_equal(back, coco.decode(expected))
    assert masks.rle_area(text) == int(coco.area(expected))
    assert masks.rle_bbox(text, height, width) == tuple(coco.toBbox(expected))


@settings(max_examples=200, deadline=None)
@given(binary=binaries())
def test_uncompressed_run_lengths(binary: np.ndarray) -> None:
    height, width = binary.shape
    text = masks.rle_encode(binary)
    runs = masks.rle_runs(text)
    assert sum(runs) == height * width
    assert sum(runs[1::2]) == int(binary.sum())
    compressed = coco.frPyObjects({"counts": runs, "size": [height, width]}, height, width)
    assert compressed["counts"].decode() == text
    assert masks.rle_from_runs(runs, height, width) == text


def test_runs_of_length_zero_are_kept() -> None:
    runs = [0, 2, 0, 3, 1]  # some writers split runs so; the pixels are what counts
    text = masks.rle_from_runs(runs, 2, 3)
    assert masks.rle_runs(text) == runs
    assert masks.rle_decode(text, 2, 3).T.ravel().tolist() == [1, 1, 1, 1, 1, 0]
    assert masks.rle_bbox(text, 2, 3) == (0, 0, 3, 2)


def test_large_runs() -> None:
    binary = np.zeros((3000, 4000), np.uint8)
    binary[1, 2] = binary[2999, 3999] = 1
    text = masks.rle_encode(binary)
    assert text == by_coco(binary)["counts"].decode()
    assert masks.rle_area(text) == 2


@settings(max_examples=100, deadline=None)
@given(text=st.one_of(st.text(max_size=30), st.text("0123456789:;<=>?@ABCDEFGno", max_size=30)))
def test_any_text_is_decoded_or_refused(text: str) -> None:
    try:
        runs = masks.rle_runs(text)
    except BadAnnotation:
        with pytest.raises(BadAnnotation):
            masks.rle_decode(text, 10, 10)
        return
    assert all(run >= 0 for run in runs)
    if sum(runs) != 100:
        with pytest.raises(BadAnnotation, match="image 10x10"):
            masks.rle_decode(text, 10, 10)
    else:
        assert int(masks.rle_decode(text, 10, 10).sum()) == masks.rle_area(text)


@pytest.mark.parametrize("runs", [[], [-1, 101], [1.5, 98.5], [100, 1], [99], ["100"], [1 << 70]])
def test_runs_that_are_none_are_refused(runs: list) -> None:
    with pytest.raises(BadAnnotation, match=r"^image 7: "):
        masks.rle_from_runs(runs, 10, 10, "image 7")


POINTS = st.lists(
    st.floats(-20, 60, allow_nan=False).map(lambda v: round(v, 2)), min_size=6, max_size=16
).filter(lambda points: len(points) % 2 == 0)


@settings(max_examples=100, deadline=None)
@given(polygons=st.lists(POINTS, min_size=1, max_size=3))
def test_polygons_are_drawn_as_coco_draws_them(polygons: list[list[float]]) -> None:
    expected = coco.merge(coco.frPyObjects(polygons, 37, 41))["counts"].decode()
    assert masks.polygons_to_rle(polygons, 37, 41) == expected


@pytest.mark.parametrize(
    "polygons",
    [
        [],
        [[]],
        [[1, 1, 5, 5]],
        [[1, 1, 5, 5, 3]],
        [[1, 1, 5, 5, float("nan"), 3]],
        [[1, 1, 5, 5, 1e9, 3]],
        [[0, 0, 5, 0, 5, 5], [1, 1]],
    ],
)
def test_polygons_that_c_code_must_not_see(polygons: list[list[float]]) -> None:
    with pytest.raises(BadAnnotation, match=r"^object 3: "):
        masks.polygons_to_rle(polygons, 10, 10, "object 3")


def test_coco_annotations(shared_data) -> None:
    path = shared_data / "coco/instances/annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    sizes = {i["id"]: (i["height"], i["width"]) for i in content["images"]}
    shares, corners = [], []
    for found in content["annotations"]:
        height, width = sizes[found["image_id"]]
        if found["iscrowd"]:
            runs = found["segmentation"]["counts"]
            text = masks.rle_from_runs(runs, height, width)
            assert masks.rle_runs(text) == runs
            continue
        text = masks.polygons_to_rle(found["segmentation"], height, width)
        shares.append(abs(masks.rle_area(text) - found["area"]) / found["area"])
        x, y, w, h = masks.rle_bbox(text, height, width)
        corners.append(abs(np.array([x, y, x + w, y + h]) - _corners(found["bbox"])).max())
    assert len(shares) > 50
    assert float(np.median(shares)) < 0.01
    assert float(np.median(corners)) < 1  # a tail thinner than a pixel counts in the file only


def _corners(box: list[float]) -> np.ndarray:
    return np.array([box[0], box[1], box[0] + box[2], box[1] + box[3]])


# Maps


def test_objects_of_two_maps() -> None:
    objects = np.zeros((6, 8), np.uint8)
    objects[1:3, 1:4], objects[3:6, 5:8], objects[0, 0] = 2, 7, 255
    classes = np.zeros((6, 8), np.uint8)
    classes[objects == 2], classes[objects == 7], classes[objects == 255] = 15, 12, 255
    classes[5, 7] = 255  # void within an object
    classes[3, 5] = 8
    found = masks.instances_from_maps(classes, objects, VOC, border=255)
    assert [(i.id, i.category, i.bbox, i.area) for i in found] == [
        (2, 15, (1.0, 1.0, 3.0, 2.0), 6.0),
        (7, 12, (5.0, 3.0, 3.0, 3.0), 9.0),
    ]
    np.testing.assert_array_equal(masks.rle_decode(found[1].rle or "", 6, 8), objects == 7)
    assert len(masks.instances_from_maps(classes, objects, VOC)) == 3


@settings(max_examples=100, deadline=None)
@given(data=st.data(), shape=SHAPES, kind=st.sampled_from([np.uint8, np.uint16]))
def test_regions_are_those_of_each_value(data: st.DataObject, shape, kind) -> None:
    values = data.draw(st.sampled_from([(0, 1), (0, 7, 255), (3,)]))
    object_map = data.draw(arrays.arrays(kind, shape, elements=st.sampled_from(values)))
    object_map = object_map.T if data.draw(st.booleans()) else object_map
    found = Regions.of(object_map)
    assert found.numbers.tolist() == np.unique(object_map).tolist()
    for place, value in enumerate(found.numbers.tolist()):
        here = object_map == value
        assert found.rle(place) == by_coco(here)["counts"].decode()
        assert found.bbox(place) == tuple(coco.toBbox(by_coco(here)))
        assert found.areas[place] == np.count_nonzero(here)


def test_an_object_that_is_all_void_says_so() -> None:
    classes = np.full((2, 2), 255, np.uint8)
    (found,) = masks.instances_from_maps(classes, np.ones((2, 2), np.uint8), VOC)
    assert found.category == 255
    with pytest.raises(ValueError, match="differ"):
        masks.instances_from_maps(classes, np.ones((2, 3), np.uint8), VOC)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), shape=SHAPES, kind=st.sampled_from([np.uint8, np.uint16]))
def test_maps_come_back_from_their_objects(data: st.DataObject, shape, kind) -> None:
    numbers = st.sampled_from([0, 1, 2, 5, 200] if kind == np.uint8 else [0, 1, 24001, 26010])
    objects = data.draw(arrays.arrays(kind, shape, elements=numbers))
    classes = np.where(objects == 0, 0, objects % 20 + 1).astype(np.uint8)
    found = masks.instances_from_maps(classes, objects, VOC)
    back = masks.object_map_from_instances(found, *shape)
    np.testing.assert_array_equal(back, objects)
    assert back.dtype == (np.uint16 if objects.max() > 254 else np.uint8)
    np.testing.assert_array_equal(masks.paint(found, *shape, VOC, background=0), classes)
    for i in found:
        assert i.bbox == masks.rle_bbox(i.rle or "", *shape)
        assert i.area == masks.rle_area(i.rle or "")


def thing(number: int, category: int, box: tuple[int, int, int, int]) -> Instance:
    binary = np.zeros((8, 9), np.uint8)
    top, bottom, left, right = box
    binary[top:bottom, left:right] = 1
    return Instance(number, category, None, None, rle=masks.rle_encode(binary))


def test_larger_objects_are_drawn_first() -> None:
    small, large = thing(4, 3, (2, 4, 2, 4)), thing(9, 7, (0, 8, 0, 6))
    for order in ([small, large], [large, small]):
        classes = masks.paint(order, 8, 9, VOC)
        assert classes.dtype == np.uint8
        assert classes[3, 3] == 3
        assert classes[0, 0] == 7
        assert classes[0, 8] == 255
        assert masks.object_map_from_instances(order, 8, 9)[3, 3] == 4
    no_pixels = Instance(5, 3, None, 0.0, rle=masks.rle_encode(np.zeros((8, 9), np.uint8)))
    unmarked = Instance(6, 3, (0.0, 0.0, 4.0, 4.0), None)
    assert (masks.paint([no_pixels, unmarked], 8, 9, VOC) == 255).all()


@settings(max_examples=60, deadline=None)
@given(data=st.data(), shape=SHAPES)
def test_drawing_is_painting_one_by_one(data: st.DataObject, shape: tuple[int, int]) -> None:
    """Positions of any objects, parts and empty ones among them, and how many are hidden."""
    found, expected = [], np.zeros(shape, np.int64)
    for number in range(data.draw(st.integers(0, 6))):
        region = data.draw(arrays.arrays(np.bool_, shape))
        part = '{"part_of": 1}' if data.draw(st.integers(0, 4)) == 4 else None
        found.append((region, Instance(number, 1, None, None, extra=part)))
    objects = [replace(i, rle=masks.rle_encode(region)) for region, i in found]
    regions = [region for region, i in found if i.part_of is None]
    for k in sorted(range(len(regions)), key=lambda k: -int(regions[k].sum())):
        expected[regions[k]] = k + 1
    drawing = masks.Drawing.of(objects, *shape)
    assert len(drawing.objects) == len(regions)
    table = [20 + k for k in range(len(regions))]
    for dtype in (np.uint8, np.uint16):
        drawn = drawing.map(table, 7, dtype)
        assert drawn.dtype == dtype
        np.testing.assert_array_equal(drawn, np.array([7, *table])[expected])
    same = drawing.map(range(1, len(regions) + 1), 0, np.uint8)
    np.testing.assert_array_equal(same, expected)
    hidden = sum((expected[region] != k).any() for k, region in enumerate(regions, 1))
    assert drawing.covered() == hidden


def test_more_objects_than_eight_bits_are_drawn() -> None:
    binary = np.zeros((20, 15), np.bool_)
    every = []
    for at in range(300):
        binary.flat[:] = False
        binary.flat[at] = True
        every.append(Instance(at, at % 20 + 1, None, None, rle=masks.rle_encode(binary)))
    painted = masks.paint(every, 20, 15, VOC)
    assert painted.dtype == np.uint8
    np.testing.assert_array_equal(painted, np.arange(300).reshape(20, 15) % 20 + 1)


def test_object_numbers() -> None:
    boxes = [(0, 2, 0, 2), (4, 6, 4, 6)]
    repeated = [thing(7, 1, box) for box in boxes]
    assert set(np.unique(masks.object_map_from_instances(repeated, 8, 9))) == {0, 1, 2}
    long_ids = [thing(10**12 + n, 1, box) for n, box in enumerate(boxes)]
    assert set(np.unique(masks.object_map_from_instances(long_ids, 8, 9))) == {0, 1, 2}
    wide = masks.object_map_from_instances([thing(255, 1, boxes[0])], 8, 9)
    assert wide.dtype == np.uint16  # 255 is a border in 8 bits
    assert masks.object_map_from_instances([], 8, 9).dtype == np.uint8


def test_run_lengths_of_another_size_are_refused() -> None:
    with pytest.raises(BadAnnotation, match=r"a\.jpg: run lengths of 72 pixels"):
        masks.paint([thing(1, 1, (0, 2, 0, 2))], 9, 9, VOC, path="a.jpg")


def test_voc_objects(shared_data) -> None:
    root = shared_data / "voc2012/VOCdevkit/VOC2012"
    stem = "2011_003066"
    classes = masks.read_label((root / f"SegmentationClass/{stem}.png").read_bytes(), stem)
    objects = masks.read_label((root / f"SegmentationObject/{stem}.png").read_bytes(), stem)
    found = masks.instances_from_maps(classes, objects, VOC, border=255)
    assert len(found) == 19
    back = masks.object_map_from_instances(found, *objects.shape)
    np.testing.assert_array_equal(back, np.where(objects == 255, 0, objects))
    painted = masks.paint(found, *classes.shape, VOC, background=0)
    inside = (objects != 0) & (objects != 255) & (classes != 255)
    assert (painted[inside] == classes[inside]).mean() > 0.99


def test_cityscapes_instance_ids(shared_data) -> None:
    path = sorted((shared_data / "cityscapes/gtFine").glob("*/*/*instanceIds.png"))[0]
    objects = masks.read_label(path.read_bytes(), path.name)
    with Image.open(path) as image:
        np.testing.assert_array_equal(objects, np.array(image))
    classes = np.where(objects >= 1000, objects // 1000, objects).astype(np.uint8)
    found = masks.instances_from_maps(classes, objects, label_space("cityscapes-34"))
    numbers = set(np.unique(objects).tolist()) - {0}
    assert {i.id for i in found} == numbers
    assert all(i.category == (i.id // 1000 if i.id >= 1000 else i.id) for i in found)
    np.testing.assert_array_equal(masks.object_map_from_instances(found, *objects.shape), objects)


def test_blobs_as_run_lengths_and_back() -> None:
    mask = blobs(480, 640, seed=1)
    for value in np.unique(mask):
        text = masks.rle_encode(mask == value)
        assert text == by_coco(mask == value)["counts"].decode()
        np.testing.assert_array_equal(masks.rle_decode(text, 480, 640), mask == value)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_crops_as_run_lengths_and_back(data: st.DataObject) -> None:
    """A crop coded at its corner is the whole mask coded; decoding gives its tight box."""
    mask = data.draw(
        arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9))
    )
    top, left = (data.draw(st.integers(0, side - 1)) for side in mask.shape)
    bottom, right = (
        data.draw(st.integers(first + 1, side))
        for first, side in zip((top, left), mask.shape, strict=True)
    )
    mask[:top], mask[bottom:], mask[:, :left], mask[:, right:] = False, False, False, False
    text = masks.rle_encode_at(mask[top:bottom, left:right], (top, left), mask.shape)
    assert text == by_coco(mask)["counts"].decode()
    crop, (y, x) = masks.rle_crop(text, *mask.shape)
    back = np.zeros_like(mask)
    back[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
    np.testing.assert_array_equal(back, mask)
    if crop.size:
        assert all(edge.any() for edge in (crop[0], crop[-1], crop[:, 0], crop[:, -1]))
    else:
        assert not mask.any()
