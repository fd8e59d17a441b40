"""COCO panoptic: the conformance suite, the rules of panopticapi in NumPy, and the real files."""

from __future__ import annotations

import io
import json
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from connectors.coco_panoptic import COCO_PANOPTIC
from connectors.panoptic_pixels import read_ids, write_ids
from pipeline import masks
from pipeline.errors import BadAnnotation, CorruptMask, LayoutError, MissingFile, SizeMismatch
from pipeline.files import open_tree
from pipeline.label_space import LabelClass, LabelSpace, label_space
from pipeline.record import Instance, Record
from tests.connectors.conformance import Conformance, Made
from tests.connectors.trees import bare, contents, copy_tree, make_record, photo, put, rewrite

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

SPACE = label_space("coco-panoptic-133")
SHAPE = (12, 16)
FILES = {
    "train": ["000000000009", "000000000025"],
    "val": ["000000000139"],
    "test": ["000000000001"],
}
FOLDERS = {"train": "train2017", "val": "val2017", "test": "test2017"}
CATEGORIES = [
    {
        "id": c.id,
        "name": c.name,
        "color": list(c.colour),
        "isthing": int(bool(c.isthing)),
        "supercategory": "",
    }
    for c in SPACE.classes
    if c.id != 255
]


def rgb(ids: NDArray[Any]) -> bytes:
    """Return segment ids as a PNG, by panopticapi's id2rgb."""
    data = io.BytesIO()
    Image.fromarray(np.stack([ids >> shift & 255 for shift in (0, 8, 16)], 2).astype("u1")).save(
        data, "PNG"
    )
    return data.getvalue()


def rgb2id(path: Path) -> NDArray[np.int64]:
    """Return segment ids as panopticapi's rgb2id does."""
    with Image.open(path) as image:
        assert image.mode == "RGB"
        pixels = np.array(image).astype(np.int64)
    return pixels[:, :, 0] + 256 * pixels[:, :, 1] + 65536 * pixels[:, :, 2]


def segments(ids: NDArray[Any], categories: dict[int, int]) -> list[dict[str, Any]]:
    """Describe segments by comparisons, one for each id."""
    found = []
    for number, category in categories.items():
        rows, columns = np.nonzero(ids == number)
        left, top = int(columns.min()), int(rows.min())
        box = [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1]
        found.append(
            {
                "id": number,
                "category_id": category,
                "iscrowd": 0,
                "bbox": box,
                "area": len(rows),
            }
        )
    return found


def segment_map(seed: int) -> tuple[NDArray[np.int64], dict[int, int]]:
    """Draw blocks of void, three persons, one of them a crowd's colour, sky and wall."""
    rng = np.random.default_rng(seed)
    numbers = np.array([0, 3937500, 7, 1 << 23, 65536, 16777215])
    ids = np.kron(rng.choice(numbers, (3, 4)), np.ones((4, 4), np.int64)).astype(np.int64)
    ids.flat[: len(numbers)] = numbers
    return ids, {3937500: 1, 7: 1, 16777215: 3, 65536: 187, 1 << 23: 199}


def panoptic_json(images: list[Any], annotations: list[Any], categories: Any = CATEGORIES) -> str:
    return json.dumps(
        {
            "info": {"year": 2017, "description": "é"},
            "licenses": [{"id": 1, "name": "CC"}],
            "images": images,
            "annotations": annotations,
            "categories": categories,
        }
    )


def entry(name: str, **more: Any) -> dict[str, Any]:
    size = {"height": SHAPE[0], "width": SHAPE[1]}
    return {"id": int(name), "file_name": f"{name}.png", "license": 1} | size | more


def put_split(
    root: Path, split: str, maps: dict[str, tuple[NDArray[np.int64], dict[int, int]]]
) -> None:
    tag = FOLDERS[split]
    for name, (ids, _) in maps.items():
        put(root, f"images/{tag}/{name}.png", photo(SHAPE))
        put(root, f"annotations/panoptic_{tag}/{name}.png", rgb(ids))
    annotations = [
        {"image_id": int(n), "file_name": f"{n}.png", "segments_info": segments(*m)}
        for n, m in maps.items()
    ]
    text = panoptic_json([entry(n) for n in maps], annotations)
    put(root, f"annotations/panoptic_{tag}.json", text)


class TestCocoPanoptic(Conformance):
    connector = COCO_PANOPTIC
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


