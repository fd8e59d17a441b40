"""SUN RGB-D: the conformance suite with and without the toolbox, its files, and what may be bad."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from connectors import sunrgbd_seg
from connectors.sunrgbd import SUNRGBD
from connectors.sunrgbd_depth import from_pixels, to_pixels
from connectors.sunrgbd_toolbox import official
from pipeline import depth, masks
from pipeline.errors import (
    CorruptMask,
    LabelOutOfRange,
    LayoutError,
    MissingFile,
    SizeMismatch,
    UnsafePath,
)
from pipeline.files import open_tree
from pipeline.label_space import label_space
from pipeline.record import Depth, Instance
from tests.connectors.conformance import Conformance, Made
from tests.connectors.sunrgbd_tree import (
    FOLDER,
    FRAME,
    FRAMES,
    NAMES,
    SHAPE,
    SPACE,
    again,
    index_json,
    pixels,
    polygon,
    random_depth,
    read,
    seg_mat,
    write_frame,
    write_toolbox,
)
from tests.connectors.trees import bare, make_record, photo, put, rewrite

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.files import Tree


class TestSunRgbd(Conformance):
    connector = SUNRGBD

    def make_tree(self, root: Path) -> Made:
        ids = {}
        splits: dict[str, list[str]] = {"test": [], "train": []}
        for seed, (name, split) in enumerate(FRAMES.items()):
            ids[f"{split}/{name}"] = write_frame(root, name, seed)
            splits[split].append(name)
        return Made(splits, ids, FRAME, f"{FOLDER}/image/img_0063.jpg", f"{FOLDER}/seg.mat")

    def spoil(self, mask: Path) -> None:
        mask.write_bytes(seg_mat(np.full(SHAPE, len(NAMES) + 1)))

    def test_missing_image(self, tree: Tree, root: Path, made: Made) -> None:
        """No image, no name: the error names the folder, and a file that would do."""
        (root / made.image).unlink()
        self.check_fails(tree, made, MissingFile, f"{FOLDER}/image/img_0063_raw.jpg")

    def test_mask_of_another_size(self, tree: Tree, root: Path, made: Made) -> None:
        put(root, made.mask or "", seg_mat(np.zeros((12, 15), np.uint8)))
        self.check_fails(tree, made, SizeMismatch, "seg.mat")

    def test_mask_that_is_a_jpeg(self, tree: Tree, root: Path, made: Made) -> None:
        put(root, made.mask or "", photo(SHAPE, ".jpg"))
        self.check_fails(tree, made, CorruptMask, "seg.mat")


class TestSunRgbdWithToolbox(TestSunRgbd):
    """The toolbox's lists and labels come first; its classes differ from seg.mat's here."""

    def make_tree(self, root: Path) -> Made:
        made = super().make_tree(root)
        names = list(FRAMES)
        splits = {"train": names[:2], "test": names[2:]}
        maps = {n: made.ids[f"{s}/{n}"] for n, s in FRAMES.items()}
        maps[names[3]] = np.full(SHAPE, 37, np.uint8)
        backwards = dict(reversed(maps.items()))
        lists = {"alltrain": names[:2], "alltest": names[2:], "train": names[:1], "val": [FRAME]}
        write_toolbox(root, backwards, lists)
        ids = {f"{s}/{n}": maps[n] for s, there in splits.items() for n in there}
        return replace(made, splits=splits, ids=ids)

    def test_missing_mask(self, tree: Tree, root: Path, made: Made) -> None:
        """The toolbox alone will do, and what has no seg.mat comes back without one."""
        (root / FOLDER / "seg.mat").unlink()
        record = SUNRGBD.read(tree, self.sample(tree, made))
        assert record.mask is not None
        found = masks.decode(record.mask.bytes or b"")
        np.testing.assert_array_equal(found, made.ids[f"train/{FRAME}"])
        assert "seg" not in record.extras()
        rewrite(SUNRGBD, [record], root.parent / "target", SPACE)
        (again,) = self.records(open_tree(str(root.parent / "target")))
        assert bare(again) == bare(replace(record, extra=again.extra))
        assert "seg" not in again.extras()

    def test_parts_of_train(self, tree: Tree) -> None:
        parts = [self.listed(tree, f"trainvalsplit.{part}") for part in ("train", "val")]
        assert [[(s.image_id, s.split) for s in part] for part in parts] == [
            [("kv1/NYUdata/NYU0001", "train")],
            [(FRAME, "train")],
        ]
        record = SUNRGBD.read(tree, parts[1][0])
        assert record.extras()["part"] == "val"

    def test_says_where_toolbox_and_labels_differ(self, tree: Tree, made: Made) -> None:
        *same, other = self.records(tree)
        assert all("toolbox_differs" not in record.extras() for record in same)
        assert other.extras()["toolbox_differs"] == SHAPE[0] * SHAPE[1]

    def test_damaged_toolbox(self, root: Path, made: Made) -> None:
        labels = root / "SUNRGBDtoolbox/Metadata/SUNRGBD2Dseg.mat"
        labels.write_bytes(labels.read_bytes()[:700])
        tree = open_tree(str(root))
        for sample in self.listed(tree):
            with pytest.raises(CorruptMask, match="SUNRGBD2Dseg"):
                SUNRGBD.read(tree, sample)
        put(root, "SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat", b"none")
        with pytest.raises(LayoutError, match="allsplit"):
            self.listed(tree)

    def test_listed_frames_that_are_not_there(
        self, root: Path, made: Made, caplog: pytest.LogCaptureFixture
    ) -> None:
        shutil.rmtree(root / FOLDER)
        assert len(self.listed(open_tree(str(root)))) == 3
        assert "3 of the 4 frames listed" in caplog.text

    def test_toolbox_labels_of_no_class(self, tree: Tree, root: Path, made: Made) -> None:
        labels = root / "SUNRGBDtoolbox/Metadata/SUNRGBD2Dseg.mat"
        with h5py.File(labels, "r+") as file:
            file["#refs#/2"][0, 0] = 38
        self.check_fails(open_tree(str(root)), made, LabelOutOfRange, "SUNRGBD2Dseg")


@pytest.fixture
def frame(tmp_path: Path) -> Path:
    """Return the folder of the one frame of a dataset."""
    write_frame(tmp_path / "set", FRAME, 1)
    return tmp_path / "set" / FOLDER


# Depth


@given(hnp.arrays(np.uint16, hnp.array_shapes(min_dims=2, max_dims=2)))
def test_depth_is_rotated_by_three_bits(stored: NDArray[np.uint16]) -> None:
    expected = [int(f"{p:016b}"[-3:] + f"{p:016b}"[:-3], 2) for p in stored.ravel().tolist()]
    assert from_pixels(stored).ravel().tolist() == expected
    np.testing.assert_array_equal(to_pixels(from_pixels(stored)), stored)


@pytest.mark.parametrize("there", [("depth",), ("depth_bfx",), ("depth", "depth_bfx"), ()])
def test_depth_maps_that_are_there(frame: Path, tmp_path: Path, there: tuple[str, ...]) -> None:
    names = {"depth": "depth/img_0063_raw.png", "depth_bfx": "depth_bfx/img_0063_abs.png"}
    for below in set(names) - set(there):
        (frame / names[below]).unlink()
    record = read(frame)
    if there:
        assert record.depth is not None
        assert record.depth.metres_per_unit == 0.001
        main, sensor = depth.decode(record.depth.bytes or b"")
        np.testing.assert_array_equal(main, random_depth(SHAPE, 10 if "depth_bfx" in there else 1))
        assert (sensor is None) == (len(there) == 1)
    else:
        assert record.depth is None
    rewrite(SUNRGBD, [record], tmp_path, SPACE)
    for below, name in names.items():
        target = tmp_path / FOLDER / name
        assert target.exists() == (below in there)
        if below in there:
            stored = pixels((frame / name).read_bytes())
            np.testing.assert_array_equal(pixels(target.read_bytes()), stored)


@pytest.mark.parametrize("kind", [np.float32, np.uint16])
def test_depth_of_other_datasets(tmp_path: Path, kind: type[np.generic]) -> None:
    metres = np.array([[0, 1.25, 65.535], [2.0005, np.nan, 70]], np.float32)
    if kind is np.uint16:
        cell, scale = depth.encode(np.array([[0, 5, 6]], np.uint16)), 0.25
        expected, rounded = [[0, 1250, 1500]], {}
    else:
        cell, scale = depth.encode(metres, metres), 1.0
        expected, rounded = (
            [[0, 1250, 65535], [2000, 0, 65535]],
            {"depth_rounded_to_millimetres": 1},
        )
    ids = np.zeros(np.shape(expected), np.uint8)
    record = replace(make_record(ids, SPACE, "a", "train"), depth=Depth(None, cell, scale))
    back, loss = again(record, tmp_path)
    assert back.depth is not None
    main, sensor = depth.decode(back.depth.bytes or b"")
    assert (main.tolist(), loss) == (expected, rounded)
    assert (sensor is None) == (kind is np.uint16)


# Labels and objects


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_labels_and_numbers_come_back(data: st.DataObject) -> None:
    names = data.draw(
        st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), max_size=300)
    )
    names = [name.strip() for name in names]
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=9))
    kind = data.draw(st.sampled_from([np.uint8, np.uint16, np.float64, np.int32]))
    top = min(len(names), 255 if kind is np.uint8 else 65535)
    label = data.draw(hnp.arrays(np.uint16, shape, elements=st.integers(0, top))).astype(kind)
    numbers = data.draw(hnp.arrays(np.uint16, shape))
    seg = sunrgbd_seg.read(seg_mat(label, numbers, names), "x")
    kept = sunrgbd_seg.from_json(json.loads(json.dumps(sunrgbd_seg.to_json(seg))), "x")
    found = scipy.io.loadmat(io.BytesIO(sunrgbd_seg.render(kept)))
    assert [str(c[0]) if c.size else "" for c in found["names"].ravel()] == names
    assert found["seglabel"].dtype == label.dtype
    np.testing.assert_array_equal(found["seglabel"], label)
    np.testing.assert_array_equal(found["seginstances"], numbers)


@pytest.mark.parametrize("dense", [0, 1 << 22])
def test_objects_are_names_with_numbers(
    frame: Path, dense: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers count within a name; names of no class make no objects; outlines join by name."""
    monkeypatch.setattr(sunrgbd_seg, "_DENSE", dense)
    label, numbers = np.zeros((2, *SHAPE), np.uint8)
    label[:4], numbers[:2], numbers[2:4] = 4, 1, 2  # two chairs
    label[4:6], numbers[4:6] = 2, 1  # no class
    label[6:8], numbers[6:8] = 1, 1  # a wall
    label[8:], numbers[8:] = 6, 0  # floor without objects
    put(frame, "seg.mat", seg_mat(label, numbers))
    outlines = [
        polygon(0, (-5, 2, 40, 4)),
        polygon(1, (-5, -5, 40, 2)),
        polygon(2, (0, 6, 4, 8)),
        polygon(3, (2, 9, 6, 11)),
        polygon(4, (0, 4, 16, 6)),
    ]
    text = index_json(outlines, ["chair", "chair", "wall", "floor", "abinet"])
    put(frame, "annotation2Dfinal/index.json", text)
    found = read(frame).instances or ()
    assert [(i.id, i.category, i.bbox, i.area) for i in found] == [
        (1, 1, (0, 6, 16, 2), 32),
        (3, 5, (0, 0, 16, 2), 32),
        (4, 5, (0, 2, 16, 2), 32),
        (5, 1, (0, 6, 4, 2), 8),
        (6, 2, (2, 9, 4, 2), 8),
    ]
    assert [json.loads(i.extra or "") for i in found] == [
        {"name": "wall", "seg": [1, 1]},
        {"name": "chair", "object": 1, "seg": [4, 1]},
        {"name": "chair", "object": 0, "seg": [4, 2]},
        {"name": "wall", "object": 2},
        {"name": "floor", "object": 3},
    ]


