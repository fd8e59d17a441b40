"""COCO panoptic: the conformance suite, the real files, and bad ones."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from connectors.coco_panoptic import COCO_PANOPTIC
from connectors.panoptic_pixels import read_ids, write_ids
from pipeline import masks
from pipeline.errors import BadAnnotation, CorruptMask, LayoutError, MissingFile, SizeMismatch
from pipeline.files import open_sink, open_tree
from tests.connectors.conformance import Conformance, Made
from tests.connectors.panoptic_tree import (
    FILES,
    SHAPE,
    SPACE,
    convert,
    drawn_classes,
    judge,
    panoptic_json,
    put_split,
    read_all,
    rgb,
    rgb2id,
    segment_map,
)
from tests.connectors.trees import bare, contents, copy_tree, make_record, put, rewrite

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.record import Record

    pass


class TestCocoPanoptic(Conformance):
    connector = COCO_PANOPTIC
    fills_void = True
    stray_error = BadAnnotation

    def make_tree(self, root: Path) -> Made:
        ids = {}
        for split, names in FILES.items():
            maps = {name: segment_map(int(name)) for name in names}
            put_split(root, split, maps)
            for name, (numbers, categories) in maps.items():
                found = np.full(SHAPE, 255, np.uint8)
                for number, category in categories.items():
                    found[numbers == number] = category
                ids[f"{split}/{name}"] = found
        name = "000000000139"
        image, mask = f"images/val2017/{name}.png", f"annotations/panoptic_val2017/{name}.png"
        return Made(FILES, ids, name, image, mask)

    def spoil(self, mask: Path) -> None:
        Image.new("RGB", SHAPE[::-1], (1, 2, 3)).save(mask)


# Real files


def test_real_segments_come_back(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "coco" / "panoptic"
    records = convert(source, tmp_path)
    assert {r.label_space for r in records} == {"coco-panoptic-133"}
    assert sum(i.iscrowd for r in records for i in r.instances or ()) == 3
    before = json.loads((source / "panoptic_examples.json").read_text())
    after = json.loads((tmp_path / "annotations/panoptic_train2017.json").read_text())
    isthing = {c["id"]: c["isthing"] for c in before["categories"]}
    for record, annotation in zip(records, before["annotations"], strict=True):
        things = [i["id"] for i in annotation["segments_info"] if isthing[i["category_id"]]]
        assert [i.id for i in record.instances or ()] == things
    for one in (before, after):
        for element in (*one["images"], *one["annotations"]):
            element.pop("file_name")
    assert after == before
    for png in (source / "panoptic_examples").glob("*.png"):
        again = tmp_path / "annotations/panoptic_train2017" / png.name
        np.testing.assert_array_equal(rgb2id(again), rgb2id(png))
    assert len(judge(tmp_path)) == 2
    assert [bare(r) for r in read_all(tmp_path)] == [bare(r) for r in records]


def test_real_segments_made_anew(shared_data: Path, tmp_path: Path) -> None:
    """From mask and objects alone, as another format would give them."""
    records = read_all(shared_data / "coco" / "panoptic")
    bare_ones = [replace(r, dataset="elsewhere", extra=None) for r in records]
    written = rewrite(COCO_PANOPTIC, bare_ones, tmp_path, SPACE)
    assert all(w.loss == {} for w in written)
    judge(tmp_path)
    for one, two in zip(records, read_all(tmp_path), strict=True):
        assert one.mask is not None
        assert two.mask is not None
        assert one.mask.bytes == two.mask.bytes
        assert objects(one) == objects(two)


def objects(record: Record) -> set[tuple[Any, ...]]:
    return {(i.category, i.rle, i.area, i.bbox, i.iscrowd) for i in record.instances or ()}


@pytest.mark.parametrize("folder", ["coco", "coco_panoptic"])
def test_third_party_files(shared_data: Path, tmp_path: Path, folder: str) -> None:
    source = copy_tree(shared_data / "coco/fixture_datumaro" / folder, tmp_path / "source")
    tree = open_tree(str(source))
    train, val = COCO_PANOPTIC.list(tree, ())
    assert (train.split, val.split) == ("train", "val")
    record = COCO_PANOPTIC.read(tree, val)
    assert {(c.id, c.pixels) for c in record.classes or ()} == {(1, 20), (2, 20), (255, 10)}
    if folder == "coco_panoptic":
        with pytest.raises(SizeMismatch, match="5x5 pixels, its image 10x5"):
            COCO_PANOPTIC.read(tree, train)
        return
    convert(source, tmp_path / "target")
    judge(tmp_path / "target", exact=False)
    assert [bare(r) for r in read_all(tmp_path / "target")] == [bare(r) for r in read_all(source)]


# Numbers of images


def test_images_get_free_numbers_where_theirs_are_taken(tmp_path: Path) -> None:
    names = ["000000000002", "2", "street", "1", "other", "3" * 25]
    records = [make_record(np.ones(SHAPE, "u1"), SPACE, name, "train") for name in names]
    sink_loss = rewrite(COCO_PANOPTIC, records, tmp_path, SPACE)
    assert all(w.loss == {"things_not_separated": 1} for w in sink_loss)
    said = json.loads((tmp_path / "annotations/panoptic_train2017.json").read_text())
    assert [image["id"] for image in said["images"]] == [2, 3, 4, 1, 5, 6]
    assert [a["image_id"] for a in said["annotations"]] == [2, 3, 4, 1, 5, 6]


# Bad files


def damaged(root: Path, **changes: Any) -> Path:
    """Write a dataset of two images, of which the first one's annotation is changed."""
    maps = {name: segment_map(int(name)) for name in FILES["train"]}
    put_split(root, "train", maps)
    file = root / "annotations/panoptic_train2017.json"
    said = json.loads(file.read_text())
    first = said["annotations"][0]
    for key, value in changes.items():
        if key in first:
            first[key] = value
        elif key == "drop":
            first["segments_info"] = first["segments_info"][1:]
        elif key == "add":
            first["segments_info"] = [*first["segments_info"], value]
        else:
            first["segments_info"][0] |= {key: value}
    file.write_text(json.dumps(said))
    return root


