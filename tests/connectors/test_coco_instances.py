"""COCO's instances: the conformance suite, the real files, pycocotools as the judge, bad input."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from connectors.coco import COCO_INSTANCES
from connectors.coco_categories import space_of
from pipeline import masks
from pipeline.errors import BadAnnotation, InputError, LayoutError, SizeMismatch, UnsafePath
from pipeline.files import open_sink, open_tree
from pipeline.label_space import LabelClass, LabelSpace, label_space
from pipeline.record import Instance, Record
from tests.connectors.conformance import Conformance, Made
from tests.connectors.trees import bare, contents, copy_tree, make_record, photo, put, rewrite

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.files import Tree

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools

SHAPE = (12, 16)
CATEGORIES = [
    {"supercategory": "animal", "id": 3, "name": "cat"},
    {"supercategory": "thing", "id": 700, "name": "a, b"},
]
OFFICIAL = [
    {"supercategory": "", "id": c.id, "name": c.name}
    for c in label_space("coco-80").classes
    if not c.void
]
POLYGON = [[1.5, 2.0, 10.25, 2.0, 10.25, 9.125, 1.5, 9.1]]


def annotation(number: int, image: int, **more: Any) -> dict[str, Any]:
    return {
        "segmentation": POLYGON,
        "area": 62.1,
        "iscrowd": 0,
        "image_id": image,
        "bbox": [1.5, 2.0, 8.75, 7.125],
        "category_id": 3,
        "id": number,
    } | more


def image(number: int, name: str, **more: Any) -> dict[str, Any]:
    return {"file_name": name, "height": SHAPE[0], "width": SHAPE[1], "id": number} | more


def dataset(
    images: list[Any], annotations: list[Any], categories: Any = CATEGORIES, **more: Any
) -> str:
    said = {"info": {"year": 2017}, "licenses": [], "images": images, "annotations": annotations}
    return json.dumps(said | {"categories": categories} | more)


def one_image(root: Path, *annotations: Any, **more: Any) -> Tree:
    """A dataset of an image that is good, and of one with these annotations."""
    put(root, "train2017/1.png", photo(SHAPE))
    put(root, "train2017/2.png", photo(SHAPE))
    images = [image(1, "1.png"), image(2, "2.png", **more)]
    text = dataset(images, [annotation(50, 1), *annotations])
    put(root, "annotations/instances_train2017.json", text)
    return open_tree(str(root))


def read_all(tree: Tree) -> list[Record]:
    return [COCO_INSTANCES.read(tree, sample) for sample in COCO_INSTANCES.list(tree, ())]


def judge(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def rewrite_with_facts(root: Path, target: Path) -> list[dict[str, int]]:
    tree = open_tree(str(root))
    records, sink = read_all(tree), open_sink(str(target))
    (space,) = COCO_INSTANCES.label_spaces(tree)
    written = [COCO_INSTANCES.write(sink, r, space) for r in records]
    facts = json.loads(json.dumps({"coco-instances": COCO_INSTANCES.facts(tree)}))
    COCO_INSTANCES.finish(sink, written, space, facts)
    return [w.loss for w in written]


class TestCocoInstances(Conformance):
    connector = COCO_INSTANCES
    carries_masks = False

    def make_tree(self, root: Path) -> Made:
        runs = [5, 20, 192 - 25]
        whole = {"size": list(SHAPE), "counts": masks.rle_from_runs(runs, *SHAPE)}
        crowd = {"size": list(SHAPE), "counts": runs}
        images = [image(9, "b.png", license=4, coco_url="http://x/9"), image(7, "a.png", x=[None])]
        annotations = [
            annotation(3, 7, segmentation=whole, keypoints=[1, 2, 2], num_keypoints=1),
            annotation(900100200300, 9, caption="é"),
            annotation(1, 7, segmentation=crowd, iscrowd=1, category_id=700, area=20),
            annotation(4, 7, segmentation=[], bbox=[1, 2, 3, 4]),
        ]
        put(root, "annotations/instances_train2017.json", dataset(images, annotations))
        put(root, "annotations/instances_val2017.json", dataset([image(9, "c.png")], []))
        test = dataset([image(2, "d.png")], [])
        put(root, "annotations/image_info_test2017.json", test)
        for name in ("train2017/a", "train2017/b", "val2017/c", "test2017/d"):
            put(root, f"{name}.png", photo(SHAPE))
        splits = {"train": ["b", "a"], "val": ["c"], "test": ["d"]}
        none = np.empty(0)
        ids = {f"{split}/{n}": none for split, names in splits.items() for n in names}
        return Made(splits, ids, "a", "train2017/a.png")


def test_real_files_come_back(shared_data: Path, tmp_path: Path) -> None:
    root = shared_data / "coco" / "instances"
    assert rewrite_with_facts(root, tmp_path) == [{}] * 15
    for split in ("train", "val"):
        name = f"annotations/instances_{split}2017.json"
        one, two = (json.loads((r / name).read_text()) for r in (root, tmp_path))
        assert list(one) == list(two)
        by_id = {key: sorted(one[key], key=lambda e: e["id"]) for key in ("images", "annotations")}
        assert two["images"] == one["images"]
        assert sorted(two["annotations"], key=lambda a: a["id"]) == by_id["annotations"]
        assert {k: one[k] for k in ("info", "licenses", "categories")} == {
            k: two[k] for k in ("info", "licenses", "categories")
        }
        texts = (tmp_path / name).read_text()
        for element in one["annotations"]:
            assert json.dumps(element) in texts
        for i in one["images"]:
            file = f"{split}2017/{i['file_name']}"
            assert (tmp_path / file).read_bytes() == (root / file).read_bytes()


def test_pycocotools_sees_what_is_read(shared_data: Path) -> None:
    root = shared_data / "coco" / "instances"
    tree = open_tree(str(root))
    records = read_all(tree)
    assert [len([r for r in records if r.split == s]) for s in ("train", "val")] == [9, 6]
    assert sum(i.iscrowd for r in records for i in r.instances or ()) == 3
    assert sum(r.instances == () for r in records) >= 1
    assert COCO_INSTANCES.label_spaces(tree) == (label_space("coco-80"),)
    for split in ("train", "val"):
        truth = judge(root / f"annotations/instances_{split}2017.json")
        for record in (r for r in records if r.split == split):
            said = {a["id"]: a for a in truth.imgToAnns[record.extras()["coco"]["id"]]}
            assert len(said) == len(record.instances or ())
            for i in record.instances or ():
                expected = truth.annToMask(said[i.id])
                found = masks.rle_decode(i.rle or "", record.height, record.width)
                np.testing.assert_array_equal(found, expected)
                assert (i.category, list(i.bbox or ()), i.area, i.iscrowd) == (
                    said[i.id]["category_id"],
                    said[i.id]["bbox"],
                    said[i.id]["area"],
                    bool(said[i.id]["iscrowd"]),
                )


@pytest.mark.parametrize("folder", ["coco", "coco_instances"])
def test_files_of_another_program(shared_data: Path, tmp_path: Path, folder: str) -> None:
    root = shared_data / "coco" / "fixture_datumaro" / folder
    assert rewrite_with_facts(root, tmp_path) == [{}, {}]
    for one in sorted((root / "annotations").glob("*.json")):
        kind = one.name.rpartition("_")[0]
        if kind in ("instances", "captions", "person_keypoints"):
            two = json.loads((tmp_path / "annotations" / one.name).read_text())
            assert two == json.loads(one.read_text()), one.name
    tree, again = open_tree(str(root)), open_tree(str(tmp_path))
    assert [bare(r) for r in read_all(again)] == [bare(r) for r in read_all(tree)]
    if folder == "coco":
        first = read_all(tree)[0]
        assert first.extras()["captions"][0]["caption"] == "hello"
        assert json.loads((first.instances or ())[0].extra or "")["person_keypoints"]


def test_digits_and_key_order_stay(tmp_path: Path) -> None:
    text = (
        '{"id": 5, "image_id": 2, "category_id": 3, "area": 62.10000000000000142,'
        ' "iscrowd": 0, "segmentation": [[1.50, 2e0, 9.0, 2.000, 9.0, 9.0]], "x": 1E2}'
    )
    put(tmp_path, "a/train2017/2.png", photo(SHAPE))
    whole = f'{{"annotations": [{text}], "categories": {json.dumps(CATEGORIES)}, "images": ['
    whole += json.dumps(image(2, "2.png")) + '], "z": [1.0], "info": {}, "licenses": []}'
    put(tmp_path, "a/annotations/instances_train2017.json", whole)
    assert rewrite_with_facts(tmp_path / "a", tmp_path / "b") == [{}]
    assert (tmp_path / "b/annotations/instances_train2017.json").read_text() == whole


# Writing what other formats hold


@st.composite
def foreign(draw: st.DrawFn) -> tuple[Record, list[NDArray[np.uint8]]]:
    """A record of another format: objects with holes that overlap."""
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=14))
    drawn = draw(st.lists(hnp.arrays(np.uint8, shape, elements=st.integers(0, 1)), max_size=4))
    space = label_space("coco-80")
    objects = tuple(
        Instance(
            id=draw(st.integers(0, 5)),
            category=draw(st.sampled_from(space.train_ids)),
            bbox=None,
            area=None,
            iscrowd=draw(st.booleans()),
            rle=masks.rle_encode(m),
        )
        for m in drawn
    )
    blank = make_record(
        np.full(shape, 255, np.uint8), space, "x", draw(st.sampled_from(["train", "val"]))
    )
    return replace(blank, mask=None, classes=None, instances=objects), drawn


@settings(max_examples=40, deadline=None)
@given(st.lists(foreign(), min_size=1, max_size=4))
def test_pycocotools_sees_what_is_written(
    made: list[tuple[Record, list[NDArray[np.uint8]]]],
) -> None:
    records = [replace(r, image_id=f"street {n}/frame.{n}") for n, (r, _) in enumerate(made)]
    drawn = {r.image_id: m for r, (_, m) in zip(records, made, strict=True)}
    with tempfile.TemporaryDirectory() as folder:
        written = rewrite(COCO_INSTANCES, records, Path(folder), label_space("coco-80"))
        assert all(w.loss == {} for w in written)
        back = {r.image_id: r for r in read_all(open_tree(folder))}
        for split in {r.split for r in records}:
            truth = judge(Path(folder) / f"annotations/instances_{split}2017.json")
            here = [r for r in records if r.split == split]
            assert sorted(truth.imgs) == list(range(1, len(here) + 1))
            assert sorted(truth.anns) == list(
                range(1, 1 + sum(len(r.instances or ()) for r in here))
            )
            assert sorted(truth.cats) == sorted(label_space("coco-80").train_ids)
            for number, record in enumerate(here, 1):
                assert truth.imgs[number]["file_name"] == f"{record.image_id}.png"
                check_objects(truth, number, record, drawn[record.image_id])
                found = back.pop(record.image_id)
                assert [(i.rle, i.category, i.iscrowd) for i in found.instances or ()] == [
                    (i.rle, i.category, i.iscrowd) for i in record.instances or ()
                ]
    assert not back


def check_objects(truth: COCO, number: int, record: Record, drawn: list[NDArray[np.uint8]]) -> None:
    said = [truth.anns[i] for i in sorted(truth.getAnnIds(imgIds=[number]))]
    for own, instance, pixels in zip(said, record.instances or (), drawn, strict=True):
        np.testing.assert_array_equal(truth.annToMask(own), pixels)
        code = coco_mask.encode(np.asfortranarray(pixels))
        assert own["area"] == pixels.sum() == coco_mask.area(code)
        if pixels.any():
            assert own["bbox"] == coco_mask.toBbox(code).tolist()
        assert (own["category_id"], own["iscrowd"]) == (instance.category, int(instance.iscrowd))


@pytest.mark.parametrize("name", ["voc-21", "cityscapes-34", "nyu-40", "coco-80"])
def test_classes_of_another_space_come_back(tmp_path: Path, name: str) -> None:
    space = label_space(name)
    ids = np.array([space.train_ids[:3] * 4] * 5, np.uint8)
    record = make_record(ids, space, "a", "train")
    (written,) = rewrite(COCO_INSTANCES, [record], tmp_path, space)
    real = [c for c in space.train_ids[:3] if space.by_id[c].name != "background"]
    assert written.loss == {"objects_from_mask_regions": len(real)}
    tree = open_tree(str(tmp_path))
    assert COCO_INSTANCES.label_spaces(tree) == (space,)
    (back,) = read_all(tree)
    assert back.label_space == name
    for i in back.instances or ():
        np.testing.assert_array_equal(masks.rle_decode(i.rle or "", 5, 12), ids == i.category)
    assert [i.category for i in back.instances or ()] == real
    # and once more, from its own text
    assert rewrite(COCO_INSTANCES, [back], tmp_path / "b", space)[0].loss == {}
    assert [bare(r) for r in read_all(open_tree(str(tmp_path / "b")))] == [bare(back)]


def test_a_space_of_its_own_comes_back(tmp_path: Path) -> None:
    classes = (
        LabelClass(0, "a", (1, 2, 3), isthing=False),
        LabelClass(9, "b\t", (4, 5, 6), isthing=None),
        LabelClass(300, "c", (0, 0, 0), isthing=True, void=True),
    )
    space = LabelSpace("mine", classes, 300)
    record = make_record(None, space, "a", "train")
    rewrite(COCO_INSTANCES, [replace(record, instances=())], tmp_path, space)
    assert COCO_INSTANCES.label_spaces(open_tree(str(tmp_path))) == (space,)


def test_what_cannot_be_held_is_counted(tmp_path: Path) -> None:
    space = label_space("coco-80")
    whole = Instance(7, 1, (0.0, 0.0, 2.0, 2.0), None)
    objects = (
        whole,
        replace(whole, id=8, extra='{"part_of": 7, "level": 1}'),
        replace(whole, id=9, extra='{"part_of": 70}'),
        replace(whole, id=10, bbox=None, score=0.5),
    )
    record = make_record(np.full((5, 6), 255, np.uint8), space, "a", "train")
    record = replace(record, instances=objects, image_labels=(1, 2))
    (written,) = rewrite(COCO_INSTANCES, [record], tmp_path, space)
    assert written.loss == {
        "mask": 1,
        "image_labels": 2,
        "parts_of_objects": 1,
        "instance_attributes": 1,
        "objects_without_box": 1,
    }
    (back,) = read_all(open_tree(str(tmp_path)))
    assert [(i.id, i.part_of, i.area) for i in back.instances or ()] == [
        (1, None, 4.0),
        (2, 1, 4.0),
        (3, None, 4.0),
    ]


def test_own_ids_stay_beside_new_ones(tmp_path: Path) -> None:
    tree = one_image(tmp_path / "a", annotation(7, 2), annotation(20, 2))
    own = read_all(tree)
    (space,) = COCO_INSTANCES.label_spaces(tree)
    new = replace(own[0], dataset="elsewhere", image_id="new")
    rewrite(COCO_INSTANCES, [new, *own], tmp_path / "b", space)
    said = json.loads((tmp_path / "b/annotations/instances_train2017.json").read_text())
    assert [i["id"] for i in said["images"]] == [3, 1, 2]
    assert [(a["id"], a["image_id"]) for a in said["annotations"]] == [
        (51, 3),
        (50, 1),
        (7, 2),
        (20, 2),
    ]


def test_equal_ids_of_two_datasets_are_numbered(tmp_path: Path) -> None:
    tree = one_image(tmp_path / "a", annotation(7, 2, **{"segmill_part_of": 20}), annotation(20, 2))
    own = read_all(tree)
    (space,) = COCO_INSTANCES.label_spaces(tree)
    other = [replace(r, image_id=r.image_id + "b") for r in own]
    sink = open_sink(str(tmp_path / "b"))
    written = [COCO_INSTANCES.write(sink, r, space) for r in [*own, *other]]
    loss = COCO_INSTANCES.finish(sink, written, space, {})
    assert loss is not None
    assert loss.attributes == {"image_ids": 4, "annotation_ids": 6}
    truth = judge(tmp_path / "b/annotations/instances_train2017.json")
    assert sorted(truth.imgs) == [1, 2, 3, 4]
    assert sorted(truth.anns) == [1, 2, 3, 4, 5, 6]
    back = read_all(open_tree(str(tmp_path / "b")))
    assert [len(r.instances or ()) for r in back] == [1, 2, 1, 2]
    parts = [[(i.id, i.part_of) for i in r.instances or ()] for r in back]
    assert parts == [[(1, None)], [(2, 3), (3, None)], [(4, None)], [(5, 6), (6, None)]]


def test_changed_instances_are_written_as_they_are(tmp_path: Path) -> None:
    tree = one_image(tmp_path / "a", annotation(7, 2, caption="x"))
    record = read_all(tree)[1]
    changed = replace((record.instances or ())[0], category=700, area=5.0, iscrowd=True)
    (space,) = COCO_INSTANCES.label_spaces(tree)
    rewrite(COCO_INSTANCES, [replace(record, instances=(changed,))], tmp_path / "b", space)
    said = json.loads((tmp_path / "b/annotations/instances_train2017.json").read_text())
    expected = annotation(7, 2, caption="x", category_id=700, area=5.0, iscrowd=1)
    assert said["annotations"] == [expected]


@pytest.mark.parametrize(
    "extra",
    [
        None,
        "{}",
        '{"coco": 5}',
        '{"coco": {"id": null}}',
        '{"coco": {}, "x": 1}',
        '{"file": "../../outside", "coco": {"id": 2}}',
        '{"suffix": 5, "coco": {"id": 2}}',
    ],
)
def test_extras_that_someone_changed(tmp_path: Path, extra: str | None) -> None:
    tree = one_image(tmp_path / "a", annotation(7, 2))
    record = read_all(tree)[1]
    changed = replace((record.instances or ())[0], extra=extra)
    (space,) = COCO_INSTANCES.label_spaces(tree)
    for bad in (replace(record, extra=extra), replace(record, instances=(changed,))):
        with contextlib.suppress(UnsafePath):
            rewrite(COCO_INSTANCES, [bad], tmp_path / "b", space)
            (back,) = read_all(open_tree(str(tmp_path / "b")))
            assert [i.category for i in back.instances or ()] == [3]
    assert not list(tmp_path.glob("outside*"))


def test_unlabelled_beside_labelled(tmp_path: Path) -> None:
    space = label_space("coco-80")
    labelled = replace(make_record(None, space, "a", "train"), instances=())
    records = [labelled, make_record(None, space, "b", "train")]
    rewrite(COCO_INSTANCES, records, tmp_path, space)
    back = {r.image_id: r for r in read_all(open_tree(str(tmp_path)))}
    assert (back["a"].instances, back["b"].instances) == ((), None)
    assert {r.split for r in back.values()} == {"train"}
    rewrite(COCO_INSTANCES, back.values(), tmp_path / "b", space)
    assert len(read_all(open_tree(str(tmp_path / "b")))) == 2


def test_convert_both_ways(shared_data: Path, tmp_path: Path) -> None:
    """Through the runner's own writer: VOC's objects and regions, and back as pixels."""
    from connectors.reading import ReaderFactory
    from connectors.voc import VOC
    from connectors.writing import Chunk, WriterFactory
    from pipeline.relabel import Relabeller

    source = str(shared_data / "voc2012" / "VOCdevkit")
    voc, space = label_space("voc-21"), label_space("coco-80")
    samples = [s for s in VOC.list(open_tree(source), ()) if Path(s.path).is_file()]
    factory = WriterFactory(
        "coco-instances",
        str(tmp_path / "coco"),
        Relabeller.to(space, [voc]),
        ReaderFactory("voc", source),
    )
    result = factory()(Chunk(0, tuple(samples)))
    COCO_INSTANCES.finish(open_sink(str(tmp_path / "coco")), result.written, space, {})
    back = {(r.split, r.image_id): r for r in read_all(open_tree(str(tmp_path / "coco")))}
    assert result.done == len(back) == len(samples) - len(result.failures) > 0
    relabel = Relabeller.to(space, [voc])
    for sample in samples:
        if (sample.split, sample.image_id) not in back:
            continue
        moved, _ = relabel(VOC.read(open_tree(source), sample))
        found = back[sample.split, sample.image_id].instances or ()
        if moved.instances:
            assert [(i.category, i.rle) for i in found] == [
                (i.category, i.rle) for i in moved.instances
            ]
        elif moved.mask is not None:
            ids = masks.decode(moved.mask.bytes or b"")
            painted = masks.paint(found, moved.height, moved.width, space)
            np.testing.assert_array_equal(painted, ids)


# Bad input


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
    assert own.classes[0].isthing is True


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
