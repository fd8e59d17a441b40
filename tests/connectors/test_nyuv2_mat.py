"""nyu_depth_v2_labeled.mat: the conformance suite; h5py and SciPy as judges; bad and real files."""

from __future__ import annotations

import io
import json
import shutil
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy.io import savemat

from connectors import nyuv2_mat
from connectors.nyuv2 import NYUV2, NYUV2_MAT
from pipeline import depth
from pipeline.errors import (
    BadAnnotation,
    InputError,
    LabelOutOfRange,
    LayoutError,
    MissingFile,
)
from pipeline.files import open_tree
from pipeline.label_space import LabelClass, LabelSpace, label_space
from pipeline.record import Depth, Record
from tests.connectors.conformance import Conformance, Made
from tests.connectors.nyu_tree import (
    NAMES,
    TEXTS,
    frames,
    read_mat,
    read_splits,
    write_mat,
    write_splits,
)
from tests.connectors.trees import bare, contents, make_record, rewrite

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

NAME = "nyu_depth_v2_labeled.mat"
FULL = label_space("nyu-894")
ARRAYS = ("images", "labels", "instances", "depths", "rawDepths")


def write_tree(root: Path, arrays: dict[str, NDArray[Any]] | None = None) -> None:
    write_mat(root / NAME, frames(4) if arrays is None else arrays)
    write_splits(root / "splits.mat", [2, 4], [1, 3])


def write_small(root: Path, arrays: dict[str, NDArray[Any]] | None = None) -> None:
    """The same with two classes: reading and writing the names of 894 takes most of a test."""
    arrays = arrays or frames(4)
    write_mat(root / NAME, arrays | {"labels": arrays["labels"] % 3}, ["sofa", "lamp"])
    write_splits(root / "splits.mat", [2, 4], [1, 3])


def records(root: Path) -> list[Record]:
    tree = open_tree(str(root))
    return [NYUV2_MAT.read(tree, sample) for sample in NYUV2_MAT.list(tree, ())]


class TestNyuV2Mat(Conformance):
    connector = NYUV2_MAT
    images_are_files = False
    one_size = True

    def make_tree(self, root: Path) -> Made:
        write_tree(root)
        splits = {"test": ["0001", "0003"], "train": ["0002", "0004"]}
        labels = frames(4)["labels"]
        ids = {f"{s}/{n}": labels[int(n) - 1] for s, names in splits.items() for n in names}
        return Made(splits, ids, "0002", NAME)


def test_record_holds_what_the_file_says(tmp_path: Path) -> None:
    arrays = frames(4)
    write_tree(tmp_path, arrays)
    accel = read_mat(tmp_path / NAME)["accelData"]
    for n, record in enumerate(records(tmp_path)):
        assert record.image.path == f"{tmp_path}/{NAME}#{n + 1}"
        with Image.open(io.BytesIO(record.image.bytes or b"")) as image:
            assert np.array_equal(np.array(image), arrays["images"][n])
        assert record.depth
        assert record.depth.metres_per_unit == 1.0
        filled, raw = depth.decode(record.depth.bytes or b"")
        assert filled.tobytes() == arrays["depths"][n].tobytes()
        assert raw is not None
        assert raw.tobytes() == arrays["rawDepths"][n].tobytes()
        extra = record.extras()
        assert {key: extra[key] for key in TEXTS} == {key: f"{key} {n}" for key in TEXTS}
        assert extra["accelData"][1:] == accel[1:, n].tolist()
        assert (extra["accelData"][0] is None) == (n == 0)


@pytest.mark.parametrize("through", [NYUV2, NYUV2_MAT])
def test_file_comes_back_bit_for_bit(tmp_path: Path, through: Any) -> None:
    """The .mat to records, to either format, to records and to a .mat again, judged by h5py."""
    source, between, target = (tmp_path / name for name in ("source", "between", "target"))
    source.mkdir()
    write_tree(source)
    rewrite(through, records(source), between, FULL)
    (written, *_) = rewrite(NYUV2_MAT, records(between), target, FULL)
    assert written.loss == {}
    one, two = read_mat(source / NAME), read_mat(target / NAME)
    assert one.keys() == two.keys()
    for key in ARRAYS:
        assert one[key].dtype == two[key].dtype
        assert one[key].shape == two[key].shape
        assert one[key].tobytes() == two[key].tobytes(), key
    for key in (*TEXTS, "names"):
        assert one[key] == two[key]
    np.testing.assert_array_equal(one["accelData"], two["accelData"])
    assert read_splits(target / "splits.mat") == read_splits(source / "splits.mat")
    assert set(contents(target)) == {NAME, "splits.mat"}
    assert (target / NAME).read_bytes()[:10] == b"MATLAB 7.3"
    with h5py.File(target / NAME) as file:
        assert "segmill" not in file
        kinds = {key: file[key].attrs["MATLAB_class"] for key in file if key != "#refs#"}
    assert kinds == dict.fromkeys(("images", "instances"), b"uint8") | {"labels": b"uint16"} | (
        dict.fromkeys(("depths", "rawDepths", "accelData"), b"single")
        | dict.fromkeys((*TEXTS, "names"), b"cell")
    )


