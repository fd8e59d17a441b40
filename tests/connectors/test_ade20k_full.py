"""The full ADE20K releases: the conformance suite, real files, and what a release may get wrong."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from connectors.ade20k_full import ADE20K_FULL
from pipeline import masks
from pipeline.errors import (
    MissingFile,
    UnknownColour,
    UsageError,
)
from pipeline.files import open_tree
from pipeline.label_space import LabelClass, LabelSpace, find_remap, label_space
from pipeline.labels.relabel import Relabeller
from pipeline.record import File, Instance
from tests.connectors.ade20k_tree import (
    BASE,
    SHAPE,
    TOP,
    numbers_and_ranks,
    only,
    put_image_2021,
    records_of,
    rgb_of,
    street,
    tail,
)
from tests.connectors.conformance import Conformance, Made
from tests.connectors.trees import (
    bare,
    contents,
    make_record,
    photo,
    put,
    random_ids,
    rewrite,
)

if TYPE_CHECKING:
    from pathlib import Path

OLD = "ADE20K_2016_07_26/images/"
STREETS = {
    "train": ["urban/street/ADE_train_00000001", "urban/street/ADE_train_00000002"],
    "val": ["ADE_val_00000001"],
    "unlabelled": ["x/new"],
}
FOLDERS = {"train": "training", "val": "validation", "unlabelled": "unlabelled"}


class TestAde20kFull(Conformance):
    connector = ADE20K_FULL
    own_classes = True
    image_suffix = ".jpg"

    def make_tree(self, root: Path) -> Made:
        ids = {}
        for split in ("train", "val"):
            for n, name in enumerate(STREETS[split]):
                stem = f"{BASE}{FOLDERS[split]}/{name}"
                numbers = street(n)
                put_image_2021(root, stem, numbers, n)
                ids[f"{split}/{name}"] = numbers.astype(np.uint16)
        put(root, f"{BASE}unlabelled/x/new.jpg", photo(SHAPE, ".jpg"))
        ids["unlabelled/x/new"] = np.zeros((0, 0), np.uint16)
        name = f"{BASE}validation/ADE_val_00000001"
        return Made(
            STREETS,
            ids,
            "ADE_val_00000001",
            f"{name}.jpg",
            f"{name}_seg.png",
            tuple(f"{BASE}{FOLDERS[s]}/{n}.json" for s in ("train", "val") for n in STREETS[s]),
        )

    def spoil(self, mask: Path) -> None:
        mask.write_bytes(rgb_of(np.full(SHAPE, 6000), np.zeros(SHAPE, int)))


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """Return a dataset of one image, training/a."""
    put_image_2021(tmp_path / "one", f"{BASE}training/a", street(1))
    return tmp_path / "one"


# Objects


def test_objects_link_through_pixels(one: Path) -> None:
    """Ids, ranks of blue and places in the list all differ."""
    record = only(one)
    assert record.instances is not None
    assert [(i.id, i.category, i.part_of) for i in record.instances] == [
        (0, 187, None), (3, 312, None), (6, 401, None), (9, 1439, None), (12, 2420, None),
        (99, 1439, 0),
    ]  # fmt: skip
    extras = [json.loads(i.extra or "{}") for i in record.instances]
    assert [extra["rank"] for extra in extras] == [5, 4, 3, 2, 1, 1]
    numbers = street(1)
    for instance in record.instances[:-1]:
        pixels = masks.rle_decode(instance.rle or "", *SHAPE)
        np.testing.assert_array_equal(pixels, numbers == instance.category)
    hidden = masks.rle_decode(extras[0]["hidden"], *SHAPE)
    assert np.flatnonzero(hidden).tolist() == np.flatnonzero(numbers == 312)[:2].tolist()
    assert extras[-1] == {"level": 1, "part_of": 0, "rank": 1}
    painted = masks.paint(
        record.instances, *SHAPE, ADE20K_FULL.label_spaces(open_tree(str(one)))[0]
    )
    np.testing.assert_array_equal(painted, numbers)


def test_masks_of_the_old_release(tmp_path: Path) -> None:
    """Objects by rank of blue; a part belongs to the whole that it lies on."""
    numbers, ranks = street(2), np.zeros(SHAPE, int)
    ranks[numbers == 401], ranks[numbers == 2420] = 2, 1
    numbers[ranks == 0] = 0
    plate = np.zeros(SHAPE, bool)
    plate.flat[np.flatnonzero(numbers == 401)[:4]] = True
    lost = np.zeros(SHAPE, bool)
    lost.flat[np.flatnonzero(numbers == 0)[:1]] = True
    stem = f"{OLD}training/s/street/a"
    put_image_2021(tmp_path, stem, numbers)
    shutil.rmtree(tmp_path / stem)
    (tmp_path / f"{stem}.json").unlink()
    put(tmp_path, f"{stem}_seg.png", rgb_of(numbers, ranks))
    put(tmp_path, f"{stem}_parts_1.png", rgb_of(np.where(plate | lost, 1439, 0), plate + 2 * lost))
    text = (
        '001 # 0 # 0 # sky # sky # ""\r\n002 # 0 # 1 # car, auto # car # "r\xe9d, big"\r\n'
        '001 # 1 # 0 # license plate # plate # ""\n'
    )
    (tmp_path / f"{stem}_atr.txt").write_bytes(text.encode("latin-1"))
    record = only(tmp_path)
    assert [(i.id, i.category, i.part_of, i.area) for i in record.instances or ()] == [
        (1, 2420, None, (numbers == 2420).sum()),
        (2, 401, None, (numbers == 401).sum()),
        (65537, 1439, 2, 4.0),
        (65538, 1439, -1, 1.0),
    ]
    extra = record.extras()
    assert (extra["annotation"], extra["encoding"], extra["release"]) == (text, "latin-1", "2017")
    (space,) = ADE20K_FULL.label_spaces(open_tree(str(tmp_path)))
    assert {c.id: c.name for c in space.classes if c.id} == {
        401: "car, auto", 1439: "license plate", 2420: "sky",
    }  # fmt: skip
    rewrite(ADE20K_FULL, [record], tmp_path / "target", space)
    assert bare(only(tmp_path / "target")) == bare(record)
    again = tmp_path / "target" / f"{stem}_atr.txt"
    assert again.read_bytes() == text.encode("latin-1")


def test_blue_that_objects_do_not_give_back_is_kept(one: Path, tmp_path: Path) -> None:
    """Blue values of another spread, and pixels of no object, come back as they were."""
    name = f"{BASE}training/a_seg.png"
    with Image.open(one / name) as image:
        pixels = np.array(image)
    pixels[:, :, 2][pixels[:, :, 2] == 255] = 254
    pixels[0, 0] = (0, 0, 77)
    Image.fromarray(pixels).save(one / name)
    record = only(one)
    rewrite(
        ADE20K_FULL, [record], tmp_path / "two", ADE20K_FULL.label_spaces(open_tree(str(one)))[0]
    )
    with Image.open(tmp_path / "two" / name) as image:
        np.testing.assert_array_equal(np.array(image), pixels)
    assert bare(only(tmp_path / "two")) == bare(record)


def test_types_of_values_vary(one: Path, tmp_path: Path) -> None:
    name = f"{BASE}training/a.json"
    note = json.loads((one / name).read_text())
    item = note["annotation"]["object"][-1]
    item |= {"id": "99", "name_ndx": 1439.0, "occluded": ["yes"], "attributes": None}
    item["parts"] = {"ispartof": [0], "part_level": "1"}
    text = "\ufeff" + json.dumps(note, indent=1).replace("license", "li\u00e7ense")
    (one / name).write_bytes(text.encode("utf-8"))
    record = only(one)
    assert (record.instances or ())[-1].part_of == 0
    rewrite(
        ADE20K_FULL, [record], tmp_path / "two", ADE20K_FULL.label_spaces(open_tree(str(one)))[0]
    )
    assert (tmp_path / "two" / name).read_bytes() == (one / name).read_bytes()


# Records of other formats


def test_objects_of_another_format(tmp_path: Path) -> None:
    """Overlaps become hidden pixels, parts keep their whole, a box keeps its corners."""
    space = label_space("coco-80")
    boxes = [(0, 8, 0, 10), (4, 10, 5, 14), (5, 6, 6, 8)]
    areas = [np.zeros(SHAPE, bool) for _ in boxes]
    for area, (top, bottom, left, right) in zip(areas, boxes, strict=True):
        area[top:bottom, left:right] = True
    person, car, *_ = space.train_ids
    objects = (
        Instance(7, person, None, None, rle=masks.rle_encode(areas[0])),
        Instance(5_000_000_001, car, None, None, rle=masks.rle_encode(areas[1]), score=0.5),
        Instance(3, car, None, None, rle=masks.rle_encode(areas[2]), extra='{"part_of": 7}'),
        Instance(4, car, (1.0, 2.0, 3.0, 4.0), None, iscrowd=True),
    )
    blank = make_record(None, space, "street 0/a.b", "train", ".jpg")
    image = make_record(np.ones(SHAPE, np.uint8), space, "", "", ".jpg").image
    record = replace(blank, height=SHAPE[0], width=SHAPE[1], image=image, instances=objects)
    (written,) = rewrite(ADE20K_FULL, [record], tmp_path, space)
    assert written.loss == {"instance_scores": 1, "crowds": 1, "instance_masks": 1}
    back = only(tmp_path)
    assert (back.image_id, back.label_space) == ("street 0/a.b", "coco-80")
    found = {i.id: i for i in back.instances or ()}
    assert {k: (i.category, i.part_of) for k, i in found.items()} == {
        7: (person, None), 5_000_000_001: (car, None), 3: (car, 7), 4: (car, None),
    }  # fmt: skip
    assert found[4].bbox == (1.0, 2.0, 3.0, 4.0)
    seen = masks.rle_decode(found[7].rle or "", *SHAPE) == 1
    hidden = masks.rle_decode(json.loads(found[7].extra or "")["hidden"], *SHAPE) == 1
    np.testing.assert_array_equal(seen | hidden, areas[0])
    np.testing.assert_array_equal(hidden, areas[0] & areas[1])
    seg = tmp_path / BASE / "training/street 0/a.b_seg.png"
    numbers, ranks = numbers_and_ranks(seg.read_bytes())
    shift = int(0 in space.by_id and space.ignore_index != 0)
    expected = np.where(areas[1], car, np.where(areas[0], person, -shift)) + shift
    np.testing.assert_array_equal(numbers, expected)
    np.testing.assert_array_equal(ranks, np.where(areas[1], 2, areas[0]))


def test_class_zero_moves_up_and_comes_back(tmp_path: Path) -> None:
    space = label_space("cityscapes-19")
    ids = np.array([[0, 0, 1], [18, 255, 255]], np.uint8)
    rewrite(ADE20K_FULL, [make_record(ids, space, "a", "val", ".jpg")], tmp_path, space)
    numbers, _ = numbers_and_ranks((tmp_path / f"{BASE}validation/a_seg.png").read_bytes())
    np.testing.assert_array_equal(numbers, [[1, 1, 2], [19, 0, 0]])
    index = pickle.loads((tmp_path / TOP / "index_ade20k.pkl").read_bytes())
    assert index["objectnames"][0] == space.by_id[0].name
    record = only(tmp_path)
    assert record.mask is not None
    np.testing.assert_array_equal(masks.decode(record.mask.bytes or b""), ids)
    assert ADE20K_FULL.label_spaces(open_tree(str(tmp_path))) == (space,)


def test_classes_beyond_red_and_green(tmp_path: Path) -> None:
    space = LabelSpace("wide", (LabelClass(6656, "a", (0, 0, 0)),), 0)
    record = make_record(np.zeros((2, 2), np.uint16), space, "a", "val", ".jpg")
    with pytest.raises(UsageError, match="6655"):
        rewrite(ADE20K_FULL, [record], tmp_path, space)


def test_labels_that_were_replaced_are_not_written_from_the_annotation(
    one: Path, tmp_path: Path
) -> None:
    """In the classes of SceneParsing the JSON is made anew; the record's own stays as it was."""
    (space,) = ADE20K_FULL.label_spaces(open_tree(str(one)))
    target = label_space("ade20k-150")
    moved, loss = Relabeller.to(target, [space])(only(one))
    rewrite(ADE20K_FULL, [moved], tmp_path / "two", target)
    back = only(tmp_path / "two")
    assert back.label_space == "ade20k-150"
    assert {target.by_id[i.category].name for i in back.instances or ()} == {
        "bicycle, bike, wheel, cycle", "building, edifice", "sky",
        "car, auto, automobile, machine, motorcar",
    }  # fmt: skip
    assert loss.to_void == {"license plate": int((street(1) == 1439).sum())}


