"""SUN RGB-D: files that are bad, the real ones, and other readers of what is written."""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors import matlab5, sunrgbd_seg
from connectors.sunrgbd import SUNRGBD
from connectors.sunrgbd_toolbox import official, places
from pipeline import depth, masks
from pipeline.errors import (
    CorruptMask,
    InputError,
    LabelOutOfRange,
    MissingFile,
    SizeMismatch,
)
from pipeline.files import open_tree
from tests.connectors.sunrgbd_tree import (
    FOLDER,
    FRAME,
    NAMES,
    SHAPE,
    SPACE,
    again,
    depth_png,
    index_json,
    pixels,
    polygon,
    random_depth,
    read,
    seg_mat,
    write_frame,
)
from tests.connectors.trees import bare, make_record, photo, put, random_ids, rewrite

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def frame(tmp_path: Path) -> Path:
    """Return the folder of the one frame of a dataset."""
    write_frame(tmp_path / "set", FRAME, 1)
    return tmp_path / "set" / FOLDER


# Bad files


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", CorruptMask),
        (b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM", CorruptMask),
        (b"not a mat file at all" * 20, CorruptMask),
        (seg_mat(np.full(SHAPE, 7)), LabelOutOfRange),
        (seg_mat(np.full(SHAPE, 0.5)), CorruptMask),
        (seg_mat(np.full(SHAPE, np.nan)), CorruptMask),
        (seg_mat(np.full(SHAPE, -1)), CorruptMask),
        (seg_mat(np.full(SHAPE, 70000)), CorruptMask),
        (seg_mat(np.zeros((0, 0))), CorruptMask),
        (seg_mat(np.zeros((3, 4, 5))), CorruptMask),
        (seg_mat(np.zeros(SHAPE), np.zeros((3, 3))), CorruptMask),
        (seg_mat(np.zeros(SHAPE), names=(3, 4)), CorruptMask),  # type: ignore[arg-type]
        (seg_mat(np.zeros((13, 16))), SizeMismatch),
        (seg_mat(np.ones(SHAPE), np.arange(192).reshape(SHAPE) * 300 + 1), None),
    ],
)
def test_bad_seg_mat(frame: Path, data: bytes, error: type[InputError] | None) -> None:
    put(frame, "seg.mat", data)
    if error is None:
        assert len(read(frame).instances or ()) == SHAPE[0] * SHAPE[1] + 1
        return
    with pytest.raises(error, match=r"seg\.mat"):
        read(frame)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_bytes_of_seg_mat_are_no_crash(data: st.DataObject) -> None:
    good = random_ids(range(7), SHAPE, 0)
    file = io.BytesIO()
    cells = np.empty((1, 6), object)
    cells[0, :] = NAMES
    scipy.io.savemat(file, {"names": cells, "seglabel": good})
    bad = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        bad[data.draw(st.integers(124, len(bad) - 1))] = data.draw(st.integers(0, 255))
    try:
        seg = sunrgbd_seg.read(bytes(bad), "x")
    except InputError:
        return
    assert seg.label.max() <= len(seg.names)


def test_hdf5_where_v5_is_expected(frame: Path) -> None:
    with h5py.File(frame / "seg.mat", "w", userblock_size=512) as file:
        file["seglabel"] = np.zeros(SHAPE)
    with pytest.raises(CorruptMask, match=r"v7\.3"):
        read(frame)