def check_first_fails(root: Path, error: type[Exception], match: str) -> None:
    tree = open_tree(str(root))
    bad, good = COCO_PANOPTIC.list(tree, ())
    with pytest.raises(error, match=match):
        COCO_PANOPTIC.read(tree, bad)
    COCO_PANOPTIC.read(tree, good)


GHOST = {"id": 12345, "category_id": 1, "iscrowd": 0}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"drop": 1}, "segments 3937500 are in the PNG but not in segments_info"),
        ({"add": GHOST}, "segments 12345 are in segments_info but not in the PNG"),
        ({"add": GHOST | {"id": 7}}, "segment 7 is listed twice"),
        ({"add": 7}, "a segment is no object"),
        ({"segments_info": None}, "segments_info is no list"),
        ({"segments_info": {}}, "segments_info is no list"),
        ({"category_id": 12}, "category '12', which no class has"),
        ({"category_id": 255}, "category '255', which no class has"),
        ({"category_id": -1}, "which no class has"),
        ({"category_id": 10**30}, "which no class has"),
        ({"category_id": "1"}, "which no class has"),
        ({"category_id": True}, "which no class has"),
        ({"id": 0}, "no whole number in 1..16777215"),
        ({"id": 1 << 24}, "no whole number in 1..16777215"),
        ({"id": -3}, "no whole number in 1..16777215"),
        ({"id": 7.0}, "no whole number in 1..16777215"),
        ({"id": None}, "no whole number in 1..16777215"),
        ({"iscrowd": 2}, "iscrowd of segment 3937500 is not 0 or 1"),
        ({"iscrowd": [1]}, "iscrowd of segment 3937500 is not 0 or 1"),
        ({"bbox": [1, 2, 3]}, "bbox or area of segment 3937500 are no numbers"),
        ({"bbox": [1, 2, 3, None]}, "bbox or area of segment 3937500 are no numbers"),
        ({"bbox": "box"}, "bbox or area of segment 3937500 are no numbers"),
        ({"area": 10**400}, "bbox or area of segment 3937500 are no numbers"),
        ({"area": float("nan")}, "bbox or area of segment 3937500 are no numbers"),
        ({"file_name": None}, "an annotation without the file_name of its PNG"),
    ],
)
def test_annotations_that_contradict_their_pixels(
    tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    check_first_fails(damaged(tmp_path, **changes), BadAnnotation, match)


def test_png_named_outside_the_dataset(tmp_path: Path) -> None:
    root = tmp_path / "set"
    put(tmp_path, "secret.png", rgb(segment_map(9)[0]))
    damaged(root, file_name="../../../secret.png")
    check_first_fails(root, ValueError, "leads outside")


def test_stored_area_and_box_need_not_be_those_of_the_pixels(tmp_path: Path) -> None:
    damaged(tmp_path / "a", area=3.5, bbox=[0, 0.5, 2, 3], note="hand-made")
    convert(tmp_path / "a", tmp_path / "b")
    said = json.loads((tmp_path / "b/annotations/panoptic_train2017.json").read_text())
    info = said["annotations"][0]["segments_info"][0]
    assert info == {
        "id": 3937500,
        "category_id": 1,
        "iscrowd": 0,
        "area": 3.5,
        "bbox": [0, 0.5, 2, 3],
        "note": "hand-made",
    }


def test_two_segments_of_a_stuff_class_stay_two(tmp_path: Path) -> None:
    ids = np.zeros(SHAPE, np.int64)
    ids[:4], ids[8:] = 5, 300
    put_split(tmp_path / "a", "train", {"000000000001": (ids, {5: 187, 300: 187})})
    (record,) = convert(tmp_path / "a", tmp_path / "b")
    assert record.instances == ()
    (annotation,) = judge(tmp_path / "b", exact=False)
    assert [info["id"] for info in annotation["segments_info"]] == [5, 300]
    again = rgb2id(tmp_path / "b/annotations/panoptic_train2017/000000000001.png")
    np.testing.assert_array_equal(again, ids)


def test_own_records_with_other_labels_get_other_segments(tmp_path: Path) -> None:
    put_split(tmp_path / "a", "train", {"000000000001": segment_map(1)})
    (record,) = read_all(tmp_path / "a")
    assert record.mask is not None
    ids = masks.decode(record.mask.bytes or b"")
    more = ids.copy()
    more[:, -1] = 92
    for n, changed in enumerate(
        [
            replace(record, mask=make_record(np.full(SHAPE, 187, "u1"), SPACE, "x", "train").mask),
            replace(record, mask=make_record(more, SPACE, "x", "train").mask),
            replace(record, instances=(record.instances or ())[1:]),
        ]
    ):
        rewrite(COCO_PANOPTIC, [changed], tmp_path / str(n), SPACE)
        (annotation,) = judge(tmp_path / str(n))
        assert changed.mask is not None
        expected = masks.decode(changed.mask.bytes or b"")
        found = drawn_classes(tmp_path / str(n), annotation, "train2017", 255)
        np.testing.assert_array_equal(found[expected != 255], expected[expected != 255])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA"])
def test_png_that_is_not_rgb(tmp_path: Path, mode: str) -> None:
    damaged(tmp_path)
    png = tmp_path / "annotations/panoptic_train2017/000000000009.png"
    with Image.open(png) as image:
        image.convert(mode).save(png)
    check_first_fails(tmp_path, CorruptMask, "holds no segment ids")


def test_annotation_of_an_image_that_is_not_there(tmp_path: Path) -> None:
    damaged(tmp_path, image_id=77)
    tree = open_tree(str(tmp_path))
    unlabelled, good, stray = COCO_PANOPTIC.list(tree, ())
    assert COCO_PANOPTIC.read(tree, unlabelled).mask is None
    assert COCO_PANOPTIC.read(tree, good).mask is not None
    with pytest.raises(BadAnnotation, match="image 77, which is not among the images"):
        COCO_PANOPTIC.read(tree, stray)


@pytest.mark.parametrize(
    ("images", "annotations", "match"),
    [
        ([7], [], "an image that is no object"),
        ([{"id": "7", "file_name": "a.png"}], [], "whose id is no whole number"),
        ([{"id": 7}], [], "an image without a file_name"),
        ([{"id": 7, "file_name": ["a"]}], [], "an image without a file_name"),
        ([{"id": 7, "file_name": "\ud800"}], [], "an image without a file_name"),
        (
            [{"id": 7, "file_name": "a.png"}],
            [{"image_id": 7, "file_name": "a.png"}] * 2,
            "2 annotations of one image",
        ),
    ],
)
def test_images_that_are_none(
    tmp_path: Path, images: list[Any], annotations: list[Any], match: str
) -> None:
    put(tmp_path, "annotations/panoptic_val2017.json", panoptic_json(images, annotations))
    tree = open_tree(str(tmp_path))
    (sample,) = COCO_PANOPTIC.list(tree, ())
    with pytest.raises(BadAnnotation, match=match):
        COCO_PANOPTIC.read(tree, sample)


@pytest.mark.parametrize("keep", [0, 0.3, 0.99])
def test_json_that_is_cut_off(tmp_path: Path, keep: float) -> None:
    damaged(tmp_path)
    file = tmp_path / "annotations/panoptic_train2017.json"
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(LayoutError, match=r"panoptic_train2017\.json: byte"):
        list(COCO_PANOPTIC.list(open_tree(str(tmp_path)), ()))


@pytest.mark.parametrize(
    "categories",
    [
        None,
        [1],
        [{"id": 1}],
        [{"id": "1", "name": "a"}],
        [{"id": 70_000, "name": "a"}],
        [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}],
    ],
)
def test_categories_that_are_malformed(tmp_path: Path, categories: Any) -> None:
    put(tmp_path, "annotations/panoptic_val2017.json", panoptic_json([], [], categories))
    with pytest.raises(LayoutError, match="categories are"):
        list(COCO_PANOPTIC.list(open_tree(str(tmp_path)), ()))