def test_ids_that_start_alike(tmp_path: Path) -> None:
    """Files of 1, 10, 1_s, 1_seg, instance_1 and 1/2 do not mix."""
    space, names = label_space("camvid-11"), ["1", "10", "1_s", "1_seg", "instance_1", "1/2", "1.j"]
    rows = [
        make_record(random_ids(range(12), SHAPE, n), space, name, "train", ".jpg")
        for n, name in enumerate(names)
    ]
    rewrite(ADE20K_FULL, rows, tmp_path, space)
    back = {r.image_id: r for r in records_of(tmp_path)}
    assert set(back) == set(names)
    assert all(bare(back[r.image_id]).mask == bare(r).mask for r in rows)


# Real files


def test_real_2021(shared_data: Path, tmp_path: Path) -> None:
    """All files come back: the JSON to the byte, every mask to the pixel."""
    source = shared_data / "ade20k/full2021"
    (space,) = ADE20K_FULL.label_spaces(open_tree(str(source)))
    record = only(source)
    stem = source / BASE / "training/urban/street/ADE_train_00016900"
    note = json.loads(tail(stem, ".json").read_text())["annotation"]
    assert record.instances is not None
    numbers, ranks = numbers_and_ranks(tail(stem, "_seg.png").read_bytes())
    parts, part_ranks = numbers_and_ranks(tail(stem, "_parts_1.png").read_bytes())
    assert record.mask is not None
    np.testing.assert_array_equal(masks.decode(record.mask.bytes or b""), numbers)
    for item, instance in zip(note["object"], record.instances, strict=True):
        x, y, w, h = map(int, instance.bbox or ())
        box = slice(y, y + h), slice(x, x + w)
        assert (instance.id, instance.category) == (item["id"], item["name_ndx"])
        assert space.by_id[instance.category].name == item["name"]
        seen = masks.rle_decode(instance.rle or "", *numbers.shape)[box] == 1
        level = item["parts"]["part_level"]
        assert instance.part_of == (item["parts"]["ispartof"] if level else None)
        classes, order = (parts, part_ranks) if level else (numbers, ranks)
        assert (classes[box][seen] == item["name_ndx"]).all()
        assert (order[box][seen] == json.loads(instance.extra or "")["rank"]).all()
    (written,) = rewrite(ADE20K_FULL, [record], tmp_path, space)
    assert written.loss == {}
    one, two = contents(source), contents(tmp_path)
    assert set(two) - set(one) == {f"{TOP}index_ade20k.pkl"}
    for name, data in one.items():
        if name.endswith(".png"):
            with Image.open(source / name) as a, Image.open(tmp_path / name) as b:
                assert a.mode == b.mode
                assert np.array_equal(np.array(a), np.array(b)), name
        else:
            assert two[name] == data, name