def test_objects_without_numbers_in_seg_mat(frame: Path, tmp_path: Path) -> None:
    put(frame, "seg.mat", seg_mat(np.ones(SHAPE, np.uint8)))
    record = read(frame)
    assert [i.category for i in record.instances or ()] == [5, 1]
    back, loss = again(record, tmp_path)
    assert (bare(back), loss) == (bare(record), {})
    (frame / "annotation2Dfinal/index.json").unlink()
    assert read(frame).instances is None


def test_files_come_back_byte_for_byte(frame: Path, tmp_path: Path) -> None:
    put(frame, "fullres/big.jpg", b"big")
    put(frame, "annotation2Dfinal/index.json_2015", b"{}")
    put(frame, "seg.mat", seg_mat(np.ones(SHAPE), names=("wall",), other=np.zeros(3)))
    record = read(frame)
    left = ["annotation2Dfinal/index.json_2015", "fullres/big.jpg", "seg.mat#other"]
    assert record.extras()["left_out"] == left
    (written,) = rewrite(SUNRGBD, [record], tmp_path, SPACE)
    assert written.loss == {"files_left_out": 3}
    same = ("scene.txt", "intrinsics.txt", "extrinsics/20140915.txt", "image/img_0063.jpg",
            "annotation2Dfinal/index.json", "annotation3D/index.json")  # fmt: skip
    for name in same:
        assert (tmp_path / FOLDER / name).read_bytes() == (frame / name).read_bytes()