floats = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True)


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_any_arrays_come_back(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("any")
    shape = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 9)))
    arrays = {
        "images": data.draw(hnp.arrays(np.uint8, (*shape, 3))),
        "labels": data.draw(hnp.arrays(np.uint16, shape, elements=st.integers(0, 3))),
        "instances": data.draw(hnp.arrays(np.uint8, shape)),
        "depths": data.draw(hnp.arrays(np.float32, shape, elements=floats)),
        "rawDepths": data.draw(hnp.arrays(np.float32, shape, elements=floats)),
    }
    write_mat(root / NAME, arrays, ["a", "b", "c"])  # 894 names would take most of the time
    write_splits(root / "splits.mat", [1], [])
    (space,) = NYUV2_MAT.label_spaces(open_tree(str(root)))
    rewrite(NYUV2_MAT, records(root), root / "target", space)
    back = read_mat(root / "target" / NAME)
    for key, values in arrays.items():
        assert back[key].tobytes() == values.tobytes(), key
    shutil.rmtree(root)


def test_threads_share_the_file(tmp_path: Path) -> None:
    write_small(tmp_path, frames(4, shape=(60, 80)))
    tree, expected = open_tree(str(tmp_path)), records(tmp_path)
    samples = list(NYUV2_MAT.list(tree, ()))
    wrong: list[str] = []

    def work() -> None:
        read = ((at, NYUV2_MAT.read(tree, samples[at])) for at in (0, 1, 2, 3) * 5)
        wrong.extend(samples[at].image_id for at, record in read if record != expected[at])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_few_files_stay_open(tmp_path: Path) -> None:
    for n in range(5):
        (tmp_path / str(n)).mkdir()
        write_small(tmp_path / str(n))
        assert len(records(tmp_path / str(n))) == 4
    assert len(nyuv2_mat._OPEN) <= 4
    assert len(records(tmp_path / "0")) == 4


def test_changed_file_is_read_again(tmp_path: Path) -> None:
    write_tree(tmp_path)
    before = records(tmp_path)
    (tmp_path / "new").mkdir()
    write_tree(tmp_path / "new", frames(4, seed=5))
    (tmp_path / "new" / NAME).replace(tmp_path / NAME)
    assert [bare(r) for r in records(tmp_path)] != [bare(r) for r in before]


# Splits


def test_official_split_without_splits_mat(tmp_path: Path) -> None:
    with h5py.File(tmp_path / NAME, "w") as file:  # HDF5 takes no room for what was never written
        for key, kind, shape in (("images", "u1", (1449, 3, 4, 4)), ("labels", "u2", (1449, 4, 4))):
            file.create_dataset(key, shape, kind, chunks=(1, *shape[1:]))
    splits = [s.split for s in NYUV2_MAT.list(open_tree(str(tmp_path)), ())]
    assert (splits.count("train"), splits.count("test")) == (795, 654)


def test_no_split_for_a_part_of_the_images(tmp_path: Path) -> None:
    write_mat(tmp_path / NAME, frames(2))
    with pytest.raises(LayoutError, match=r"2 images, not the official 1449.*trainNdxs"):
        list(NYUV2_MAT.list(open_tree(str(tmp_path)), ()))


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"trainNdxs": [0], "testNdxs": [1]}, "names image 0, the dataset has 1..4"),
        ({"trainNdxs": [1], "testNdxs": [1450]}, "names image 1450"),
        ({"trainNdxs": [1], "testNdxs": [-1]}, "names image -1"),
        ({"trainNdxs": [1, 2], "testNdxs": [2]}, "twice"),
        ({"trainNdxs": [1, 1], "testNdxs": [2]}, "twice"),
        ({"trainNdxs": [1]}, "testNdxs"),
        ({"trainNdxs": [1.5], "testNdxs": [2]}, "whole numbers"),
        ({"trainNdxs": "1", "testNdxs": [2]}, "whole numbers"),
        ({"trainNdxs": [float("nan")], "testNdxs": [2]}, "whole numbers"),
    ],
)
def test_bad_splits(tmp_path: Path, columns: dict[str, Any], match: str) -> None:
    write_mat(tmp_path / NAME, frames(4))
    savemat(tmp_path / "splits.mat", columns)
    with pytest.raises(LayoutError, match=match):
        list(NYUV2_MAT.list(open_tree(str(tmp_path)), ()))