def test_images_are_found_beside_the_annotations(tmp_path: Path) -> None:
    damaged(tmp_path)
    (tmp_path / "images/train2017").rename(tmp_path / "train2017")
    assert len(read_all(tmp_path)) == 2
    (tmp_path / "train2017").rename(tmp_path / "images/train")
    assert len(read_all(tmp_path)) == 2


def test_images_of_a_part_of_a_split(tmp_path: Path) -> None:
    damaged(tmp_path)
    (tmp_path / "images/train2017").rename(tmp_path / "test2017")
    folder = tmp_path / "annotations"
    for suffix in ("", ".json"):
        (folder / f"panoptic_train2017{suffix}").rename(folder / f"panoptic_test-dev2017{suffix}")
    assert [r.split for r in read_all(tmp_path)] == ["test", "test"]


def test_changed_numbers_are_counted(tmp_path: Path) -> None:
    put_split(tmp_path / "a", "train", {"000000000001": segment_map(1)})
    (record,) = read_all(tmp_path / "a")
    twice = [record, replace(record, image_id="again")]
    sink = open_sink(str(tmp_path / "b"))
    written = [COCO_PANOPTIC.write(sink, one, SPACE) for one in twice]
    loss = COCO_PANOPTIC.finish(sink, written, SPACE, {})
    assert loss is not None
    assert loss.attributes == {"image_ids": 1}
    assert {annotation["image_id"] for annotation in judge(tmp_path / "b")} == {1, 2}


