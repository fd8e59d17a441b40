"""Cityscapes: the conformance suite, both kinds of labels, names and objects."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors import cityscapes_polygons
from connectors.cityscapes import CITYSCAPES
from connectors.cityscapes_names import decoded, encoded
from pipeline import masks
from pipeline.errors import (
    BadAnnotation,
    InputError,
    MissingFile,
    UnknownName,
    UnsafePath,
    UsageError,
)
from pipeline.files import open_tree
from pipeline.label_space import LabelClass, LabelSpace, label_space
from pipeline.labels.relabel import Relabeller
from pipeline.record import Instance
from tests.connectors import cityscapes_tree
from tests.connectors.cityscapes_tree import (
    AACHEN,
    SCENE,
    SCENE_OBJECTS,
    SCENE_VALUES,
    SHAPE,
    box,
    box_map,
    labels_of,
    name,
    numbers,
    pixels,
    polygons,
    put_labels,
    put_photo,
    read_all,
    read_one,
    wide,
)
from tests.connectors.conformance import Conformance, Made
from tests.connectors.trees import bare, grey, make_record, photo, put, rewrite

if TYPE_CHECKING:
    from pathlib import Path


SPACE = label_space("cityscapes-34")


class TestCityscapes(Conformance):
    connector = CITYSCAPES

    def make_tree(self, root: Path) -> Made:
        return cityscapes_tree.make_tree(root)


# Objects


@pytest.mark.parametrize(
    "held",
    [
        ("_labelIds.png", "_instanceIds.png"),
        ("_instanceIds.png",),
        ("_polygons.json",),
        ("_labelIds.png", "_polygons.json"),
    ],
)
def test_labels_and_objects_from_what_there_is(tmp_path: Path, held: tuple[str, ...]) -> None:
    """Each file of the four gives the same record; what is missing is made."""
    files: dict[str, bytes | str] = {
        "_labelIds.png": grey(labels_of(SCENE_VALUES)),
        "_instanceIds.png": wide(SCENE_VALUES),
        "_polygons.json": polygons(*SCENE),
    }
    put_labels(tmp_path, {tail: files[tail] for tail in held})
    record = read_one(tmp_path)
    assert record.mask is not None
    np.testing.assert_array_equal(masks.decode(record.mask.bytes or b""), labels_of(SCENE_VALUES))
    assert numbers(record) == SCENE_OBJECTS
    for instance in record.instances or ():
        here = np.argwhere(np.equal(SCENE_VALUES, instance.id))
        (top, left), (bottom, right) = here.min(0), here.max(0)
        assert instance.bbox == (left, top, right - left + 1, bottom - top + 1)
        assert instance.area == len(here)
        drawn = masks.rle_decode(instance.rle or "", *SHAPE)
        np.testing.assert_array_equal(np.argwhere(drawn), here)


def test_label_ids_alone_say_nothing_of_objects(tmp_path: Path) -> None:
    """They come back as unknown, although instanceIds are written for the tools."""
    put_labels(tmp_path / "one", {"_labelIds.png": grey(labels_of(SCENE_VALUES))})
    record = read_one(tmp_path / "one")
    assert record.instances is None
    rewrite(CITYSCAPES, [record], tmp_path / "two", SPACE)
    values = pixels(tmp_path / "two" / name("gtFine", "train", AACHEN, "_instanceIds.png"))
    np.testing.assert_array_equal(values, labels_of(SCENE_VALUES))
    assert bare(read_one(tmp_path / "two")) == bare(record)


def test_numbers_with_gaps_are_kept(tmp_path: Path) -> None:
    values = box_map((7, box(0, 0, 31, 23)), (26007, box(1, 1, 3, 3)), (26999, box(5, 5, 9, 9)))
    put_labels(
        tmp_path, {"_labelIds.png": grey(labels_of(values)), "_instanceIds.png": wide(values)}
    )
    record = read_one(tmp_path)
    assert [i.id for i in record.instances or ()] == [26007, 26999]
    rewrite(CITYSCAPES, [record], tmp_path / "again", SPACE)
    again = pixels(tmp_path / "again" / name("gtFine", "train", AACHEN, "_instanceIds.png"))
    assert again.dtype == np.uint16
    np.testing.assert_array_equal(again, values)


def test_a_sliver_on_which_the_files_disagree(tmp_path: Path) -> None:
    """The labels count, and the extra says how many pixels it was; more is an error."""
    ids = labels_of(SCENE_VALUES)
    ids[0, 31] = 8
    values = np.zeros((240, 320), np.uint16)
    big = np.zeros((240, 320), np.uint8)
    values[:24, :32], big[:24, :32] = SCENE_VALUES, ids
    files: dict[str, bytes | str] = {"_labelIds.png": grey(big), "_instanceIds.png": wide(values)}
    put_labels(tmp_path, files)
    put(tmp_path, name("leftImg8bit", "train", AACHEN, ".png"), photo((240, 320)))
    assert read_one(tmp_path).extras()["disagreeing_pixels"] == 1
    big[100:, 100:102] = 11
    put_labels(tmp_path, {"_labelIds.png": grey(big)})
    put(tmp_path, name("leftImg8bit", "train", AACHEN, ".png"), photo((240, 320)))
    with pytest.raises(BadAnnotation, match="281 pixels"):
        read_one(tmp_path)


def thing(number: int, category: int, area: list[list[int]], **others: Any) -> Instance:
    rle = masks.rle_encode(box_map((1, area)).astype(np.uint8))
    return Instance(number, category, None, None, rle=rle, **others)


def test_objects_of_another_format(tmp_path: Path) -> None:
    """They are numbered within their class; what has no place is counted."""
    ids = np.full(SHAPE, 7, np.uint8)
    ids[0:6, 0:30] = 26
    record = replace(
        make_record(ids, SPACE, "2007_000032", "train"),
        dataset="voc",
        instances=(
            thing(1, 26, box(0, 0, 5, 5)),
            thing(2, 26, box(10, 0, 15, 9), score=0.5),  # reaches beyond its class
            thing(3, 7, box(0, 10, 5, 15)),  # a road is no object
            thing(4, 26, box(20, 0, 22, 5), iscrowd=True),
            Instance(5, 26, (1, 1, 2, 2), 4.0),
            thing(6, 26, box(0, 0, 2, 2), extra='{"part_of": 1}'),
        ),
    )
    (written,) = rewrite(CITYSCAPES, [record], tmp_path, SPACE)
    assert written.loss == {
        "instances": 2, "instance_ids": 3, "instance_masks": 1, "instance_parts": 1,
        "instance_scores": 1,
    }  # fmt: skip
    stem = "voc/voc_2007-000032_id"
    values = pixels(tmp_path / name("gtFine", "train", stem, "_instanceIds.png"))
    expected = ids.astype(np.uint16)
    expected[0:6, 0:6], expected[0:6, 10:16] = 26000, 26001
    np.testing.assert_array_equal(values, expected)
    back = read_one(tmp_path)
    assert back.image_id == "2007_000032"
    assert numbers(back) == [(26, 26, True), (26000, 26, False), (26001, 26, False)]
    rewrite(CITYSCAPES, [back], tmp_path / "again", SPACE)
    assert (tmp_path / "again" / name("gtFine", "train", stem, "_labelIds.png")).exists()


def test_objects_without_a_mask_are_painted(tmp_path: Path) -> None:
    record = replace(
        make_record(None, SPACE, "x", "val"),
        image=make_record(np.zeros(SHAPE, np.uint8), SPACE, "x", "val").image,
        height=SHAPE[0],
        width=SHAPE[1],
        instances=(thing(1, 24, box(0, 0, 5, 5)), thing(2, 24, box(3, 3, 4, 4))),
    )
    (written,) = rewrite(CITYSCAPES, [record], tmp_path, SPACE)
    assert written.loss == {"instance_ids": 2, "instance_masks": 1}
    back = read_one(tmp_path)
    assert [(i.id, i.area) for i in back.instances or ()] == [(24000, 32.0), (24001, 4.0)]
    assert {c.id: c.pixels for c in back.classes or ()} == {0: 24 * 32 - 36, 24: 36}


def test_more_objects_of_a_class_than_numbers(tmp_path: Path) -> None:
    ids = np.full((40, 60), 26, np.uint8)
    flags = np.eye(1002, 2400, dtype=np.uint8).reshape(1002, 40, 60)
    crowd = tuple(
        Instance(n, 26, None, 1.0, rle=masks.rle_encode(flag)) for n, flag in enumerate(flags)
    )
    record = replace(make_record(ids, SPACE, "x", "train"), instances=crowd)
    (written,) = rewrite(CITYSCAPES, [record], tmp_path, SPACE)
    assert written.loss == {"instances": 2, "instance_ids": 1000}
    values = pixels(
        tmp_path / name("gtFine", "train", "elsewhere/elsewhere_x_id", "_instanceIds.png")
    )
    assert set(np.unique(values)) == {26, *range(26000, 27000)}


def test_classes_that_do_not_fit_sixteen_bits(tmp_path: Path) -> None:
    classes = (LabelClass(65, "a", (1, 2, 3), True), LabelClass(66, "b", (4, 5, 6), True))
    space = LabelSpace("many", classes, 255)
    ids = np.full(SHAPE, 65, np.uint8)
    record = make_record(ids, space, "x", "train")
    with_objects = replace(record, instances=(thing(1, 65, box(0, 0, 5, 5)),))
    rewrite(CITYSCAPES, [with_objects], tmp_path, space)
    assert numbers(read_one(tmp_path)) == [(65, 65, True), (65000, 65, False)]
    record = make_record(np.full(SHAPE, 66, np.uint8), space, "x", "train")
    rewrite(CITYSCAPES, [record], tmp_path, space)  # without objects it fits
    assert read_one(tmp_path).instances is None
    objects = (thing(1, 66, box(0, 0, 5, 5)), thing(2, 65, box(5, 5, 2, 2)))
    written = rewrite(CITYSCAPES, [replace(record, instances=objects)], tmp_path, space)
    assert written[0].loss["instances"] == 1
    assert [c.id for c in read_one(tmp_path).classes or ()] == [66]
    wider = label_space("nyu-894")
    record = make_record(np.full(SHAPE, 700, np.uint16), wider, "x", "train")
    with pytest.raises(UsageError, match="8 bits"):
        rewrite(CITYSCAPES, [record], tmp_path, wider)


def test_objects_of_other_classes_come_back(tmp_path: Path) -> None:
    """`--label-space keep`: the classes lie in classes.tsv, the polygons bear their names."""
    space = label_space("coco-panoptic-133")
    bus = space.by_name["bus"].id
    ids = np.full(SHAPE, space.ignore_index, np.uint8)
    ids[2:9, 2:9] = bus
    record = replace(
        make_record(ids, space, "a b", "train"),
        instances=(thing(bus * 1000, bus, box(2, 2, 8, 8)),),
    )
    (written,) = rewrite(CITYSCAPES, [record], tmp_path, space)
    assert written.loss == {}
    back = read_one(tmp_path)
    assert numbers(back) == [(bus * 1000, bus, False)]
    stem = "elsewhere/elsewhere_a~20b_id"
    for tail in ("_labelIds.png", "_instanceIds.png"):
        (tmp_path / name("gtFine", "train", stem, tail)).unlink()
    drawn = read_one(tmp_path)
    assert bare(drawn) == bare(back)


# Polygons


def test_polygons_come_back_byte_for_byte_when_rasters_are_there(tmp_path: Path) -> None:
    text = polygons(*SCENE, note="ünïcode").replace("\n", "\r\n")
    put_labels(tmp_path / "one", {"_polygons.json": text, "_instanceIds.png": wide(SCENE_VALUES)})
    rewrite(CITYSCAPES, read_all(tmp_path / "one"), tmp_path / "two", SPACE)
    written = tmp_path / "two" / name("gtFine", "train", AACHEN, "_polygons.json")
    assert written.read_bytes() == text.encode()


def test_deleted_objects_and_plates_are_not_drawn(tmp_path: Path) -> None:
    content = json.loads(
        polygons(
            ("sky", box(0, 0, 31, 23)),
            ("car", box(0, 0, 9, 9)),
            SCENE[4],
            ("license plategroup", SCENE[4][1]),
        )
    )
    content["objects"][1]["deleted"] = 1
    put_labels(tmp_path, {"_polygons.json": json.dumps(content)})
    record = read_one(tmp_path)
    assert [(c.id, c.pixels) for c in record.classes or ()] == [(23, 24 * 32)]
    assert record.instances == ()


def test_polygons_may_leave_the_image(tmp_path: Path) -> None:
    put_labels(tmp_path, {"_polygons.json": polygons(("sky", box(-50, -3, 40, 3)))})
    assert [(c.id, c.pixels) for c in read_one(tmp_path).classes or ()] == [(0, 640), (23, 128)]


def test_polygons_are_traced_anew_for_other_classes(tmp_path: Path) -> None:
    """A label that a remap changed must not stand in the polygons as it was."""
    put_labels(tmp_path / "one", {"_polygons.json": polygons(*SCENE)})
    space = label_space("cityscapes-19")
    relabel = Relabeller.to(space, [label_space("cityscapes-34")])
    record, _ = relabel(read_one(tmp_path / "one"))
    assert record.mask is not None
    ids = np.where(labels_of(SCENE_VALUES) == 26, 13, 255).astype(np.uint8)
    cell = masks.encode(ids, space.palette())
    record = replace(record, mask=replace(record.mask, bytes=cell), instances=None)
    (written,) = rewrite(CITYSCAPES, [record], tmp_path / "two", space)
    assert written.loss == {"polygons": 1}
    path = tmp_path / "two" / name("gtFine", "train", AACHEN, "_polygons.json")
    labels = {o["label"] for o in json.loads(path.read_text())["objects"]}
    assert labels == {"car", "unlabeled"}
    back = read_one(tmp_path / "two")
    assert back.mask is not None
    assert back.mask.bytes == cell


@pytest.mark.parametrize("counted", [True, False])
def test_traced_polygons_draw_nearly_the_map(counted: bool) -> None:
    """Boxes over boxes: holes, pieces and single pixels."""
    shares = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        values = np.full((90, 120), 7, np.uint16)
        for n in range(12):
            top, left = rng.integers(0, (90, 120))
            value = (26000 + n if counted else 26) if n % 2 else rng.choice([0, 17, 23])
            values[top : top + rng.integers(1, 40), left : left + rng.integers(1, 50)] = value
        data = cityscapes_polygons.trace(values, SPACE, counted=counted)
        _, content = cityscapes_polygons.parse(data, [values.shape], "made")
        drawn = cityscapes_polygons.draw(content, SPACE, "made")
        shares.append((labels_of(drawn) == labels_of(values)).mean())
        objects = [o for o in content["objects"] if o["label"] == "car"]
        if counted:
            assert len(objects) == len(np.unique(values[values >= 1000]))
    assert np.mean(shares) > (0.98 if counted else 0.995)


# Folders


def test_coarse_labels_where_there_are_no_fine_ones(tmp_path: Path) -> None:
    text = polygons(("sky", box(0, 0, 31, 23)))
    put_labels(tmp_path, {"_polygons.json": text}, "gtCoarse", "train_extra")
    put_labels(tmp_path, {"_polygons.json": text}, "gtCoarse", "val")
    put_labels(tmp_path, {"_polygons.json": polygons(*SCENE)}, "gtFine", "val")
    coarse, fine = read_all(tmp_path)
    assert (coarse.split, coarse.extras()["gt"]) == ("train", "gtCoarse")
    assert coarse.extras()["folder"] == "train_extra"
    assert (fine.extras()["gt"], fine.extras()["also"]) == ("gtFine", "gtCoarse")
    assert numbers(fine) == SCENE_OBJECTS
    assert [r.extras().get("folder") for r in read_all(tmp_path, "train_extra")] == ["train_extra"]
    assert read_all(tmp_path, "train") == []
    written = rewrite(CITYSCAPES, [coarse, fine], tmp_path / "two", SPACE)
    assert [w.loss for w in written] == [{}, {"coarse_labels": 1}]
    assert (tmp_path / "two" / name("gtCoarse", "train_extra", AACHEN, "_labelIds.png")).exists()
    assert bare(read_all(tmp_path / "two")[0]) == bare(coarse)


def test_photos_without_labels(tmp_path: Path) -> None:
    """Those of test and of other folders have none; those of train and val should."""
    for folder in ("train", "test", "demoVideo"):
        put_photo(tmp_path, folder, "stuttgart_00/stuttgart_00_000000_000001")
    tree = open_tree(str(tmp_path))
    train, test, video = CITYSCAPES.list(tree, ())
    with pytest.raises(MissingFile, match=r"labelIds.*gtCoarse archive"):
        CITYSCAPES.read(tree, train)
    records = [CITYSCAPES.read(tree, sample) for sample in (test, video)]
    assert [(r.split, r.mask) for r in records] == [("test", None), ("unlabelled", None)]
    assert list(CITYSCAPES.list(tree, ["unlabelled"])) == [video]
    assert list(CITYSCAPES.list(tree, ["demoVideo"])) == [video]
    with pytest.raises(UnknownName, match="demoVideo"):
        list(CITYSCAPES.list(tree, ["video"]))
    written = rewrite(CITYSCAPES, records, tmp_path / "two", SPACE)
    assert [w.loss for w in written] == [{}, {}]
    assert [bare(r) for r in read_all(tmp_path / "two")] == [bare(r) for r in records]
    loose = make_record(None, SPACE, "loose", "train")
    (lost,) = rewrite(CITYSCAPES, [loose], tmp_path / "three", SPACE)
    assert lost.loss == {"split_of_unlabelled": 1}


def test_labels_without_a_photo_are_listed(tmp_path: Path) -> None:
    put(tmp_path, name("gtFine", "train", AACHEN, "_polygons.json"), polygons(*SCENE))
    tree = open_tree(str(tmp_path))
    (sample,) = CITYSCAPES.list(tree, ())
    with pytest.raises(MissingFile, match=r"leftImg8bit\.png: .*leftImg8bit archive"):
        CITYSCAPES.read(tree, sample)


def test_files_of_other_folders_are_named(tmp_path: Path) -> None:
    put_labels(tmp_path, {"_labelIds.png": grey(np.zeros(SHAPE))})
    put(tmp_path, name("camera", "train", AACHEN, ".json"), "{}")
    put(tmp_path, name("disparity", "train", AACHEN, ".png"), b"not read")
    put(tmp_path, name("timestamp", "train_extra", AACHEN, ".txt"), "1")
    put(tmp_path, name("gtFine", "train", AACHEN, "_labelTrainIds.png"), b"not read")
    put(tmp_path, f"gtFine/cityscapes_panoptic_train/{AACHEN}_gtFine_labelIds.png", b"not read")
    record = read_one(tmp_path)
    assert record.extras()["files"] == {
        "camera": f"camera/train/{AACHEN}_camera.json",
        "disparity": f"disparity/train/{AACHEN}_disparity.png",
    }
    (written,) = rewrite(CITYSCAPES, [record], tmp_path / "two", SPACE)
    assert written.loss == {"referenced_files": 2}


def test_digest_follows_every_label_file(tmp_path: Path) -> None:
    tails = ("_labelIds.png", "_instanceIds.png", "_polygons.json")
    put_labels(tmp_path, dict.fromkeys(tails, b""))

    def digests() -> str:
        (sample,) = CITYSCAPES.list(open_tree(str(tmp_path)), ())
        return sample.digest

    seen = [digests()]
    for tail in tails:
        put_labels(tmp_path, {tail: b"longer"})
        seen.append(digests())
    put(tmp_path, name("camera", "train", AACHEN, ".json"), "{}")
    seen.append(digests())
    put(tmp_path, name("gtFine", "train", AACHEN, "_color.png"), b"not read")
    assert digests() == seen[-1]
    assert len(set(seen)) == 5


def test_names_that_no_order_can_merge(tmp_path: Path) -> None:
    for stem in ("a/x_1", "a/x_1_hflip", "a/x_2"):
        put_photo(tmp_path, "train", stem)
        put(tmp_path, name("gtFine", "train", stem, "_labelIds.png"), grey(np.full(SHAPE, 7)))
    tree = open_tree(str(tmp_path))
    samples = list(CITYSCAPES.list(tree, ()))
    ids = ["a/x_1", "a/x_1_hflip", "a/x_1_leftImg8bit.png", "a/x_2"]
    assert [s.image_id for s in samples] == ids
    with pytest.raises(InputError, match=r"train/a/x_1_leftImg8bit\.png: .* another frame's"):
        CITYSCAPES.read(tree, samples[2])
    for sample in (samples[0], samples[1], samples[3]):
        assert [c.id for c in CITYSCAPES.read(tree, sample).classes or ()] == [7]


# Names


@given(image_id=st.text(min_size=1, max_size=15), dataset=st.text(max_size=8))
def test_any_id_makes_a_name_that_reads_back(image_id: str, dataset: str) -> None:
    try:
        stem = encoded(image_id, dataset)
    except UnsafePath:
        return
    folder, _, file = stem.partition("/")
    assert folder
    assert "/" not in file
    assert len(file.split("_")) == 3
    assert file.split("_")[0] == folder
    assert not {".", "\0"} & set(stem)
    assert decoded(stem)[0] == image_id


@pytest.mark.parametrize(
    ("image_id", "stem"),
    [
        ("bonn/bonn_000001_000019", "bonn/bonn_000001_000019"),
        ("0001TP_006690", "camvid/camvid_0001TP-006690_id"),
        ("bonn/ulm_000001_000019", "camvid/camvid_bonn~2Fulm-000001-000019_id"),
        ("camvid/camvid_x_id", "camvid/camvid_camvid~2Fcamvid-x-id_id"),
        ("Straße", "camvid/camvid_Straße_id"),
    ],
)
def test_names_of_ids(image_id: str, stem: str) -> None:
    assert encoded(image_id, "camvid") == stem
    assert decoded(stem)[0] == image_id


@pytest.mark.parametrize("image_id", ["../up", "/root", "x" * 300, "a\0b"])
def test_ids_that_make_no_name(image_id: str) -> None:
    with pytest.raises(UnsafePath):
        encoded(image_id, "voc")
