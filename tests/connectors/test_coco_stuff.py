"""COCO-Stuff: the conformance suite on maps and on JSON, pycocotools, and the real files."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO

from connectors.coco_stuff import COCO_STUFF
from pipeline import masks
from pipeline.errors import BadAnnotation, LabelOutOfRange, LayoutError, MissingFile, UsageError
from pipeline.files import open_tree
from pipeline.label_space import LabelClass, LabelSpace, label_space
from pipeline.record import Instance, Record
from tests.connectors.conformance import Conformance, Made
from tests.connectors.trees import (
    bare,
    copy_tree,
    grey,
    make_record,
    photo,
    put,
    random_ids,
    rewrite,
)

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

# pycocotools' own Cython, on NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SPACE = label_space("coco-stuff")
SHAPE = (12, 16)
CLASSES = [1, 16, 90, 92, 157, 182, 255]
FILES = {
    "train": ["000000000009", "000000000025"],
    "val": ["000000000139"],
    "test": ["000000000001"],
}
CATEGORIES = [{"supercategory": "", "id": i, "name": SPACE.by_id[i].name} for i in range(92, 184)]


def made_ids() -> dict[str, NDArray[np.uint8]]:
    return {
        f"{split}/{name}": random_ids(CLASSES, SHAPE, int(name))
        for split, names in FILES.items()
        for name in names
    }


class TestMaps(Conformance):
    """Maps alone, in the layout of the releases."""

    connector = COCO_STUFF
    images, maps = "images/{}2017", "stuffthingmaps/{}2017"

    def spoil(self, mask: Path) -> None:
        Image.new("L", SHAPE[::-1], 254).save(mask)

    def make_tree(self, root: Path) -> Made:
        ids = made_ids()
        for key, values in ids.items():
            split, name = key.split("/")
            put(root, f"{self.images.format(split)}/{name}.png", photo(SHAPE))
            stored = np.where(values == 255, 255, values.astype(int) - 1)
            put(root, f"{self.maps.format(split)}/{name}.png", grey(stored))
        name = "000000000025"
        image = f"{self.images.format('train')}/{name}.png"
        return Made(FILES, ids, name, image, f"{self.maps.format('train')}/{name}.png")


class TestMapsBesideAnnotations(TestMaps):
    """Where COCO-Stuff's own instructions unpack them."""

    images, maps = "images/{}2017", "annotations/{}2017"


class TestMapsOfOneFolderEach(TestMaps):
    """The layout of SPADE and pix2pix tools."""

    images, maps = "{}_img", "{}_label"


def stuff_json(ids: dict[str, NDArray[np.uint8]], numbers: int = 10_000_000) -> str:
    """Write masks of stuff as pycocotools codes them."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for name, values in ids.items():
        size = {"height": values.shape[0], "width": values.shape[1]}
        images.append({"license": 5, "file_name": f"{name}.png", "id": int(name)} | size)
        for category in np.unique(values[values != 255]).tolist():
            rle = coco.encode(np.asfortranarray(values == category).astype(np.uint8))
            annotations.append(
                {
                    "segmentation": rle | {"counts": rle["counts"].decode()},
                    "area": float(coco.area(rle)),
                    "iscrowd": 0,
                    "image_id": int(name),
                    "bbox": coco.toBbox(rle).tolist(),
                    "category_id": category,
                    "id": numbers + len(annotations),
                }
            )
    said = {"info": {"year": 2017}, "images": images, "licenses": [{"id": 5}]}
    return json.dumps(said | {"categories": CATEGORIES, "annotations": annotations})


class TestJson(Conformance):
    """The JSON alone."""

    connector = COCO_STUFF

    def make_tree(self, root: Path) -> Made:
        ids = {
            key: random_ids([92, 97, 157, 183, 255], SHAPE, n) for n, key in enumerate(made_ids())
        }
        for split, names in FILES.items():
            for name in names:
                put(root, f"{split}2017/{name}.png", photo(SHAPE))
            text = stuff_json({name: ids[f"{split}/{name}"] for name in names})
            put(root, f"annotations/stuff_{split}2017.json", text)
        return Made(FILES, ids, "000000000025", "train2017/000000000025.png")


class TestJsonBesideMaps(TestMaps):
    """Both: the map is the mask, and the JSON's ids come back."""

    def make_tree(self, root: Path) -> Made:
        made = super().make_tree(root)
        for split, names in FILES.items():
            ids = {n: made.ids[f"{split}/{n}"].copy() for n in names}
            for values in ids.values():
                values[values < 92] = 183
            put(root, f"annotations/stuff_{split}2017.json", stuff_json(ids))
        return made