def test_objects_of_other_datasets(tmp_path: Path) -> None:
    """Only visible pixels of an object's own class can be said; the rest is counted."""
    ids = np.zeros(SHAPE, np.uint8)
    ids[:6], ids[6:] = 5, 1
    bands = {7: (0, 3, 5), 9: (2, 8, 5), 300: (9, 12, 5)}
    objects = []
    for number, (top, bottom, category) in bands.items():
        binary = np.zeros(SHAPE, np.uint8)
        binary[top:bottom] = 1
        rle = masks.rle_encode(binary)
        objects.append(Instance(number, category, None, None, rle=rle, score=0.5))
    objects.append(Instance(301, 5, (0, 0, 2, 2), 4))
    record = replace(make_record(ids, SPACE, "a/b", "val"), instances=tuple(objects))
    back, loss = again(record, tmp_path)
    assert loss == {"instances": 2, "instances_covered": 1, "instance_scores": 3}
    assert [(i.id, i.category, i.bbox) for i in back.instances or ()] == [
        (7, 5, (0, 0, 16, 3)), (9, 5, (0, 3, 16, 3)),
    ]  # fmt: skip
    assert (back.image_id, back.split) == ("a/b", "val")
    painted, _ = again(replace(record, mask=None, classes=None), tmp_path / "painted")
    assert painted.mask is not None
    assert np.unique(masks.decode(painted.mask.bytes or b"")).tolist() == [0, 5]