@pytest.mark.parametrize("data", [b"", b"MATLAB 5.0 MAT-file", b"\x89HDF\r\n\x1a\n" + bytes(600)])
def test_damaged_splits(tmp_path: Path, data: bytes) -> None:
    write_mat(tmp_path / NAME, frames(4))
    (tmp_path / "splits.mat").write_bytes(data)
    with pytest.raises(LayoutError, match=r"splits\.mat.*fetch splits"):
        list(NYUV2_MAT.list(open_tree(str(tmp_path)), ()))


def test_images_of_no_split_are_unlabelled(tmp_path: Path) -> None:
    write_mat(tmp_path / NAME, frames(3))
    write_splits(tmp_path / "splits.mat", [3], [1])
    samples = NYUV2_MAT.list(open_tree(str(tmp_path)), ())
    assert [s.split for s in samples] == ["test", "unlabelled", "train"]


def test_the_file_itself_is_a_dataset(tmp_path: Path) -> None:
    write_tree(tmp_path)
    tree = open_tree(str(tmp_path / NAME))
    assert [s.split for s in NYUV2_MAT.list(tree, ())] == ["test", "train"] * 2


# Bad files


def test_old_matlab_file(tmp_path: Path) -> None:
    savemat(tmp_path / NAME, {"images": [1]})
    with pytest.raises(LayoutError, match=r"MATLAB v5.*-v7\.3"):
        list(NYUV2_MAT.list(open_tree(str(tmp_path)), ()))


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
def test_truncated_file(tmp_path: Path, keep: float) -> None:
    write_tree(tmp_path)
    data = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(data[: int(keep * len(data))])
    with pytest.raises(LayoutError, match=r"labeled\.mat.*fetch the file again"):
        list(NYUV2_MAT.list(open_tree(str(tmp_path)), ()))