def test_real_2017(shared_data: Path, tmp_path: Path) -> None:
    """The ranks of the old layout are the numbers of its lines; names and classes fit."""
    source = shared_data / "ade20k/full2017_derived"
    (space,) = ADE20K_FULL.label_spaces(open_tree(str(source)))
    record = only(source)
    stem = source / OLD / "training/s/street/ADE_train_00016900"
    lines = [line.split(" # ") for line in tail(stem, "_atr.txt").read_text().splitlines()]
    named = {(int(line[1]) << 16) + int(line[0]): line[3] for line in lines}
    found = {i.id: space.by_id[i.category].name for i in record.instances or ()}
    assert found == named
    cars = {i.part_of for i in record.instances or () if i.part_of is not None}
    assert {named[car] for car in cars} == {"car, auto, automobile, machine, motorcar"}
    (written,) = rewrite(ADE20K_FULL, [record], tmp_path, space)
    assert written.loss == {}
    assert bare(only(tmp_path)) == bare(record)
    for end in ("_seg.png", "_parts_1.png"):
        name = f"{OLD}training/s/street/ADE_train_00016900{end}"
        with Image.open(source / name) as a, Image.open(tmp_path / name) as b:
            np.testing.assert_array_equal(np.array(b), np.array(a))
    # Both releases' classes of one photo agree.
    newer = ADE20K_FULL.label_spaces(open_tree(str(shared_data / "ade20k/full2021")))
    assert newer == (space,)