def test_pngs_keep_24_bits(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 256], [65536, (1 << 24) - 1, 77]], np.uint32)
    np.testing.assert_array_equal(read_ids(rgb(ids), "a.png"), ids)
    put(tmp_path, "a.png", write_ids(ids))
    np.testing.assert_array_equal(rgb2id(tmp_path / "a.png"), ids)


def test_facts_come_back(tmp_path: Path) -> None:
    damaged(tmp_path / "a")
    put_split(tmp_path / "a", "val", {"000000000001": segment_map(1)})
    convert(tmp_path / "a", tmp_path / "b")
    facts = COCO_PANOPTIC.facts(open_tree(str(tmp_path / "a")))
    assert facts["val"]["info"] == {"year": 2017, "description": "é"}
    assert COCO_PANOPTIC.facts(open_tree(str(tmp_path / "b"))) == facts
    names = sorted(n for n in contents(tmp_path / "b") if n.endswith(".json"))
    assert names == ["annotations/panoptic_train2017.json", "annotations/panoptic_val2017.json"]


def test_missing_folder_of_pngs(tmp_path: Path) -> None:
    damaged(tmp_path)
    (tmp_path / "annotations/panoptic_train2017").rename(tmp_path / "elsewhere")
    tree = open_tree(str(tmp_path))
    for sample in COCO_PANOPTIC.list(tree, ()):
        with pytest.raises(MissingFile, match="panoptic_train2017/0000000000"):
            COCO_PANOPTIC.read(tree, sample)


@pytest.mark.parametrize(
    "extra",
    [
        {"panoptic": 7, "image": 7},
        {"panoptic": {}},
        {"panoptic": {"segments": [7, {"id": 1}], "annotation": 7}},
        {"panoptic": {"segments": [{"id": "x", "category_id": 187}]}},
        {"panoptic": {"segments": None}, "image": {"id": "7"}},
    ],
)
def test_extras_that_another_program_changed(tmp_path: Path, extra: dict[str, Any]) -> None:
    put_split(tmp_path / "a", "train", {"000000000001": segment_map(1)})
    (record,) = read_all(tmp_path / "a")
    changed = replace(record, extra=json.dumps(extra))
    rewrite(COCO_PANOPTIC, [changed], tmp_path / "b", SPACE)
    (annotation,) = judge(tmp_path / "b")
    assert annotation["image_id"] == 1
    (back,) = read_all(tmp_path / "b")
    assert bare(back).mask == bare(record).mask