@pytest.mark.parametrize("key", ["images", "labels"])
def test_missing_key(tmp_path: Path, key: str) -> None:
    arrays = frames(4)
    del arrays[key]
    with h5py.File(tmp_path / NAME, "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values)
    with pytest.raises(LayoutError, match=f"no {key}; the file has"):
        list(NYUV2_MAT.list(open_tree(str(tmp_path)), ()))


@pytest.mark.parametrize(
    "key", ["instances", "depths", "rawDepths", "names", "scenes", "accelData"]
)
def test_key_that_may_be_missing(tmp_path: Path, key: str) -> None:
    write_small(tmp_path)
    with h5py.File(tmp_path / NAME, "r+") as file:
        del file[key]
    (space,) = NYUV2_MAT.label_spaces(open_tree(str(tmp_path)))
    found = records(tmp_path)
    assert len(found) == 4
    rewrite(NYUV2_MAT, found, tmp_path / "target", space)
    assert [bare(r) for r in records(tmp_path / "target")] == [bare(r) for r in found]


@pytest.mark.parametrize(
    "spoilt",
    [
        {"labels": np.zeros((4, 16, 12), np.int32)},
        {"labels": np.zeros((3, 16, 12), np.uint16)},
        {"labels": np.zeros((4, 12, 16), np.uint16)},
        {"depths": np.zeros((4, 16), np.float32)},
        {"images": np.zeros((4, 16, 12, 3), np.uint8)},
        {"instances": np.array(7)},
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, spoilt: dict[str, NDArray[Any]]) -> None:
    write_tree(tmp_path)
    with h5py.File(tmp_path / NAME, "r+") as file:
        for key, values in spoilt.items():
            del file[key]
            file[key] = values
    with pytest.raises(LayoutError, match="expected images"):
        list(NYUV2_MAT.list(open_tree(str(tmp_path)), ()))


def test_arrays_of_other_files_are_refused(tmp_path: Path) -> None:
    write_tree(tmp_path)
    with h5py.File(tmp_path / NAME, "r+") as file:
        del file["labels"]
        secret = [(str(tmp_path / "splits.mat"), 0, 4 * 16 * 12 * 2)]
        file.create_dataset("labels", (4, 16, 12), "u2", external=secret)
    with pytest.raises(LayoutError, match="labels lies in another file"):
        list(NYUV2_MAT.list(open_tree(str(tmp_path)), ()))
    with h5py.File(tmp_path / NAME, "r+") as file:
        del file["labels"]
        file["labels"] = h5py.ExternalLink("other.mat", "/labels")
    with pytest.raises(LayoutError, match="labels"):
        list(NYUV2_MAT.list(open_tree(str(tmp_path)), ()))


def fails(root: Path, error: type[InputError], match: str) -> None:
    """The second image fails, the others are read."""
    tree = open_tree(str(root))
    for sample in NYUV2_MAT.list(tree, ()):
        if sample.image_id == "0002":
            with pytest.raises(error, match=match):
                NYUV2_MAT.read(tree, sample)
        else:
            NYUV2_MAT.read(tree, sample)


def test_labels_above_894(tmp_path: Path) -> None:
    arrays = frames(4)
    arrays["labels"][1, 0, 0] = 895
    write_tree(tmp_path, arrays)
    fails(tmp_path, LabelOutOfRange, "#2: 1 pixels hold values 895")


@pytest.mark.parametrize("key", ["images", "labels", "instances", "depths", "rawDepths"])
def test_damaged_chunk(tmp_path: Path, key: str) -> None:
    write_tree(tmp_path)
    with h5py.File(tmp_path / NAME, "r+") as file:
        place = (1, *(0 for _ in file[key].shape[1:]))
        file[key].id.write_direct_chunk(place, b"no zlib stream")
    fails(tmp_path, BadAnnotation, f"#2: {key} cannot be read")


def test_text_that_is_none(tmp_path: Path) -> None:
    write_tree(tmp_path)
    with h5py.File(tmp_path / NAME, "r+") as file:
        file["scenes"][0, 1] = file["images"].ref
    fails(tmp_path, BadAnnotation, "its texts cannot be read")


@pytest.mark.parametrize("note", ["[", "[]", '{"image_id": 7}', '{"absent": 3}'])
def test_bad_notes(tmp_path: Path, note: str) -> None:
    write_tree(tmp_path)
    with h5py.File(tmp_path / NAME, "r+") as file:
        cells = file.create_dataset("segmill/records", (1, 4), h5py.ref_dtype)
        units = np.frombuffer(note.encode("utf-16-le"), np.uint16)
        cells[0, 1] = file.create_dataset("#refs#/note", data=units).ref
    with pytest.raises(LayoutError, match="segmill/records"):
        list(NYUV2_MAT.list(open_tree(str(tmp_path)), ()))


def test_file_that_goes_away(tmp_path: Path) -> None:
    write_tree(tmp_path)
    tree = open_tree(str(tmp_path))
    sample = replace(next(iter(NYUV2_MAT.list(tree, ()))), payload=[NAME, "older", 0])
    (tmp_path / NAME).unlink()
    with pytest.raises(MissingFile, match=NAME):
        NYUV2_MAT.read(tree, sample)


# Other classes, other images


def test_names_of_other_classes(tmp_path: Path) -> None:
    arrays = frames(4)
    arrays["labels"] %= 3
    write_mat(tmp_path / NAME, arrays, ["sofa", "lamp"])
    write_splits(tmp_path / "splits.mat", [1, 2, 3, 4], [])
    (space,) = NYUV2_MAT.label_spaces(open_tree(str(tmp_path)))
    assert [(c.id, c.name, c.void) for c in space.classes] == [
        (0, "unlabelled", True), (1, "sofa", False), (2, "lamp", False),
    ]  # fmt: skip
    assert records(tmp_path)[0].label_space == space.name
    rewrite(NYUV2_MAT, records(tmp_path), tmp_path / "target", space)
    assert read_mat(tmp_path / "target" / NAME)["names"] == ["sofa", "lamp"]
    assert NYUV2_MAT.label_spaces(open_tree(str(tmp_path / "target"))) == (space,)


def test_one_name_for_two_classes(tmp_path: Path) -> None:
    write_mat(tmp_path / NAME, frames(1), ["sofa", "sofa"])
    with pytest.raises(LayoutError, match="sofa"):
        NYUV2_MAT.label_spaces(open_tree(str(tmp_path)))


def test_classes_of_other_datasets_count_from_1(tmp_path: Path) -> None:
    """As NYU's do: 0 is what has no class, and label k has the k-th name."""
    classes = (LabelClass(0, "sky", (1, 2, 3)), LabelClass(300, "pole", (4, 5, 6)))
    space = LabelSpace("toy", classes, 7)
    ids = np.array([[0, 300, 7]], np.uint16)
    rewrite(NYUV2_MAT, [make_record(ids, space, "a", "train")], tmp_path, space)
    held = read_mat(tmp_path / NAME)
    assert held["labels"].tolist() == [[[1, 2, 0]]]
    assert held["names"] == ["sky", "pole"]
    (back,) = records(tmp_path)
    assert back.image_id == "a"
    assert bare(back).mask == bare(make_record(ids, space, "a", "train")).mask


def test_labels_of_another_size_than_the_image(tmp_path: Path) -> None:
    record = make_record(np.zeros((5, 7), np.uint16), FULL, "a", "train")
    other = make_record(np.zeros((5, 6), np.uint16), FULL, "b", "train")
    with pytest.raises(InputError, match="labels of 6x5, its image has 7x5"):
        rewrite(NYUV2_MAT, [replace(record, mask=other.mask)], tmp_path, FULL)


@pytest.mark.parametrize(
    ("held", "loss"),
    [
        (Depth(None, depth.encode(np.full((5, 7), 1500, np.uint16)), 0.001), {}),
        (Depth(None, depth.encode(np.full((5, 7), 1500, np.uint16))), {}),
        (Depth(None, depth.encode(np.full((4, 7), 1500, np.uint16)), 0.001), {"depth": 1}),
        (Depth("/gone/depth.png"), {"depth": 1}),
    ],
)
def test_depth_of_other_datasets_is_metres(
    tmp_path: Path, held: Depth, loss: dict[str, int]
) -> None:
    record = replace(make_record(None, FULL, "a", "test"), depth=held)
    (written,) = rewrite(NYUV2_MAT, [record], tmp_path, FULL)
    assert written.loss == loss
    (back,) = records(tmp_path)
    assert (back.depth is None) == bool(loss)
    if not loss:
        assert (read_mat(tmp_path / NAME)["depths"] == np.float32(1.5)).all()


def test_record_without_labels_stays_without(tmp_path: Path) -> None:
    some = make_record(np.ones((5, 7), np.uint16), FULL, "0001", "train")
    rewrite(NYUV2_MAT, [some, make_record(None, FULL, "0002", "train")], tmp_path, FULL)
    one, two = records(tmp_path)
    assert one.mask is not None
    assert (two.mask, two.instances, two.depth, two.split) == (None, None, None, "train")
    assert json.dumps(two.extras()) == "{}"


# Real files


def test_real_file(shared_data: Path, tmp_path: Path) -> None:
    """All arrays as h5py reads them, before and after; the derived 40 classes are the official."""
    source = shared_data / "nyudv2/nyu_depth_v2_labeled_mini.mat"
    tree = open_tree(str(shared_data / "nyudv2"))
    samples = list(NYUV2_MAT.list(tree, ()))
    assert [(s.image_id, s.split) for s in samples] == [("0001", "train"), ("0002", "test")]
    found = [NYUV2_MAT.read(tree, s) for s in samples]
    written = rewrite(NYUV2_MAT, found, tmp_path / "mat", FULL)
    written += rewrite(NYUV2, found, tmp_path / "folders", FULL)
    assert [w.loss for w in written] == [{}] * 4
    one, two = read_mat(source), read_mat(tmp_path / "mat" / NAME)
    for key in ARRAYS:
        assert one[key].dtype == two[key].dtype
        assert one[key].tobytes() == two[key].tobytes(), key
    assert {key: one[key] for key in (*TEXTS, "names")} == {
        key: two[key] for key in (*TEXTS, "names")
    }
    assert two["names"] == NAMES
    official = {f"{label}/0002": f"{label}/0009" for label in ("label40", "label13")}
    official |= {name: name for name in ("label40/0001", "label13/0001", "depth_mm/0001")}
    for ours, theirs in official.items():
        with (
            Image.open(tmp_path / f"folders/{ours}.png") as made,
            Image.open(shared_data / f"nyudv2/{theirs}.png") as real,
        ):
            assert np.array_equal(np.array(made), np.array(real))