def judge(root: Path, *, exact: bool = True) -> list[dict[str, Any]]:
    """Check a dataset by panopticapi's rules; return its annotations.

    `exact`: boxes and areas are those of the pixels, and a stuff class has one segment an image.
    """
    judged = []
    for file in sorted((root / "annotations").glob("panoptic_*.json")):
        said = json.loads(file.read_text("utf-8"))
        categories = {c["id"]: c for c in said["categories"]}
        images = {image["id"]: image for image in said["images"]}
        assert len(images) == len(said["images"])
        for annotation in said["annotations"]:
            ids = rgb2id(file.with_suffix("") / annotation["file_name"])
            image = images[annotation["image_id"]]
            folder = root / file.stem.removeprefix("panoptic_")
            assert (folder / image["file_name"]).is_file()
            assert ids.shape == (image["height"], image["width"])
            infos = annotation["segments_info"]
            numbers = [info["id"] for info in infos]
            assert len(set(numbers)) == len(numbers)
            assert set(np.unique(ids).tolist()) - {0} == set(numbers)
            assert all(info["iscrowd"] in (0, 1) for info in infos)
            kinds = Counter(info["category_id"] for info in infos)
            assert kinds.keys() <= categories.keys()
            if exact:
                drawn = segments(ids, {info["id"]: info["category_id"] for info in infos})
                for info, expected in zip(infos, drawn, strict=True):
                    assert info == expected | {"iscrowd": info["iscrowd"]}
                    assert all(type(v) is int for v in (*info["bbox"], info["area"]))
                assert all(kinds[c] == 1 for c in kinds if not categories[c]["isthing"])
            judged.append(annotation)
    return judged


def drawn_classes(root: Path, annotation: dict[str, Any], tag: str, void: int) -> NDArray[np.int64]:
    """Return the categories of the pixels."""
    ids = rgb2id(root / f"annotations/panoptic_{tag}" / annotation["file_name"])
    found = np.full(ids.shape, void)
    for info in annotation["segments_info"]:
        found[ids == info["id"]] = info["category_id"]
    return found


def read_all(root: Path) -> list[Record]:
    tree = open_tree(str(root))
    return [COCO_PANOPTIC.read(tree, sample) for sample in COCO_PANOPTIC.list(tree, ())]


def convert(source: Path, target: Path) -> list[Record]:
    """Read a dataset and write it, with what it says of itself; nothing may be lost."""
    tree = open_tree(str(source))
    (space,) = COCO_PANOPTIC.label_spaces(tree)
    records = read_all(source)
    written = rewrite(COCO_PANOPTIC, records, target, space, facts=COCO_PANOPTIC.facts(tree))
    assert all(w.loss == {} for w in written)
    return records


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


# Records of other formats


def blob(box: tuple[int, int, int, int], shape: tuple[int, int] = SHAPE) -> str:
    """Return the run lengths of rows and columns from..to."""
    binary = np.zeros(shape, np.uint8)
    binary[box[0] : box[1], box[2] : box[3]] = 1
    return masks.rle_encode(binary)


def with_objects(ids: NDArray[Any] | None, found: Iterable[Instance], space: LabelSpace) -> Record:
    void = np.full(SHAPE, space.ignore_index, space.dtype)
    record = make_record(void if ids is None else ids, space, "frame", "train")
    mask = None if ids is None else record.mask
    return replace(record, mask=mask, instances=tuple(found))


def test_objects_are_cut_by_smaller_ones_and_counted(tmp_path: Path) -> None:
    person, car = 1, 3
    record = with_objects(
        None,
        [
            Instance(5, person, None, None, rle=blob((0, 8, 0, 8))),
            Instance(5, person, None, None, rle=blob((2, 4, 2, 4)), iscrowd=True),
            Instance(6, car, None, None, rle=blob((2, 4, 2, 4))),
            Instance(7, 187, None, None, rle=blob((8, 12, 0, 16))),
            Instance(8, car, (0, 0, 3, 3), 9.0, score=0.5),
            Instance(9, car, None, None, rle=blob((0, 1, 0, 1)), extra='{"part_of": 6}'),
        ],
        SPACE,
    )
    (written,) = rewrite(COCO_PANOPTIC, [record], tmp_path, SPACE)
    assert written.loss == {
        "instances_covered": 1,
        "instances_cut": 1,
        "instances_of_stuff": 1,
        "instances_without_masks": 1,
        "parts": 1,
    }
    (annotation,) = judge(tmp_path)
    found = {(i["category_id"], i["area"], i["iscrowd"]) for i in annotation["segments_info"]}
    assert found == {(person, 60, 0), (car, 4, 0), (187, 64, 0)}


def test_the_mask_decides_where_it_and_objects_differ(tmp_path: Path) -> None:
    ids = np.full(SHAPE, 187, np.uint8)
    ids[:6, :6], ids[0, 0] = 1, 255
    found = [
        Instance(1, 1, None, None, rle=blob((0, 8, 0, 6))),
        Instance(2, 3, None, None, rle=blob((0, 2, 0, 3))),
        Instance(3, 3, None, None, rle=blob((10, 12, 0, 3))),
    ]
    (written,) = rewrite(COCO_PANOPTIC, [with_objects(ids, found, SPACE)], tmp_path, SPACE)
    assert written.loss == {"instances_covered": 1, "instances_cut": 2}
    (annotation,) = judge(tmp_path)
    expected = ids.astype(np.int64)
    expected[0, 0] = 3  # where the mask says nothing, the smaller object does
    np.testing.assert_array_equal(drawn_classes(tmp_path, annotation, "train2017", 255), expected)


