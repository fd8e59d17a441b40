"""Records of other formats as COCO panoptic: what panopticapi would say, and what is counted."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors.coco import COCO_INSTANCES
from connectors.coco_panoptic import COCO_PANOPTIC
from pipeline import masks
from pipeline.files import open_tree
from pipeline.label_space import LabelClass, LabelSpace
from pipeline.labels.relabel import Relabeller
from pipeline.record import Instance, Record
from tests.connectors.panoptic_tree import (
    SHAPE,
    SPACE,
    drawn_classes,
    judge,
    read_all,
    rgb2id,
)
from tests.connectors.trees import make_record, rewrite

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

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


def test_objects_of_coco_instances(shared_data: Path, tmp_path: Path) -> None:
    """Polygons and crowds of real images; images keep COCO's ids and licences."""
    tree = open_tree(str(shared_data / "coco/instances"))
    spaces = COCO_INSTANCES.label_spaces(tree)
    relabel = Relabeller.to(SPACE, spaces)
    records = [
        relabel(COCO_INSTANCES.read(tree, sample))[0]
        for sample in COCO_INSTANCES.list(tree, ["train"])
    ]
    written = rewrite(COCO_PANOPTIC, records, tmp_path, SPACE)
    assert {name for w in written for name in w.loss} <= {"instances_cut", "instances_covered"}
    annotations = judge(tmp_path)
    segments = [info for a in annotations for info in a["segments_info"]]
    covered = sum(w.loss.get("instances_covered", 0) for w in written)
    objects = [i for r in records for i in r.instances or ()]
    assert len(segments) == len(objects) - covered
    assert sum(i["iscrowd"] for i in segments) == sum(i.iscrowd for i in objects) > 0
    before = json.loads(
        (shared_data / "coco/instances/annotations/instances_train2017.json").read_text()
    )
    after = json.loads((tmp_path / "annotations/panoptic_train2017.json").read_text())
    images = {image["id"]: image for image in before["images"]}
    assert {image["id"]: image for image in after["images"]} == images