def test_real_classes_are_those_of_sceneparsing(shared_data: Path, tmp_path: Path) -> None:
    """Full classes, shrunk to 512 rows by nearest pixel and mapped, are SceneParsing's mask."""
    source, old = shared_data / "ade20k", "training/a/airport_terminal/ADE_train_00000001"
    data = (source / f"full2016_seg/{OLD}{old}_seg.png").read_bytes()
    put(tmp_path, f"{OLD}{old}_seg.png", data)
    with Image.open(source / f"full2016_seg/{OLD}{old}_seg.png") as image:
        image.save(tmp_path / f"{OLD}{old}.jpg")
    put(tmp_path, f"{OLD}{old}_atr.txt", "")
    record = only(tmp_path)
    (space,) = ADE20K_FULL.label_spaces(open_tree(str(tmp_path)))
    lines = (source / "sceneparsing/mapFromADE.txt").read_text().splitlines()
    table = {int(full): int(cut) for cut, full in (line.split()[:2] for line in lines if line)}
    remap = find_remap(space, label_space("ade20k-150"))
    assert {i: int(remap.lut[i]) for i in space.ids} == {i: table.get(i, 0) for i in space.ids}
    assert record.mask is not None
    mapped = remap.apply(masks.decode(record.mask.bytes or b""))
    numbers, _ = numbers_and_ranks(data)
    np.testing.assert_array_equal(mapped, np.array([table.get(n, 0) for n in range(6656)])[numbers])
    cut = source / "sceneparsing/ADEChallengeData2016/annotations/training/ADE_train_00000001.png"
    with Image.open(cut) as image:
        small = np.array(image)
    rows, columns = (
        np.floor((np.arange(n) + 0.5) * full / n).astype(int)
        for n, full in zip(small.shape, mapped.shape, strict=True)
    )
    assert (mapped[np.ix_(rows, columns)] == small).mean() > 0.999


