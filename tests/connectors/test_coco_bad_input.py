"""COCO's instances that are bad, or laid out otherwise."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pytest

from connectors.coco import COCO_INSTANCES
from connectors.coco_categories import space_of
from pipeline.errors import BadAnnotation, InputError, LayoutError, SizeMismatch, UnsafePath
from pipeline.files import open_tree
from pipeline.label_space import label_space
from tests.connectors.coco_tree import (
    CATEGORIES,
    OFFICIAL,
    SHAPE,
    annotation,
    dataset,
    image,
    one_image,
    read_all,
    rewrite_with_facts,
)
from tests.connectors.trees import bare, contents, copy_tree, photo, put, rewrite

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"segmentation": [[1, 2, 3, 4]]}, "3 points"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "3 points"),
        ({"segmentation": [[]]}, "3 points"),
        ({"segmentation": [1, 2, 3, 4, 5, 6]}, "list of polygons"),
        ({"segmentation": [[1, 2, 3, 4, 5, "6"]]}, "list of polygons"),
        ({"segmentation": [[1, 2, 3, 4, 5, None]]}, "list of polygons"),
        ({"segmentation": [[1, 2, 3, 4, 5, float("nan")]]}, "far outside"),
        ({"segmentation": [[1, 2, 3, 4, 5, float("inf")]]}, "far outside"),
        ({"segmentation": [[1, 2, 3, 4, 5, 10**400]]}, "far outside"),
        ({"segmentation": [[1, 2, 3, 4, 5, 1e9]]}, "far outside"),
        ({"segmentation": "abc"}, "neither polygons nor"),
        ({"segmentation": 7}, "neither polygons nor"),
        ({"segmentation": {"size": [12, 16], "counts": [5, 5]}}, "10 pixels"),
        ({"segmentation": {"size": [12, 16], "counts": [-1, 193]}}, "whole numbers"),
        ({"segmentation": {"size": [12, 16], "counts": [1.5, 190.5]}}, "whole numbers"),
        ({"segmentation": {"size": [12, 16], "counts": []}}, "whole numbers"),
        ({"segmentation": {"size": [16, 12], "counts": [192]}}, "of size"),
        ({"segmentation": {"counts": [192]}}, "of size"),
        ({"segmentation": {"size": [12, 16], "counts": None}}, "counts"),
        ({"segmentation": {"size": [12, 16], "counts": "\u00e9\ud800"}}, "counts"),
        ({"segmentation": {"size": [12, 16], "counts": "zzzz"}}, "compressed text"),
        ({"segmentation": {"size": [12, 16], "counts": "00"}}, "pixels"),
        ({"category_id": 4}, "category_id 4 is not among"),
        ({"category_id": "3"}, "category_id"),
        ({"category_id": None}, "category_id"),
        ({"category_id": True}, "category_id"),
        ({"id": None}, "id is"),
        ({"id": 10**30}, "id is"),
        ({"iscrowd": 2}, "iscrowd"),
        ({"iscrowd": "0"}, "iscrowd"),
        ({"bbox": [1, 2, 3]}, "bbox"),
        ({"bbox": [1, 2, 3, "4"]}, "bbox"),
        ({"bbox": [1, 2, 3, float("nan")]}, "bbox"),
        ({"bbox": "abcd"}, "bbox"),
        ({"bbox": None, "segmentation": []}, "neither"),
        ({"area": "1"}, "area"),
        ({"area": float("inf")}, "area"),
        ({"area": 10**400}, "area"),
        ({"score": []}, "score"),
    ],
)
def test_a_bad_annotation_is_its_images_error(
    tmp_path: Path, changes: dict[str, Any], cause: str
) -> None:
    tree = one_image(tmp_path, annotation(123, 2) | changes)
    good, bad = COCO_INSTANCES.list(tree, ())
    COCO_INSTANCES.read(tree, good)
    with pytest.raises(BadAnnotation, match=cause) as caught:
        COCO_INSTANCES.read(tree, bad)
    assert "instances_train2017.json, annotation" in caught.value.path
    assert "id" in changes or "annotation 123" in caught.value.path


@pytest.mark.parametrize("key", ["id", "category_id", "segmentation+bbox"])
def test_missing_keys(tmp_path: Path, key: str) -> None:
    said = annotation(123, 2)
    for name in key.split("+"):
        del said[name]
    tree = one_image(tmp_path, said)
    good, bad = COCO_INSTANCES.list(tree, ())
    COCO_INSTANCES.read(tree, good)
    with pytest.raises(BadAnnotation):
        COCO_INSTANCES.read(tree, bad)


@pytest.mark.parametrize("key", ["area", "iscrowd", "bbox", "segmentation"])
def test_keys_that_may_be_missing(tmp_path: Path, key: str) -> None:
    said = annotation(123, 2)
    del said[key]
    one_image(tmp_path / "a", said)
    assert rewrite_with_facts(tmp_path / "a", tmp_path / "b") == [{}, {}]
    name = "annotations/instances_train2017.json"
    assert json.loads((tmp_path / "b" / name).read_text()) == json.loads(
        (tmp_path / "a" / name).read_text()
    )


def test_annotations_of_no_image_are_told(tmp_path: Path) -> None:
    lost = [annotation(1, 99), annotation(2, 99), {"id": 3}, 4]
    tree = one_image(tmp_path, *lost)
    samples = list(COCO_INSTANCES.list(tree, ()))
    assert len({s.path for s in samples}) == len(samples) == 5
    for sample in samples[:2]:
        COCO_INSTANCES.read(tree, sample)
    causes = ["without an image_id", "without an image_id", "2 annotations of image 99"]
    told = []
    for sample in samples[2:]:
        with pytest.raises(BadAnnotation, match=r"instances_train2017\.json") as caught:
            COCO_INSTANCES.read(tree, sample)
        told.append(caught.value.cause)
    assert all(any(c in t for t in told) for c in causes)


@pytest.mark.parametrize(
    "said",
    [
        7,
        {},
        image(1, "2.png"),
        image(5, None),  # type: ignore[arg-type]
        image(5, ""),
        image(5, "\ud800.png"),
        image("a", "2.png"),  # type: ignore[arg-type]
    ],
)
def test_bad_images(tmp_path: Path, said: Any) -> None:
    put(tmp_path, "train2017/1.png", photo(SHAPE))
    put(tmp_path, "train2017/3.png", photo(SHAPE))
    text = dataset([image(3, "3.png"), said, image(1, "1.png")], [])
    put(tmp_path, "annotations/instances_train2017.json", text)
    tree = open_tree(str(tmp_path))
    samples = list(COCO_INSTANCES.list(tree, ()))
    assert len(samples) == 3
    COCO_INSTANCES.read(tree, samples[0])
    with pytest.raises(BadAnnotation):
        COCO_INSTANCES.read(tree, samples[1])


@pytest.mark.parametrize("name", ["../../secret.png", "a/../../../secret.png"])
def test_file_names_that_lead_outside(tmp_path: Path, name: str) -> None:
    put(tmp_path, "secret.png", photo(SHAPE))
    tree = one_image(tmp_path / "a" / "b", file_name=name)
    good, bad = COCO_INSTANCES.list(tree, ())
    COCO_INSTANCES.read(tree, good)
    with pytest.raises(InputError) as caught:
        COCO_INSTANCES.read(tree, bad)
    assert isinstance(caught.value, UnsafePath)


@pytest.mark.parametrize("size", [{"width": 12, "height": 16}, {"width": 17}, {"height": None}])
def test_another_size(tmp_path: Path, size: dict[str, Any]) -> None:
    tree = one_image(tmp_path, **size)
    good, bad = COCO_INSTANCES.list(tree, ())
    COCO_INSTANCES.read(tree, good)
    with pytest.raises(SizeMismatch, match=r"2\.png.*16x12"):
        COCO_INSTANCES.read(tree, bad)


def test_exif_does_not_turn(tmp_path: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    data = io.BytesIO()
    Image.new("RGB", SHAPE[::-1]).save(data, "JPEG", exif=exif)
    one_image(tmp_path, file_name="2.jpg")
    put(tmp_path, "train2017/2.jpg", data.getvalue())
    record = read_all(open_tree(str(tmp_path)))[1]
    assert (record.height, record.width) == SHAPE
    (space,) = COCO_INSTANCES.label_spaces(open_tree(str(tmp_path)))
    rewrite(COCO_INSTANCES, [record], tmp_path / "b", space)
    assert (tmp_path / "b/train2017/2.jpg").read_bytes() == data.getvalue()


@pytest.mark.parametrize(
    "categories",
    [
        [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}],
        [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}],
        [{"id": 1}],
        [{"id": "1", "name": "a"}],
        [{"id": -1, "name": "a"}],
        [{"id": 65536, "name": "a"}],
        [{"id": 1, "name": None}],
        [{"id": 1, "name": "\ud83d"}],
        [1],
        {"id": 1},
    ],
)
def test_bad_categories(tmp_path: Path, categories: Any) -> None:
    put(tmp_path, "annotations/instances_train2017.json", dataset([], [], categories))
    tree = open_tree(str(tmp_path))
    with pytest.raises(LayoutError, match=r"instances_train2017\.json.*categories"):
        COCO_INSTANCES.label_spaces(tree)
    with pytest.raises(LayoutError):
        list(COCO_INSTANCES.list(tree, ()))


def test_categories_by_any_order_and_with_more_keys() -> None:
    assert space_of({"categories": OFFICIAL[::-1]}, "x") == label_space("coco-80")
    own = space_of({"categories": CATEGORIES}, "x")
    assert own is not None
    assert own.ids == (3, 700)
    assert own.ignore_index == 65535
    assert own.classes[0].isthing is None


@pytest.mark.parametrize(
    ("folder", "tail", "split"),
    [
        ("images/train2014", "train2014", "train"),
        ("val2014", "minival2014", "val"),
        ("images", "default", "train"),
        ("images/train", "train", "train"),
        ("images/val", "val2017", "val"),
        ("", "train", "train"),
    ],
)
def test_other_layouts(tmp_path: Path, folder: str, tail: str, split: str) -> None:
    (tmp_path / "images" / "else").mkdir(parents=True)
    put(tmp_path, f"{folder}/COCO_1.jpg".lstrip("/"), photo(SHAPE, ".jpg"))
    text = dataset([image(1, "COCO_1.jpg")], [annotation(5, 1)])
    put(tmp_path, f"annotations/instances_{tail}.json", text)
    (record,) = read_all(open_tree(str(tmp_path)))
    assert (record.image_id, record.split) == ("COCO_1", split)
    assert rewrite_with_facts(tmp_path, tmp_path / "b") == [{}]
    assert (tmp_path / f"b/{tail}/COCO_1.jpg").is_file()
    (again,) = read_all(open_tree(str(tmp_path / "b")))
    assert bare(again) == bare(record)


@pytest.mark.parametrize("name", ["a.JPG", "a.jpeg", "a.png", "a"])
def test_file_names_stay(tmp_path: Path, name: str) -> None:
    one_image(tmp_path / "a", file_name=name)
    put(tmp_path / "a", f"train2017/{name}", photo(SHAPE, ".jpg"))
    assert rewrite_with_facts(tmp_path / "a", tmp_path / "b") == [{}, {}]
    assert f"train2017/{name}" in contents(tmp_path / "b")


def test_a_cut_off_file_ends_the_job(shared_data: Path, tmp_path: Path) -> None:
    root = copy_tree(shared_data / "coco" / "instances", tmp_path / "a")
    file = root / "annotations/instances_train2017.json"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(LayoutError, match=r"instances_train2017\.json: byte \d+.*cut off"):
        list(COCO_INSTANCES.list(open_tree(str(root)), ()))