def read_all(root: Path) -> list[Record]:
    tree = open_tree(str(root))
    return [COCO_STUFF.read(tree, sample) for sample in COCO_STUFF.list(tree, ())]


def pixels(record: Record) -> NDArray[Any]:
    assert record.mask is not None
    return masks.decode(record.mask.bytes or b"")


def convert(source: Path, target: Path) -> list[Record]:
    """Read a dataset and write it, with what it says of itself; nothing may be lost."""
    tree = open_tree(str(source))
    (space,) = COCO_STUFF.label_spaces(tree)
    records = read_all(source)
    written = rewrite(COCO_STUFF, records, target, space, facts=COCO_STUFF.facts(tree))
    assert all(w.loss == {} for w in written)
    again = read_all(target)
    assert [bare(r) for r in again] == [bare(r) for r in records]
    assert COCO_STUFF.label_spaces(open_tree(str(target))) == (space,)
    return records


def judge(root: Path, tag: str) -> int:
    """Check by pycocotools that the JSON says what the maps do; return how many images."""
    file = root / f"annotations/stuff_{tag}.json"
    api = COCO(str(file))
    for image_id, image in api.imgs.items():
        assert (root / tag / image["file_name"]).is_file()
        with Image.open(root / f"stuffthingmaps/{tag}/{image_id:012}.png") as label:
            assert label.mode == "L"
            values = np.array(label).astype(int)
        expected = np.where(values == 255, 0, values + 1)
        expected[(expected > 0) & (expected < 92)] = 183
        found = np.zeros_like(expected)
        annotations = api.loadAnns(api.getAnnIds(imgIds=[image_id]))
        assert len({a["category_id"] for a in annotations}) == len(annotations)
        for annotation in annotations:
            here = api.annToMask(annotation) > 0
            assert not found[here].any()
            found[here] = annotation["category_id"]
            assert annotation["area"] == here.sum()
            assert annotation["bbox"] == coco.toBbox(annotation["segmentation"]).tolist()
            assert annotation["iscrowd"] == 0
        np.testing.assert_array_equal(found, expected)
    assert {c["id"] for c in api.dataset["categories"]} == set(range(92, 184))
    return len(api.imgs)


# Real files


@pytest.fixture
def stuff_api(shared_data: Path, tmp_path: Path) -> Path:
    """The real JSON of two images, whose photos are not there, with photos of noise."""
    root = tmp_path / "stuff_api"
    text = (shared_data / "coco/stuff_api/stuff_examples.json").read_text()
    put(root, "annotations/stuff_train2017.json", text)
    for image in json.loads(text)["images"]:
        put(
            root,
            f"train2017/{image['file_name']}",
            photo((image["height"], image["width"]), ".jpg"),
        )
    return root


def test_real_json(stuff_api: Path, tmp_path: Path, shared_data: Path) -> None:
    records = convert(stuff_api, tmp_path / "target")
    assert {r.label_space for r in records} == {"coco-stuff"}
    before = json.loads((stuff_api / "annotations/stuff_train2017.json").read_text())
    after = json.loads((tmp_path / "target/annotations/stuff_train2017.json").read_text())
    for said in (before, after):
        said["annotations"].sort(key=lambda a: a["id"])
    assert after == before
    api = COCO(str(stuff_api / "annotations/stuff_train2017.json"))
    for record in records:
        expected = np.full((record.height, record.width), 255)
        for annotation in api.loadAnns(api.getAnnIds(imgIds=[int(record.image_id)])):
            expected[api.annToMask(annotation) > 0] = annotation["category_id"]
        np.testing.assert_array_equal(pixels(record), expected)


def test_real_json_without_its_photos(shared_data: Path) -> None:
    tree = open_tree(str(shared_data / "coco/stuff_api"))
    samples = list(COCO_STUFF.list(tree, ()))
    assert [s.image_id for s in samples] == ["000000000934", "000000013715"]
    for sample in samples:
        with pytest.raises(MissingFile, match=r"0000000\d+\.jpg"):
            COCO_STUFF.read(tree, sample)


