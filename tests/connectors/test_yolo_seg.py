"""YOLO: the conformance suite, polygons judged by OpenCV, losses counted, bad input."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from connectors.yolo_seg import YOLO_SEG
from connectors.yolo_seg_polygons import join
from pipeline import masks
from pipeline.errors import InputError, LayoutError
from pipeline.files import open_tree
from pipeline.label_space import label_space
from pipeline.record import Instance
from tests.connectors.conformance import Conformance, Made
from tests.connectors.trees import make_record, photo, put, rewrite

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.record import Record

SHAPE = (10, 20)
NAMES = ["cat", "a b", "é"]


def line(index: int, points: list[tuple[int, int]]) -> str:
    """An outline through the middles of pixels."""
    return f"{index} " + " ".join(
        f"{(x + 0.5) / SHAPE[1]:.6f} {(y + 0.5) / SHAPE[0]:.6f}" for x, y in points
    )


def box(left: int, top: int, right: int, bottom: int) -> list[tuple[int, int]]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def drawn(text: str, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """The pixels of a line as Ultralytics draws them: cut to whole pixels, filled by OpenCV."""
    values = np.array(text.split()[1:], np.float32).reshape(-1, 2)
    canvas = np.zeros(shape, np.uint8)
    cv2.fillPoly(canvas, [(values * np.array(shape[::-1], np.float32)).astype(np.int32)], 1)
    return canvas


class TestYoloSeg(Conformance):
    connector = YOLO_SEG
    own_classes = True
    carries_masks = False
    exact = False

    def make_tree(self, root: Path) -> Made:
        said = {
            "path": "../datasets/source", "train": ["images/train"], "val": "images/val",
            "test": "images/test", "nc": 3, "names": dict(enumerate(NAMES)),
        }  # fmt: skip
        put(root, "data.yaml", yaml.safe_dump(said, allow_unicode=True))
        first = [line(0, box(2, 2, 8, 7)), line(2, box(3, 4, 5, 5)), "1 0.5 0.5 0.25 0.5"]
        put(root, "labels/train/a/b.txt", "\n".join(first) + "\n")
        put(root, "labels/train/c.txt", line(0, box(4, 0, 9, 9)) + "\n")
        put(root, "labels/test/e.txt", "")
        put(root, "labels/val/d.txt", line(1, [(0, 0), (19, 0), (19, 9)]))
        for name in ("train/a/b", "train/c", "val/d", "test/e"):
            put(root, f"images/{name}.png", photo(SHAPE))
        one = np.full(SHAPE, 255, np.uint8)
        one[2:8, 2:9], one[4:6, 3:6] = 0, 2
        two = np.full(SHAPE, 255, np.uint8)
        cv2.fillPoly(two, [np.array([(0, 0), (19, 0), (19, 9)], np.int32)], 1)
        three = np.full(SHAPE, 255, np.uint8)
        three[:, 4:10] = 0
        ids: dict[str, NDArray[Any]] = {
            "train/a/b": one,
            "train/c": three,
            "val/d": two,
            "test/e": np.empty(0),
        }
        splits = {"train": ["a/b", "c"], "val": ["d"], "test": ["e"]}
        same = ("labels/train/a/b.txt", "labels/train/c.txt")
        return Made(splits, ids, "a/b", "images/train/a/b.png", same_files=same)

    def test_boxes_have_no_pixels(self, root: Path, made: Made) -> None:
        first = self.records(open_tree(str(root)))[0]
        assert [(i.category, bool(i.rle)) for i in first.instances or ()] == [
            (0, True), (2, True), (1, False),
        ]  # fmt: skip
        assert (first.instances or ())[2].bbox == (7.5, 2.5, 5, 5)


def read_all(root: Path) -> list[Record]:
    tree = open_tree(str(root))
    return [YOLO_SEG.read(tree, sample) for sample in YOLO_SEG.list(tree, ())]


# Writing


def with_objects(*regions: NDArray[Any], categories: tuple[int, ...] = (1, 2, 3)) -> Record:
    space = label_space("voc-21")
    blank = make_record(np.zeros(regions[0].shape, np.uint8), space, "x", "train")
    objects = tuple(
        Instance(n, c, None, None, rle=masks.rle_encode(r))
        for n, (c, r) in enumerate(zip(categories, regions, strict=False), 1)
    )
    return replace(blank, mask=None, classes=None, instances=objects)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_piece_without_holes_comes_back_to_the_pixel(data: st.DataObject) -> None:
    """And what holes and joints change is counted to the pixel."""
    import tempfile
    from pathlib import Path

    shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)
    region = data.draw(hnp.arrays(np.bool_, shapes))
    record = with_objects(region)
    with tempfile.TemporaryDirectory() as folder:
        (written,) = rewrite(YOLO_SEG, [record], Path(folder), label_space("voc-21"))
        text = (Path(folder) / "labels/train/x.txt").read_text()
        (back,) = read_all(Path(folder))
    judged = drawn(text, region.shape) if text else np.zeros(region.shape, np.uint8)
    read = np.zeros(region.shape, np.uint8)
    for instance in back.instances or ():
        read |= masks.rle_decode(instance.rle or "", *region.shape)
    np.testing.assert_array_equal(read, judged)
    loss = dict(written.loss)
    pieces, _, _, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8), connectivity=8)
    assert loss.pop("pixels_changed_by_polygons", 0) == (judged != region).sum()
    assert loss.pop("objects_joined_from_parts", 0) == (pieces > 2)
    assert loss.pop("objects_of_no_place", 0) == (pieces == 1)
    around = cv2.connectedComponents(
        np.pad(~region, 1, constant_values=True).astype(np.uint8), connectivity=4
    )
    assert loss.pop("holes", 0) == around[0] - 2
    assert not loss
    if pieces == 2 and around[0] == 2:
        np.testing.assert_array_equal(judged, region)


def test_joined_parts_touch_where_they_are_nearest() -> None:
    parts = [np.array(box(0, 0, 3, 3)), np.array(box(6, 1, 8, 8)), np.array(box(20, 2, 22, 4))]
    joined = join(parts)
    corners = {tuple(p) for p in joined.tolist()}
    assert corners == {tuple(p) for part in parts for p in part.tolist()}
    steps = np.abs(np.diff(joined, axis=0)).sum(axis=1)
    assert steps.max() == 13  # from (8, 1) or (8, 8) to (20, 2): no longer way between parts
    np.testing.assert_array_equal(joined[0], joined[-1])
    canvas, apart = np.zeros((2, 10, 30), np.uint8)
    cv2.fillPoly(canvas, [joined.astype(np.int32)], 1)
    for part in parts:
        cv2.fillPoly(apart, [part.astype(np.int32)], 1)
    assert (canvas >= apart).all()
    assert canvas.sum() - apart.sum() < 2 + 12 + 2


def test_regions_of_a_mask_are_lines_of_their_pieces(tmp_path: Path) -> None:
    """Larger ones lie below smaller ones, so that holes which show another class are kept."""
    space = label_space("camvid-11")
    ids = np.full(SHAPE, 3, np.uint8)
    ids[2:8, 3:9], ids[4:6, 5:7], ids[2:4, 12:18] = 8, 9, 11
    (written,) = rewrite(YOLO_SEG, [make_record(ids, space, "x", "val")], tmp_path, space)
    assert written.loss == {
        "objects_from_mask_regions": 3, "holes": 3, "pixels_changed_by_polygons": 12,
    }  # fmt: skip
    (back,) = read_all(tmp_path)
    ids[2:4, 12:18] = 3
    np.testing.assert_array_equal(masks.decode((back.mask and back.mask.bytes) or b""), ids)
    said = yaml.safe_load((tmp_path / "data.yaml").read_text())
    assert said["train"] == said["val"] == "images/val"
    assert list(said["names"].values()) == [c.name for c in space.classes if not c.void]


def test_names_tell_classes_without_a_table(tmp_path: Path) -> None:
    region = np.zeros(SHAPE, np.uint8)
    region[2:5, 2:9] = 1
    rewrite(YOLO_SEG, [with_objects(region)], tmp_path, label_space("voc-21"))
    (tmp_path / "classes.tsv").unlink()
    (space,) = YOLO_SEG.label_spaces(open_tree(str(tmp_path)))
    (back,) = read_all(tmp_path)
    (found,) = back.instances or ()
    assert space.by_id[found.category].name == "aeroplane"


# Other layouts


@pytest.mark.parametrize("layout", ["roboflow", "lists", "bare"])
def test_other_layouts_are_found(tmp_path: Path, layout: str) -> None:
    said: dict[str, Any] = {"names": NAMES}
    if layout == "roboflow":
        said |= {"train": "../train/images", "val": "../valid/images"}
        places = {"train/images/a": "train/labels/a", "valid/images/b": "valid/labels/b"}
    elif layout == "lists":
        said |= {"path": "../x", "train": "train.txt", "val": "val.txt"}
        put(tmp_path, "train.txt", "./images/train2017/a.png\n")
        put(tmp_path, "val.txt", "images/b.png\n")
        places = {"images/train2017/a": "labels/train2017/a", "images/b": "labels/b"}
    else:
        said |= {"train": "images", "val": "images"}
        places = {"images/a": "labels/a", "images/b": "labels/b"}
    put(tmp_path, "data.yaml", yaml.safe_dump(said))
    for image, label in places.items():
        put(tmp_path, f"{image}.png", photo(SHAPE))
        put(tmp_path, f"{label}.txt", line(1, box(1, 1, 4, 4)))
    records = read_all(tmp_path)
    assert [len(r.instances or ()) for r in records] == [1, 1]
    wanted = ["train", "train"] if layout == "bare" else ["train", "val"]
    assert [r.split for r in records] == wanted


# Bad input


GOOD = line(0, box(1, 1, 4, 4))


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("0 0.1 0.1 0.2 0.2 0.3", "5 numbers"),
        ("0 0.1 0.1", "2 numbers"),
        ("0", "0 numbers"),
        ("3 0.1 0.1 0.2 0.1 0.2 0.2", "from 0 to 2"),
        ("-1 0.1 0.1 0.2 0.1 0.2 0.2", "from 0 to 2"),
        ("0.5 0.1 0.1 0.2 0.1 0.2 0.2", "from 0 to 2"),
        ("cat 0.1 0.1 0.2 0.1 0.2 0.2", "from 0 to 2"),
        ("nan 0.1 0.1 0.2 0.1 0.2 0.2", "from 0 to 2"),
        ("0 0.1 0.1 0.2 0.1 0.2 1.2", "outside the image"),
        ("0 0.1 0.1 0.2 0.1 0.2 -3", "outside the image"),
        ("0 0.1 0.1 0.2 0.1 0.2 nan", "outside the image"),
        ("0 0.1 0.1 0.2 0.1 0.2 x", "no number"),
        ("0 100 100 200 100 200 200", "outside the image"),
        ("\0\0\0", "from 0 to 2"),
    ],
)
def test_a_bad_line_is_its_image_s_error(tmp_path: Path, text: str, cause: str) -> None:
    said = {"train": "images/train", "val": "images/train", "names": NAMES}
    put(tmp_path, "data.yaml", yaml.safe_dump(said))
    for name, label in (("a", GOOD), ("b", f"{GOOD}\n{text}\n")):
        put(tmp_path, f"images/train/{name}.png", photo(SHAPE))
        put(tmp_path, f"labels/train/{name}.txt", label)
    tree = open_tree(str(tmp_path))
    first, second = YOLO_SEG.list(tree, ())
    assert YOLO_SEG.read(tree, first).instances
    with pytest.raises(InputError, match=cause) as caught:
        YOLO_SEG.read(tree, second)
    assert "b.txt, line 2" in caught.value.path


def test_lists_with_names_that_do_not_fit(tmp_path: Path) -> None:
    put(tmp_path, "secret.png", photo(SHAPE))
    put(tmp_path, "set/data.yaml", yaml.safe_dump({"train": "train.txt", "names": NAMES}))
    lines = ["images/a.png", "../secret.png", "images/gone.png", "images/a.png"]
    put(tmp_path, "set/train.txt", "\n".join(lines))
    put(tmp_path, "set/images/a.png", photo(SHAPE))
    put(tmp_path, "set/labels/a.txt", GOOD)
    tree = open_tree(str(tmp_path / "set"))
    first, *others = YOLO_SEG.list(tree, ())
    assert YOLO_SEG.read(tree, first).instances
    assert len(others) == 3
    for sample, cause in zip(others, ("outside", "no such file", "second line"), strict=True):
        with pytest.raises(InputError, match=cause):
            YOLO_SEG.read(tree, sample)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("names: [a\n", "not YAML"),
        ("names: {1: a}\n", "by index from 0"),
        ("names: [1, 2]\n", "list of texts"),
        ("names: [a, a]\n", "the same"),
        ("train: images/train\n", "names"),
        ("a: &a [x,x]\nb: &b [*a,*a]\nnames: [*b, *b]\n", "list of texts"),
        ("!!python/object/apply:os.system ['true']\n", "not YAML"),
        ("names: [a]\ntrain: gone/images\n", "is not below it"),
        ("names: [a]\ntrain: /etc\n", "is not below it"),
        ("names: [a]\ntrain: [[x, y]]\n", "train is no list of texts"),
    ],
)
def test_descriptions_that_are_refused(tmp_path: Path, text: str, cause: str) -> None:
    put(tmp_path, "data.yaml", text)
    put(tmp_path, "images/train/a.png", photo(SHAPE))
    with pytest.raises(LayoutError, match=cause):
        read_all(tmp_path)
