"""NYU Depth v2 as folders: the conformance suite, other layouts, bad files, real files."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from connectors.nyuv2 import NYUV2
from connectors.nyuv2_objects import instances_of, numbers_of
from connectors.nyuv2_splits import official_split
from pipeline import depth, masks
from pipeline.errors import (
    BadAnnotation,
    CorruptMask,
    InputError,
    LabelOutOfRange,
    LayoutError,
    MissingFile,
    SizeMismatch,
)
from pipeline.files import open_tree
from pipeline.label_space import LABEL_SPACES, find_remap, label_space
from pipeline.record import Depth, Instance
from tests.connectors.conformance import Conformance, Made
from tests.connectors.nyu_tree import frames, png, png16, read_splits, write_folders
from tests.connectors.trees import bare, copy_tree, make_record, put, rewrite

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.record import Record

FULL = label_space("nyu-894")


def records(root: Path) -> list[Record]:
    tree = open_tree(str(root))
    return [NYUV2.read(tree, sample) for sample in NYUV2.list(tree, ())]


def pixels(path: Path) -> NDArray[Any]:
    with Image.open(path) as image:
        return np.array(image)


class TestNyuV2(Conformance):
    connector = NYUV2

    def make_tree(self, root: Path) -> Made:
        names, arrays = ["0001", "0003", "0004", "1449"], frames(4)
        write_folders(root, names, arrays)
        splits = {"test": ["0001", "1449"], "train": ["0003", "0004"]}
        ids = {f"{s}/{n}": arrays["labels"][names.index(n)] for s in splits for n in splits[s]}
        return Made(splits, ids, "0003", "image/0003.png", "label/0003.png")

    def spoil(self, mask: Path) -> None:
        mask.write_bytes(png16(np.full(pixels(mask).shape, 895)))


class TestNyuV2Lists(TestNyuV2):
    """Lists decide, and keep their order; other names than numbers will do."""

    def make_tree(self, root: Path) -> Made:
        arrays = frames(5)
        write_folders(root, ["a b/c.d", "0001", "x", "y", "0009"], arrays)
        put(root, "train.txt", "y\n0001\n")
        put(root, "val.txt", "a b/c.d\n")
        put(root, "unlabelled.txt", "x\n")
        (root / "label/x.png").unlink()
        ids = {
            "val/a b/c.d": arrays["labels"][0], "train/0001": arrays["labels"][1],
            "unlabelled/x": np.zeros(0), "train/y": arrays["labels"][3],
        }  # fmt: skip
        splits = {"train": ["0001", "y"], "val": ["a b/c.d"], "unlabelled": ["x"]}
        same = "train.txt", "val.txt", "unlabelled.txt"
        return Made(splits, ids, "0001", "image/0001.png", "label/0001.png", same)


class TestNyu40(Conformance):
    """The layout that is passed around most: 40 classes, photos as JPEG or PNG, no depth."""

    connector = NYUV2

    def make_tree(self, root: Path) -> Made:
        names, rng = ["0001", "0002", "0003", "0005"], np.random.default_rng(0)
        ids, splits = {}, {"test": ["0001", "0002"], "train": ["0003", "0005"]}
        for split, group in splits.items():
            for name in group:
                ids[f"{split}/{name}"] = rng.integers(0, 41, (8, 9), np.uint8)
                put(root, f"images/{name}.png", png(rng.integers(0, 256, (8, 9, 3))))
                put(root, f"label40/{name}.png", png(ids[f"{split}/{name}"]))
                put(root, f"label13/{name}.png", png(np.zeros((8, 9))))
        assert len(names) == len(ids)
        return Made(splits, ids, "0002", "images/0002.png", "label40/0002.png")


def test_official_split(shared_data: Path) -> None:
    lists = read_splits(shared_data / "nyudv2/official_meta/splits.mat")
    assert [len(lists[key]) for key in ("trainNdxs", "testNdxs")] == [795, 654]
    for key, split in (("trainNdxs", "train"), ("testNdxs", "test")):
        assert {official_split(number) for number in lists[key]} == {split}


def test_every_label_space_leads_to_nyus(tmp_path: Path) -> None:
    for name in LABEL_SPACES:
        remap = find_remap(label_space(name), FULL)
        assert set(np.unique(remap.lut).tolist()) - {0}, name
    remap = find_remap(label_space("nyu-40"), FULL)
    for name in ("wall", "refridgerator", "shower curtain"):
        source = label_space("nyu-40").by_name[name].id
        assert remap.lut[source] == FULL.by_name[name].id


maps = hnp.array_shapes(min_dims=2, max_dims=2, max_side=9).flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.uint16, shape, elements=st.sampled_from([0, 1, 2, 255, 256, 894])),
        hnp.arrays(np.uint8, shape),
    )
)


@settings(deadline=None)
@given(maps)
def test_objects_come_back(both: tuple[NDArray[np.uint16], NDArray[np.uint8]]) -> None:
    labels, numbers = both
    instances, unlabelled = instances_of(labels, numbers, 0)
    pairs = {(int(a), int(b)) for a, b in zip(labels.flat, numbers.flat, strict=True)}
    assert {divmod(i.id, 256) for i in instances} == {p for p in pairs if 0 not in p}
    for i in instances:
        region = (labels == i.category) & (numbers == i.id % 256)
        assert i.area == region.sum()
        assert np.array_equal(masks.rle_decode(i.rle or "", *labels.shape), region)
    back, loss = numbers_of(instances[::-1], labels, 0, unlabelled, "x")
    assert loss == {}
    assert np.array_equal(back, numbers)


def square(number: int, category: int, box: tuple[int, int, int, int], **more: Any) -> Instance:
    x, y, w, h = box
    region = np.zeros((10, 10), bool)
    region[y : y + h, x : x + w] = True
    return Instance(number, category, None, None, rle=masks.rle_encode(region), **more)


def test_objects_of_other_datasets(tmp_path: Path) -> None:
    """They are numbered within their class; what does not fit is counted."""
    labels = np.zeros((10, 10), np.uint16)
    labels[:5], labels[5:] = 3, 4
    objects = (
        square(77, 3, (0, 0, 2, 2)),
        square(78, 3, (4, 0, 2, 2), score=0.5),
        square(79, 4, (0, 4, 4, 4), iscrowd=True),
        square(80, 4, (6, 0, 2, 2)),
        Instance(81, 4, (0, 0, 2, 2), 4.0),
    )
    record = replace(make_record(labels, FULL, "a", "train"), instances=objects)
    (written,) = rewrite(NYUV2, [record], tmp_path, FULL)
    assert written.loss == {
        "instances": 2, "instance_masks": 1, "instance_ids": 4, "instance_scores": 1, "crowds": 1,
    }  # fmt: skip
    numbers = pixels(tmp_path / "instance/a.png")
    assert numbers[0, 0] == 1
    assert numbers[0, 4] == 2
    assert numbers[5, 0] == 1
    assert numbers[4, 0] == 0 == numbers[0, 6]
    (back,) = records(tmp_path)
    assert [i.id for i in back.instances or ()] == [3 * 256 + 1, 3 * 256 + 2, 4 * 256 + 1]


def test_more_objects_of_a_class_than_have_a_number(tmp_path: Path) -> None:
    labels = np.full((1, 300), 9, np.uint16)
    rows = [np.arange(300)[None] == n for n in range(300)]
    objects = tuple(
        Instance(n + 1, 9, None, None, rle=masks.rle_encode(row)) for n, row in enumerate(rows)
    )
    record = replace(make_record(labels, FULL, "a", "train"), instances=objects)
    (written,) = rewrite(NYUV2, [record], tmp_path, FULL)
    assert written.loss["instances"] == 45
    (back,) = records(tmp_path)
    assert len(back.instances or ()) == 255


def test_record_with_objects_only(tmp_path: Path) -> None:
    record = make_record(None, FULL, "a", "train")
    region = np.zeros((5, 7), bool)
    region[1:3, 2:5] = True
    thing = Instance(1, 5, None, None, rle=masks.rle_encode(region))
    rewrite(NYUV2, [replace(record, instances=(thing,))], tmp_path, FULL)
    assert np.array_equal(pixels(tmp_path / "label/a.png"), region * 5)


@pytest.mark.parametrize(
    ("kind", "unit"), [(np.uint16, 0.001), (np.uint16, 0.0002), (np.float32, 1.0)]
)
@pytest.mark.parametrize("raw", [False, True])
def test_depth_comes_back(tmp_path: Path, kind: type[Any], unit: float, raw: bool) -> None:
    values = np.random.default_rng(0).integers(0, 9000, (5, 7)).astype(kind)
    values[0, 0] = np.nan if kind is np.float32 else 65535
    cell = depth.encode(values, values // 2 if raw else None)
    record = replace(make_record(None, FULL, "a", "test"), depth=Depth(None, cell, unit))
    (written,) = rewrite(NYUV2, [record], tmp_path, FULL)
    assert written.loss == {}
    (back,) = records(tmp_path)
    assert back.depth
    assert (back.depth.bytes, back.depth.metres_per_unit) == (cell, unit)
    shown = pixels(tmp_path / "depth_mm/a.png")
    metres = np.nan_to_num(values.astype(np.float64)) * unit
    assert np.array_equal(shown, np.clip(np.round(metres * 1000), 0, 65535))


def test_depth_that_is_elsewhere_is_counted(tmp_path: Path) -> None:
    record = replace(make_record(None, FULL, "a", "test"), depth=Depth("/gone/depth.png"))
    (written,) = rewrite(NYUV2, [record], tmp_path, FULL)
    assert written.loss == {"depth": 1}


def test_coarser_labels_are_derived(tmp_path: Path) -> None:
    ids = np.arange(895, dtype=np.uint16)[None]
    rewrite(NYUV2, [make_record(ids, FULL, "0001", "test")], tmp_path, FULL)
    forty = find_remap(FULL, label_space("nyu-40"))
    thirteen = find_remap(label_space("nyu-40"), label_space("nyu-13"))
    assert np.array_equal(pixels(tmp_path / "label40/0001.png"), forty.lut[ids])
    assert np.array_equal(pixels(tmp_path / "label13/0001.png"), thirteen.lut[forty.lut[ids]])


def test_forty_classes_are_written_as_such(tmp_path: Path) -> None:
    space, ids = label_space("nyu-40"), np.arange(41, dtype=np.uint8)[None]
    rewrite(NYUV2, [make_record(ids, space, "0001", "test")], tmp_path, space)
    assert not (tmp_path / "label").exists()
    assert not (tmp_path / "classes.tsv").exists()
    assert np.array_equal(pixels(tmp_path / "label40/0001.png"), ids)
    assert NYUV2.label_spaces(open_tree(str(tmp_path))) == (space,)


# Bad files


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    write_folders(root, ["0001", "0002"], frames(2))
    return root


def fails(root: Path, error: type[InputError], match: str) -> None:
    """The first image fails, the second is read."""
    tree = open_tree(str(root))
    one, two = NYUV2.list(tree, ())
    with pytest.raises(error, match=match):
        NYUV2.read(tree, one)
    NYUV2.read(tree, two)


def test_shifted_labels_are_refused(tmp_path: Path) -> None:
    for name, low in (("0001", 255), ("0002", 0)):
        ids = np.full((3, 3), 7)
        ids[0, 0] = low
        put(tmp_path, f"image/{name}.png", png(np.zeros((3, 3, 3))))
        put(tmp_path, f"label40/{name}.png", png(ids))
    fails(tmp_path, LabelOutOfRange, "add 1 to every value")


def test_number_map_of_another_size(root: Path) -> None:
    put(root, "instance/0001.png", png(np.zeros((3, 3))))
    fails(root, SizeMismatch, "instance/0001")


def test_number_map_of_large_numbers(root: Path) -> None:
    put(root, "instance/0001.png", png16(np.full((12, 16), 256)))
    fails(root, BadAnnotation, "256")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"metres_per_unit": "x"}', "[" * 100_000, "\xff"])
def test_bad_notes(root: Path, text: str) -> None:
    put(root, "meta/0001.json", text.encode("latin-1"))
    fails(root, BadAnnotation, "meta/0001")


@pytest.mark.parametrize("name", ["depth_mm/0001.png", "depth_raw_mm/0001.png"])
def test_truncated_depth(root: Path, name: str) -> None:
    data = (root / name).read_bytes()
    (root / name).write_bytes(data[: len(data) // 2])
    fails(root, CorruptMask, name)


def test_bad_depth_cell(root: Path) -> None:
    put(root, "depth/0001.tiff", b"no depth")
    fails(root, CorruptMask, "depth/0001")


def test_one_name_in_two_lists(root: Path) -> None:
    put(root, "train.txt", "0001\n0002\n")
    put(root, "test.txt", "0001\n")
    with pytest.raises(LayoutError, match=r"train\.txt and test\.txt"):
        list(NYUV2.list(open_tree(str(root)), ()))


def test_names_do_not_lead_outside(root: Path) -> None:
    put(root, "test.txt", "../../secret\n0001\n")
    tree = open_tree(str(root))
    bad, good = NYUV2.list(tree, ())
    with pytest.raises(InputError, match="secret"):
        NYUV2.read(tree, bad)
    NYUV2.read(tree, good)


# Real files


def test_real_folders(shared_data: Path, tmp_path: Path) -> None:
    """Image 1 comes back; image 9 has labels only, and fails by name."""
    for folder in ("image", "label40", "label13", "depth_mm"):
        copy_tree(shared_data / "nyudv2" / folder, tmp_path / "in" / folder)
    tree = open_tree(str(tmp_path / "in"))
    one, nine = NYUV2.list(tree, ())
    assert (one.image_id, one.split, nine.image_id) == ("0001", "test", "0009")
    with pytest.raises(MissingFile, match=r"image/0009\.png"):
        NYUV2.read(tree, nine)
    record = NYUV2.read(tree, one)
    space = label_space("nyu-40")
    assert record.label_space == space.name
    rewrite(NYUV2, [record], tmp_path / "out", space)
    for folder in ("label40", "label13", "depth_mm"):
        source = shared_data / "nyudv2" / folder / "0001.png"
        assert np.array_equal(pixels(tmp_path / "out" / folder / "0001.png"), pixels(source))
    image = (shared_data / "nyudv2/image/0001.png").read_bytes()
    assert (tmp_path / "out/image/0001.png").read_bytes() == image
    assert [bare(r) for r in records(tmp_path / "out")] == [bare(record)]