def test_real_pixel_maps(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "coco/stuff_pixelmaps"
    records = convert(source, tmp_path / "own")
    assert [r.split for r in records] == ["train"] * 5 + ["val"] * 2
    assert not (tmp_path / "own/annotations").exists()
    for record in records:
        with Image.open(str(record.mask and record.mask.path)) as label:
            stored = np.array(label).astype(int)
        np.testing.assert_array_equal(pixels(record), np.where(stored == 255, 255, stored + 1))
        again = tmp_path / f"own/stuffthingmaps/{record.split}2017/{record.image_id}.png"
        with Image.open(again) as label:
            np.testing.assert_array_equal(np.array(label), stored)
    foreign = [replace(r, dataset="elsewhere") for r in records]
    assert all(w.loss == {} for w in rewrite(COCO_STUFF, foreign, tmp_path / "new", SPACE))
    assert judge(tmp_path / "new", "train2017") == 5
    assert judge(tmp_path / "new", "val2017") == 2
    said = json.loads((tmp_path / "new/annotations/stuff_val2017.json").read_text())
    assert [image["id"] for image in said["images"]] == [785, 1268]


@pytest.mark.parametrize("folder", ["coco", "coco_stuff"])
def test_third_party_files(shared_data: Path, tmp_path: Path, folder: str) -> None:
    source = copy_tree(shared_data / "coco/fixture_datumaro" / folder, tmp_path / "source")
    train, val = convert(source, tmp_path / "target")
    assert [(c.id, c.pixels) for c in train.classes or ()] == [(1, 20), (255, 30)]
    assert [(c.id, c.pixels) for c in val.classes or ()] == [(2, 20), (255, 30)]
    said = json.loads((tmp_path / "target/annotations/stuff_val2017.json").read_text())
    (annotation,) = said["annotations"]
    assert (annotation["id"], annotation["category_id"], annotation["iscrowd"]) == (2, 2, 1)
    assert coco.area(annotation["segmentation"]) == 20


# Other records, other classes


def test_objects_alone_are_painted(tmp_path: Path) -> None:
    binary = np.zeros(SHAPE, np.uint8)
    binary[:3] = 1
    objects = (Instance(1, 3, None, None, rle=masks.rle_encode(binary)),)
    base = make_record(np.ones(SHAPE, np.uint8), SPACE, "000000000007", "train")
    (written,) = rewrite(COCO_STUFF, [replace(base, mask=None, instances=objects)], tmp_path, SPACE)
    assert written.loss == {"instances": 1}
    assert judge(tmp_path, "train2017") == 1
    (back,) = read_all(tmp_path)
    np.testing.assert_array_equal(pixels(back), np.where(binary, 3, 255))


def test_image_without_a_label_in_train_is_counted(tmp_path: Path) -> None:
    record = make_record(None, SPACE, "a", "train")
    (written,) = rewrite(COCO_STUFF, [record], tmp_path, SPACE)
    assert written.loss == {"images_without_labels": 1}


def test_classes_that_8_bits_do_not_hold(tmp_path: Path) -> None:
    space = LabelSpace("many", (LabelClass(300, "one", (0, 0, 0)),), 65535)
    record = make_record(np.full(SHAPE, 300, np.uint16), space, "a", "train")
    with pytest.raises(UsageError, match="8 bits"):
        rewrite(COCO_STUFF, [record], tmp_path, space)


def test_images_of_two_sources_share_a_split(tmp_path: Path) -> None:
    """Own records without a JSON and records with one: all are listed."""
    TestMaps().make_tree(tmp_path / "maps")
    own = read_all(tmp_path / "maps")
    new = [
        make_record(np.full(SHAPE, 92, np.uint8), SPACE, "000000000010", "train"),
        make_record(None, SPACE, "loose", "unlabelled"),
        replace(make_record(None, SPACE, "own", "unlabelled"), dataset="coco-stuff"),
    ]
    rewrite(COCO_STUFF, [*own, *new], tmp_path / "both", SPACE)
    back = {(r.split, r.image_id): r for r in read_all(tmp_path / "both")}
    assert back.keys() == {(r.split, r.image_id) for r in (*own, *new)}
    for record in (*own, new[0]):
        found = back[record.split, record.image_id]
        np.testing.assert_array_equal(pixels(found), pixels(record))


# Bad files


def damaged(root: Path, **changes: Any) -> Path:
    """Write a JSON of two images, the first annotation of the first one changed."""
    names = FILES["train"]
    ids = {name: random_ids([92, 157, 255], SHAPE, int(name)) for name in names}
    for name in names:
        put(root, f"train2017/{name}.png", photo(SHAPE))
    said = json.loads(stuff_json(ids))
    said["annotations"][0] |= changes
    put(root, "annotations/stuff_train2017.json", json.dumps(said))
    return root


RLE = {"counts": [192], "size": [*SHAPE]}


@pytest.mark.parametrize(
    "changes",
    [
        {"category_id": 91.5},
        {"category_id": 999},
        {"category_id": None},
        {"id": "x"},
        {"segmentation": "PPP"},
        {"segmentation": RLE | {"size": [16, 12]}},
        {"segmentation": RLE | {"counts": [191]}},
        {"segmentation": RLE | {"counts": [-1, 193]}},
        {"segmentation": RLE | {"counts": "`"}},
        {"segmentation": RLE | {"counts": None}},
        {"segmentation": [[1, 2]]},
        {"segmentation": [[1, 2, 3, 4, 1e300, float("inf")]]},
    ],
)
def test_bad_annotations(tmp_path: Path, changes: dict[str, Any]) -> None:
    tree = open_tree(str(damaged(tmp_path, **changes)))
    bad, good = COCO_STUFF.list(tree, ())
    with pytest.raises(BadAnnotation, match=r"stuff_train2017\.json"):
        COCO_STUFF.read(tree, bad)
    COCO_STUFF.read(tree, good)


def test_polygons_and_plain_runs_are_read(tmp_path: Path) -> None:
    tree = open_tree(str(damaged(tmp_path, segmentation=[[0, 0, 4, 0, 4, 4, 0, 4]])))
    polygon, _ = (COCO_STUFF.read(tree, sample) for sample in COCO_STUFF.list(tree, ()))
    assert (92, 16) in [(c.id, c.pixels) for c in polygon.classes or ()]
    tree = open_tree(str(damaged(tmp_path, segmentation=RLE | {"counts": [1, 2, 189]})))
    runs, _ = (COCO_STUFF.read(tree, sample) for sample in COCO_STUFF.list(tree, ()))
    assert pixels(runs)[1:3, 0].tolist() == [92, 92]


def test_smaller_annotations_lie_on_top(tmp_path: Path) -> None:
    tree = open_tree(str(damaged(tmp_path, segmentation=RLE | {"counts": [0, 192]})))
    record, _ = (COCO_STUFF.read(tree, sample) for sample in COCO_STUFF.list(tree, ()))
    expected = random_ids([92, 157, 255], SHAPE, 9)
    np.testing.assert_array_equal(pixels(record), np.where(expected == 157, 157, 92))


def test_annotation_of_an_image_that_is_not_there(tmp_path: Path) -> None:
    tree = open_tree(str(damaged(tmp_path, image_id=77)))
    *images, stray = COCO_STUFF.list(tree, ())
    assert len([COCO_STUFF.read(tree, sample) for sample in images]) == 2
    with pytest.raises(BadAnnotation, match="image 77, which is not among the images"):
        COCO_STUFF.read(tree, stray)


@pytest.mark.parametrize("keep", [0, 0.5, 0.99])
def test_json_that_is_cut_off(tmp_path: Path, keep: float) -> None:
    file = damaged(tmp_path) / "annotations/stuff_train2017.json"
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(LayoutError, match=r"stuff_train2017\.json: byte"):
        list(COCO_STUFF.list(open_tree(str(tmp_path)), ()))


def test_image_that_no_map_is_of(tmp_path: Path) -> None:
    TestMaps().make_tree(tmp_path)
    put(tmp_path, "images/train2017/extra.png", photo(SHAPE))
    tree = open_tree(str(tmp_path))
    sample = list(COCO_STUFF.list(tree, ["train"]))[-1]
    with pytest.raises(MissingFile, match=r"stuffthingmaps/train2017/extra\.png"):
        COCO_STUFF.read(tree, sample)


def test_map_that_is_missing_is_not_replaced_by_the_json(tmp_path: Path) -> None:
    """The JSON has no things: a mask of it in place of a lost map would go unnoticed."""
    TestJsonBesideMaps().make_tree(tmp_path)
    (tmp_path / "stuffthingmaps/train2017/000000000009.png").unlink()
    tree = open_tree(str(tmp_path))
    sample = next(iter(COCO_STUFF.list(tree, ["train"])))
    with pytest.raises(MissingFile, match=r"000000000009\.png"):
        COCO_STUFF.read(tree, sample)


@pytest.mark.parametrize("value", [183, 254])
def test_values_of_no_class(tmp_path: Path, value: int) -> None:
    TestMaps().make_tree(tmp_path)
    label = np.full(SHAPE, 5)
    label[3, 4] = value
    put(tmp_path, "stuffthingmaps/val2017/000000000139.png", grey(label))
    tree = open_tree(str(tmp_path))
    (sample,) = COCO_STUFF.list(tree, ["val"])
    with pytest.raises(LabelOutOfRange, match=f"values {value} are not"):
        COCO_STUFF.read(tree, sample)


@pytest.mark.parametrize("image", [7, {"id": 7}, {"id": 7, "file_name": "\ud800.png"}, {"id": "7"}])
def test_images_that_are_none(tmp_path: Path, image: Any) -> None:
    said = json.dumps({"images": [image], "annotations": [], "categories": CATEGORIES})
    put(tmp_path, "annotations/stuff_val2017.json", said)
    tree = open_tree(str(tmp_path))
    (sample,) = COCO_STUFF.list(tree, ())
    with pytest.raises(BadAnnotation, match="an image"):
        COCO_STUFF.read(tree, sample)


def test_what_coco_says_of_images_and_annotations_stays(tmp_path: Path) -> None:
    """Ids, licences and unknown keys; ids that are taken or none are new, and counted."""
    source = damaged(tmp_path / "a", note="by hand", id=5)
    convert(source, tmp_path / "b")
    said = json.loads((tmp_path / "b/annotations/stuff_train2017.json").read_text())
    assert said["info"] == {"year": 2017}
    assert said["images"][0]["license"] == 5
    (first,) = (a for a in said["annotations"] if a["id"] == 5)
    assert first["note"] == "by hand"
    records = read_all(source)
    twice = [records[0], replace(records[0], image_id="again")]
    rewrite(COCO_STUFF, twice, tmp_path / "c", SPACE)
    said = json.loads((tmp_path / "c/annotations/stuff_train2017.json").read_text())
    assert [image["id"] for image in said["images"]] == [9, 1]
    assert [a["id"] for a in said["annotations"]] == [5, 10_000_001, 1, 2]
    assert [a["image_id"] for a in said["annotations"]] == [9, 9, 1, 1]


def test_ids_of_16_bits_do_not_wrap(tmp_path: Path) -> None:
    """300 is no class; in 8 bits it would be 44."""
    space = LabelSpace("few", (LabelClass(44, "one", (0, 0, 0)),), 255)
    record = make_record(np.full(SHAPE, 44, np.uint8), space, "a", "train")
    rewrite(COCO_STUFF, [record], tmp_path, space)
    (back,) = read_all(tmp_path)
    assert (pixels(back) == 44).all()
    Image.fromarray(np.full(SHAPE, 300, np.uint16)).save(
        tmp_path / "stuffthingmaps/train2017/a.png"
    )
    with pytest.raises(LabelOutOfRange, match="values 300"):
        read_all(tmp_path)


@pytest.mark.parametrize(
    "extra", [{"image": 7, "annotations": 7}, {"image": {}, "annotations": [7, {"id": "x"}]}]
)
def test_extras_that_another_program_changed(tmp_path: Path, extra: dict[str, Any]) -> None:
    record = make_record(np.full(SHAPE, 92, np.uint8), SPACE, "000000000007", "train")
    changed = replace(record, dataset="coco-stuff", extra=json.dumps(extra))
    rewrite(COCO_STUFF, [changed], tmp_path, SPACE)
    assert judge(tmp_path, "train2017") == 1