def test_things_without_objects_are_a_crowd(tmp_path: Path) -> None:
    ids = np.full(SHAPE, 187, np.uint8)
    ids[:4], ids[4:6] = 1, 3
    record = with_objects(ids, [Instance(1, 1, None, None, rle=blob((0, 2, 0, 16)))], SPACE)
    (written,) = rewrite(COCO_PANOPTIC, [record], tmp_path, SPACE)
    assert written.loss == {"things_not_separated": 2}
    (annotation,) = judge(tmp_path)
    found = {(i["category_id"], i["area"], i["iscrowd"]) for i in annotation["segments_info"]}
    assert found == {(1, 32, 0), (1, 32, 1), (3, 32, 1), (187, 96, 0)}


def test_classes_that_objects_use_are_things(tmp_path: Path) -> None:
    """A space may not say what is a thing; its classes come back as they were."""
    classes = (
        LabelClass(0, "wall", (9, 9, 9)),
        LabelClass(1, "chair", (9, 9, 9)),
        LabelClass(300, "nothing", (0, 0, 0), void=True),
    )
    space = LabelSpace("rooms", classes, 65535)
    ids = np.zeros(SHAPE, np.uint16)
    ids[:4, :4], ids[8:], ids[9] = 1, 300, 65535
    record = with_objects(ids, [Instance(1, 1, None, None, rle=blob((0, 4, 0, 4)))], space)
    assert rewrite(COCO_PANOPTIC, [record], tmp_path, space)[0].loss == {}
    judge(tmp_path)
    said = json.loads((tmp_path / "annotations/panoptic_train2017.json").read_text())
    assert {c["name"]: c["isthing"] for c in said["categories"]} == {
        "wall": 0,
        "chair": 1,
        "nothing": 0,
    }
    assert COCO_PANOPTIC.label_spaces(open_tree(str(tmp_path))) == (space,)
    (back,) = read_all(tmp_path)
    assert back.mask is not None
    np.testing.assert_array_equal(masks.decode(back.mask.bytes or b""), ids)
    assert [(i.category, i.area) for i in back.instances or ()] == [(1, 16.0)]


def test_more_objects_of_one_class_than_shades_of_its_colour(tmp_path: Path) -> None:
    shape = (66, 66)
    pixels = shape[0] * shape[1]
    found = []
    for number in range(pixels):
        runs = [number, 1, pixels - number - 1]
        found.append(Instance(number, 1, None, None, rle=masks.rle_from_runs(runs, *shape)))
    record = replace(make_record(np.ones(shape, "u1"), SPACE, "a", "val"), instances=tuple(found))
    assert rewrite(COCO_PANOPTIC, [record], tmp_path, SPACE)[0].loss == {}
    ids = rgb2id(tmp_path / "annotations/panoptic_val2017/a.png")
    assert len(np.unique(ids)) == pixels
    assert ids.all()


@st.composite
def scenes(draw: st.DrawFn) -> Record:
    """Draw a mask and overlapping objects that need not agree with it."""
    shape = (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    classes = st.sampled_from([1, 3, 187, 199, 255])
    ids = None
    if draw(st.booleans()):
        cells = draw(st.lists(classes, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
        ids = np.array(cells, np.uint8).reshape(shape)
    found = []
    for number in range(draw(st.integers(0 if ids is not None else 1, 5))):
        top, left = draw(st.integers(0, shape[0] - 1)), draw(st.integers(0, shape[1] - 1))
        bottom, right = draw(st.integers(top, shape[0])), draw(st.integers(left, shape[1]))
        category = draw(st.sampled_from([1, 3, 187]))
        rle = blob((top, bottom, left, right), shape)
        found.append(Instance(number, category, None, None, draw(st.booleans()), rle))
    base = make_record(np.ones(shape, "u1") if ids is None else ids, SPACE, "a/b.c", "val")
    return replace(base, mask=None if ids is None else base.mask, instances=tuple(found))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(record=scenes())
def test_random_scenes_obey_the_rules_and_come_back(record: Record) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (written,) = rewrite(COCO_PANOPTIC, [record], root, SPACE)
        (annotation,) = judge(root)
        found = drawn_classes(root, annotation, "val2017", 255)
        (back,) = read_all(root)
    assert back.mask is not None
    np.testing.assert_array_equal(masks.decode(back.mask.bytes or b""), found)
    covered = np.zeros(found.shape, bool)
    for one in record.instances or ():
        covered |= masks.rle_decode(one.rle or "", *found.shape) > 0
    if record.mask is None:
        np.testing.assert_array_equal(found != 255, covered)
    else:
        ids = masks.decode(record.mask.bytes or b"")
        np.testing.assert_array_equal(found[ids != 255], ids[ids != 255])
        assert (found[(ids == 255) & ~covered] == 255).all()
    things = [i for i in record.instances or () if SPACE.by_id[i.category].isthing]
    separate = len(back.instances or ()) - written.loss.get("things_not_separated", 0)
    assert separate == len(things) - written.loss.get("instances_covered", 0)


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
    other = make_record(np.full(SHAPE, 187, "u1"), SPACE, "x", "train")
    for n, changed in enumerate(
        [replace(record, mask=other.mask), replace(record, instances=(record.instances or ())[1:])]
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
        [{"id": 1, "name": "a", "color": [1, 2]}],
        [{"id": 1, "name": "a", "color": [1, 2, 256]}],
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