def test_another_space_drops_raw_labels_and_says_so(frame: Path, tmp_path: Path) -> None:
    from pipeline.labels.relabel import Relabeller

    nyu = label_space("nyu-40")
    moved, _ = Relabeller.to(nyu, [SPACE])(read(frame))
    back, loss = again(moved, tmp_path, nyu)
    assert loss == {"raw_labels": 1, "polygons": 1}
    assert back.mask is not None
    assert moved.mask is not None
    assert (back.mask.bytes, back.classes) == (moved.mask.bytes, moved.classes)
    names = scipy.io.loadmat(tmp_path / FOLDER / "seg.mat")["names"].ravel()
    assert {"wall", "bookshelf"} & {str(n[0]) for n in names}


def test_classes_of_16_bits(tmp_path: Path) -> None:
    wide = label_space("nyu-894")
    for n, ids in enumerate(([[0, 7, 7]], [[0, 300, 894]])):
        record = make_record(np.array(ids, np.uint16), wide, "a", "train")
        back, loss = again(record, tmp_path / str(n), wide)
        assert back.mask is not None
        assert record.mask is not None
        assert (back.mask.bytes, back.classes, loss) == (record.mask.bytes, record.classes, {})


# Lists


def test_official_counts() -> None:
    places = list(official().values())
    counts = {place: places.count(place) for place in set(places)}
    assert counts == {
        "alltest": 5050, "trainvalsplit.train": 2666, "trainvalsplit.val": 2619,
    }  # fmt: skip


def test_frames_of_no_list(frame: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = frame.parents[3]
    (root / "SUNRGBD/kv1").rename(root / "SUNRGBD/mine")
    assert read(root / "SUNRGBD/mine/b3dodata/img_0063").split == "train"
    assert "1 frames" in caplog.text
    (root / "SUNRGBD/mine/b3dodata/img_0063/seg.mat").unlink()
    record = read(root / "SUNRGBD/mine/b3dodata/img_0063")
    assert (record.split, record.mask) == ("unlabelled", None)
    assert record.instances
    back, loss = again(record, tmp_path)
    assert (bare(back), loss) == (bare(record), {})


def test_root_may_be_the_frames_own_folder(frame: Path) -> None:
    tree = open_tree(str(frame.parents[2]))
    (sample,) = SUNRGBD.list(tree, ())
    assert (sample.image_id, sample.split) == (FRAME, "train")


@pytest.mark.parametrize("name", ["a/../b", "a//b", "/a", ".hidden/a", "a/", ""])
def test_ids_that_are_no_folders(tmp_path: Path, name: str) -> None:
    record = make_record(np.zeros(SHAPE, np.uint8), SPACE, name, "train")
    with pytest.raises(UnsafePath):
        rewrite(SUNRGBD, [record], tmp_path, SPACE)


def test_frames_inside_frames(tmp_path: Path) -> None:
    names = ["a", "a/image", "a/image/depth", "b/extrinsics", "z"]
    ids = np.ones(SHAPE, np.uint8)
    rewrite(SUNRGBD, [make_record(ids, SPACE, n, "train") for n in names], tmp_path, SPACE)
    tree = open_tree(str(tmp_path))
    samples = list(SUNRGBD.list(tree, ()))
    assert sorted(s.image_id for s in samples) == names
    assert all(SUNRGBD.read(tree, s).mask for s in samples)
    assert not any(SUNRGBD.read(tree, s).extras().get("left_out") for s in samples)