def test_variable_that_inflates_without_end() -> None:
    body = zlib.compress(bytes(1 << 22), 9)
    head = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"
    with pytest.raises(CorruptMask, match="too much"):
        list(matlab5.variables(head + struct.pack("<II", 15, len(body)) + body, "x", 1 << 20))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", "null", '{"frames": 3, "objects": [{"name": "wall"}]}', "[" * 100_000, "\x00"],
)
def test_outlines_that_cannot_be_read(
    frame: Path, tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """seg.mat is fine, so the record is made; it says what is missing, and so does a warning."""
    put(frame, "annotation2Dfinal/index.json", text)
    record = read(frame)
    assert "annotation2Dfinal/index.json" in record.extras()["unread"]
    assert "annotation2Dfinal" in caplog.text
    assert record.instances
    back, loss = again(record, tmp_path)
    assert (bare(back), loss) == (bare(record), {})
    written = tmp_path / FOLDER / "annotation2Dfinal/index.json"
    assert written.read_bytes() == text.encode()


@pytest.mark.parametrize(
    "item",
    [
        3,
        [],
        {},
        polygon(-1, (0, 0, 4, 4)),
        polygon(9, (0, 0, 4, 4)),
        polygon(1, (0, 0, 4, 4)),
        polygon(None, (0, 0, 4, 4)),
        polygon(True, (0, 0, 4, 4)),
        polygon(0, (0, 0, 1e300, 4)),
        polygon(0, (0, 0, float("nan"), 4)),
        polygon(0, (0, 0, 10**400, 4)),
        polygon(0, (100, 100, 104, 104)),
        {"object": 0, "x": [1, 2], "y": [1, 2]},
        {"object": 0, "x": [1, 2, 3], "y": [1, 2, "3"]},
        {"object": 0, "x": [1, 2, 3], "y": [1, 2]},
        {"object": 0, "x": None, "y": None},
        {"object": 0, "x": 1, "y": 2},
    ],
)
def test_outlines_that_are_none_are_counted(frame: Path, item: Any) -> None:
    put(frame, "seg.mat", seg_mat(np.ones(SHAPE, np.uint8)))
    text = index_json([item, None, polygon(2, (1, 1, 3, 3))], ["chair", None, "wall"])
    put(frame, "annotation2Dfinal/index.json", text)
    record = read(frame)
    assert record.extras()["outlines_left_out"] == 1
    assert [(i.category, i.area) for i in record.instances or ()] == [(1, 4)]


def test_bad_depth(frame: Path) -> None:
    name = "depth_bfx/img_0063_abs.png"
    good = (frame / name).read_bytes()
    put(frame, name, good[:-40])
    with pytest.raises(CorruptMask, match="depth_bfx"):
        read(frame)
    put(frame, name, depth_png(random_depth((5, 6), 1)))
    with pytest.raises(SizeMismatch, match="depth_bfx"):
        read(frame)
    put(frame, name, photo(SHAPE, ".jpg"))
    with pytest.raises(CorruptMask, match="depth_bfx"):
        read(frame)


def test_jpeg_bytes_in_a_png_file(frame: Path, tmp_path: Path) -> None:
    jpeg = frame / "image/img_0063.jpg"
    jpeg.rename(frame / "image/img_0063.png")
    record = read(frame)
    back, loss = again(record, tmp_path)
    assert (bare(back), loss) == (bare(record), {})
    assert (tmp_path / FOLDER / "image/img_0063.jpg").exists()


# The real files, and other readers of what is written


def test_real_files_come_back(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "sunrgbd"
    tree = open_tree(str(source))
    samples = {s.image_id.rpartition("/")[2][:8]: s for s in SUNRGBD.list(tree, ())}
    assert {name: s.split for name, s in samples.items()} == {
        "img_0063": "train", "2014-12-": "test", "000002_2": "test",
    }  # fmt: skip
    with pytest.raises(MissingFile, match=r"seg\.mat"):
        SUNRGBD.read(tree, samples.pop("2014-12-"))
    records = [SUNRGBD.read(tree, s) for s in samples.values()]
    assert [len(r.instances or ()) for r in records] == [9, 10]
    assert all("toolbox_differs" not in r.extras() for r in records)
    written = rewrite(SUNRGBD, records, tmp_path, SPACE)
    assert [w.loss for w in written] == [{}, {}]
    back = open_tree(str(tmp_path))
    assert [bare(SUNRGBD.read(back, s)) for s in SUNRGBD.list(back, ())] == list(map(bare, records))
    for path in tmp_path.rglob("SUNRGBD/**/*"):
        twin = source / path.relative_to(tmp_path)
        if path.parent.name.startswith("depth"):
            np.testing.assert_array_equal(pixels(path.read_bytes()), pixels(twin.read_bytes()))
        elif path.name == "seg.mat":
            one, two = scipy.io.loadmat(path), scipy.io.loadmat(twin)
            for name in ("seglabel", "seginstances"):
                np.testing.assert_array_equal(one[name], two[name])
            assert one["names"].tolist() == two["names"].tolist()
        elif path.is_file():
            assert path.read_bytes() == twin.read_bytes()


def test_real_labels_are_msegs(shared_data: Path) -> None:
    """MSeg's copy of the first test image stores the class less one, and 255 for none."""
    tree = open_tree(str(shared_data / "sunrgbd"))
    sample = next(s for s in SUNRGBD.list(tree, ["test"]) if "000002_" in s.image_id)
    record = SUNRGBD.read(tree, sample)
    assert record.mask is not None
    mseg = pixels((shared_data / "sunrgbd/label37_mseg/test/00000001.png").read_bytes())
    np.testing.assert_array_equal(masks.decode(record.mask.bytes or b""), mseg + np.uint8(1))


def test_shipped_lists_are_the_toolboxes(shared_data: Path) -> None:
    tree = open_tree(str(shared_data / "sunrgbd"))
    assert places(tree, "") == official()


def test_written_toolbox_as_others_read_it(shared_data: Path, tmp_path: Path) -> None:
    """As ESANet's preparation does: a struct's paths, rows of the HDF5 file, lists of strings."""
    tree = open_tree(str(shared_data / "sunrgbd"))
    samples = [s for s in SUNRGBD.list(tree, ()) if "align" not in s.image_id]
    records = [SUNRGBD.read(tree, s) for s in samples]
    records.append(make_record(None, SPACE, "no labels", "unlabelled"))
    rewrite(SUNRGBD, records, tmp_path, SPACE)
    folder = tmp_path / "SUNRGBDtoolbox"
    meta = scipy.io.loadmat(
        folder / "Metadata/SUNRGBDMeta.mat", squeeze_me=True, struct_as_record=False
    )["SUNRGBDMeta"]
    lists = scipy.io.loadmat(folder / "traintestSUNRGBD/allsplit.mat", squeeze_me=True)
    train, test = ([str(p) for p in np.atleast_1d(lists[n])] for n in ("alltrain", "alltest"))
    with h5py.File(folder / "Metadata/SUNRGBD2Dseg.mat", "r") as file:
        rows = file["SUNRGBD2Dseg"]["seglabel"]
        assert rows.shape == (3, 1)
        for at, (entry, record) in enumerate(zip(meta, records, strict=True)):
            below = str(entry.rgbpath).split("/n/fs/sun3d/data/SUNRGBD/")[1]
            assert (tmp_path / "SUNRGBD" / below).is_file()
            assert str(entry.sequenceName) == f"SUNRGBD/{record.image_id}"
            labels = np.array(file[rows[at][0]][:])
            if record.mask is None:
                assert labels.tolist() == [0, 0]
                continue
            truth = pixels(masks.recode(record.mask.bytes or b""))
            np.testing.assert_array_equal(labels.transpose(1, 0), truth)
            depth_file = tmp_path / "SUNRGBD" / str(entry.depthpath).split("/SUNRGBD/")[1]
            stored = pixels(depth_file.read_bytes()).astype(np.int64)
            metres = (stored // 8 + stored % 8 * 8192) / 1000
            assert record.depth is not None
            held = depth.metres(record.depth)
            assert held is not None
            assert np.allclose(held, metres, rtol=1e-6, atol=0)
            listed = train if record.split == "train" else test
            assert [p for p in listed if p.endswith(record.image_id)] == [
                "/n/fs/sun3d/data/SUNRGBD/" + record.image_id
            ]
    assert meta[0].K.shape == (3, 3)
    np.testing.assert_allclose(meta[0].K[0], [520.532, 0, 277.9258])
    assert str(lists["trainvalsplit"]["train"]) == train[0]
