"""COCO's instances: the conformance suite, the real files, pycocotools as the judge, bad input."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from connectors.coco import COCO_INSTANCES
from pipeline import masks
from pipeline.errors import BadAnnotation, UnsafePath
from pipeline.files import open_sink, open_tree
from pipeline.label_space import LabelClass, LabelSpace, label_space
from pipeline.record import Instance, Record
from tests.connectors.coco_tree import (
    CATEGORIES,
    SHAPE,
    annotation,
    dataset,
    image,
    judge,
    one_image,
    read_all,
    rewrite_with_facts,
)
from tests.connectors.conformance import Conformance, Made
from tests.connectors.trees import bare, make_record, photo, put, rewrite

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pycocotools.coco import COCO


pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools


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
            said = {a["id"]: a for a in truth.imgToAnns[record.extras()["image"]["id"]]}
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
        (1, 3),
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
    assert loss.attributes == {"image_ids": 2, "annotation_ids": 3}
    truth = judge(tmp_path / "b/annotations/instances_train2017.json")
    assert sorted(truth.imgs) == [1, 2, 3, 4]
    assert sorted(truth.anns) == [1, 2, 3, 7, 20, 50]
    back = read_all(open_tree(str(tmp_path / "b")))
    assert [len(r.instances or ()) for r in back] == [1, 2, 1, 2]
    parts = [[(i.id, i.part_of) for i in r.instances or ()] for r in back]
    assert parts == [[(50, None)], [(7, 20), (20, None)], [(1, None)], [(2, 3), (3, None)]]


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
        '{"image": 5}',
        '{"image": {"id": null}}',
        '{"image": {}, "x": 1}',
        '{"file": "../../outside", "image": {"id": 2}}',
        '{"suffix": 5, "image": {"id": 2}}',
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


def test_numbers_that_are_none(tmp_path: Path) -> None:
    space = label_space("coco-80")
    record = make_record(None, space, "a", "train")
    for odd in (math.nan, math.inf):
        instance = Instance(7, 3, bbox=(0.0, 0.0, odd, 1.0), area=1.0)
        with pytest.raises(BadAnnotation, match=r"object 7: .* no finite number"):
            rewrite(COCO_INSTANCES, [replace(record, instances=(instance,))], tmp_path, space)


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
    from pipeline.labels.relabel import Relabeller

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