def test_third_party_fixture_is_refused_by_name(shared_data: Path) -> None:
    """Its red values are no class numbers; the listing and the classes are read all the same."""
    for release in ("2017", "2020"):
        tree = open_tree(str(shared_data / f"ade20k/fixture_datumaro/ade20k{release}"))
        samples = list(ADE20K_FULL.list(tree, ()))
        assert [s.split for s in samples] == ["train", "val"]
        for sample in samples:
            with pytest.raises(UnknownColour, match="no multiple of 10"):
                ADE20K_FULL.read(tree, sample)


def test_missing_photo_of_a_real_mask(shared_data: Path) -> None:
    tree = open_tree(str(shared_data / "ade20k/full2016_seg"))
    (sample,) = ADE20K_FULL.list(tree, ())
    with pytest.raises(MissingFile, match=r"ADE_train_00000001\.jpg"):
        ADE20K_FULL.read(tree, sample)


def test_unlabelled_records_of_either_release(tmp_path: Path) -> None:
    record = make_record(None, label_space("camvid-11"), "a", "train", ".jpg")
    (written,) = rewrite(ADE20K_FULL, [record], tmp_path, label_space("camvid-11"))
    assert written.loss == {"split_of_unlabelled": 1}
    back = only(tmp_path)
    assert (back.split, back.mask, back.instances) == ("unlabelled", None, None)
    assert back.image == File(str(tmp_path / f"{BASE}unlabelled/a.jpg"))
