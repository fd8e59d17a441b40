from __future__ import annotations

import io
import struct
import threading
import time
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from pipeline import masks
from pipeline.errors import LabelOutOfRange, UnknownColour
from pipeline.label_space import LabelClass, LabelSpace, label_space, voc_colour
from pipeline.record import ClassPixels
from tests.pipeline.label_files import MASKS, SHAPES, blobs, chunk, chunks, pil_png

VOC = label_space("voc-21")
CAMVID = label_space("camvid-11")
PALETTES = st.sampled_from([None, VOC.palette(), CAMVID.palette()])


@settings(max_examples=150, deadline=None)
@given(mask=MASKS, palette=PALETTES)
def test_a_cell_gives_its_mask_back(mask: np.ndarray, palette: bytes | None) -> None:
    cell = masks.encode(mask, palette)
    back = masks.decode(cell)
    assert back.dtype == mask.dtype
    np.testing.assert_array_equal(back, mask)
    assert masks.encode(mask.copy(order="F"), palette) == cell
    assert masks.encode(back, palette) == cell


@settings(max_examples=80, deadline=None)
@given(mask=MASKS, palette=PALETTES)
def test_other_readers_see_the_same_pixels(mask: np.ndarray, palette: bytes | None) -> None:
    cell = masks.encode(mask, palette)
    with Image.open(io.BytesIO(cell)) as image:
        seen = np.array(image)
        assert image.mode == ("I;16" if mask.dtype == np.uint16 else "P" if palette else "L")
        if image.mode == "P":
            assert bytes(image.getpalette() or ()) == palette
    np.testing.assert_array_equal(seen, mask)
    pixels = cv2.imdecode(np.frombuffer(cell, np.uint8), cv2.IMREAD_UNCHANGED)
    if palette is not None and mask.dtype == np.uint8:
        expected = np.frombuffer(palette, np.uint8).reshape(256, 3)[mask][:, :, ::-1]
    else:
        expected = mask
    np.testing.assert_array_equal(pixels, expected)


def test_the_layout_of_a_cell() -> None:
    mask = blobs(20, 30, seed=0)
    cell = masks.encode(mask, CAMVID.palette())
    parts = chunks(cell)
    assert [kind for kind, _ in parts] == [b"IHDR", b"PLTE", b"IDAT", b"IEND"]
    assert parts[0][1] == struct.pack(">IIBBBBB", 30, 20, 8, 3, 0, 0, 0)
    rows = np.frombuffer(zlib.decompress(parts[2][1]), np.uint8).reshape(20, 31)
    assert not rows[:, 0].any()
    np.testing.assert_array_equal(rows[:, 1:], mask)
    wide = chunks(masks.encode(mask.astype(np.uint16), CAMVID.palette()))
    assert [kind for kind, _ in wide] == [b"IHDR", b"IDAT", b"IEND"]


def test_decoding_a_cell_copies_nothing() -> None:
    mask = blobs(20, 30, seed=0)
    found = masks.decode(masks.encode(mask))
    assert found.strides == (31, 1)  # rows behind their filter byte
    assert not found.flags.owndata
    assert found.flags.writeable
    found[0, 0] = 9  # a caller may draw on it


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((2, 2), np.int64),
        np.zeros((2, 2), bool),
        np.zeros((2, 2, 3), np.uint8),
        np.zeros((0, 2), np.uint8),
        np.zeros((2, 0), np.uint16),
    ],
)
def test_what_is_no_mask_is_not_encoded(mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match="a mask is"):
        masks.encode(mask)


def test_a_palette_has_256_entries() -> None:
    with pytest.raises(ValueError, match="768"):
        masks.encode(np.zeros((2, 2), np.uint8), b"\0\0\0")


# Recoding


def test_recode_leaves_cells_alone() -> None:
    mask = blobs(30, 40, seed=8)
    cell = masks.encode(mask, CAMVID.palette())
    assert masks.recode(cell, CAMVID.palette()) is cell
    grey = masks.encode(mask)
    assert masks.recode(grey, None) is grey
    wide = masks.encode(mask.astype(np.uint16) + 300)
    assert masks.recode(wide, None) is wide
    # PIL's palette files are unfiltered: those of VOC are cells as they are.
    pil = pil_png(mask, "P")
    assert masks.recode(pil, VOC.palette()) is pil


def test_recode_makes_cells_of_other_labels() -> None:
    mask = blobs(30, 40, seed=9)
    cell = masks.encode(mask, CAMVID.palette())
    for data in (
        masks.encode(mask, VOC.palette()),
        masks.encode(mask),
        masks.encode(mask.astype(np.uint16)),
        pil_png(mask),
        pil_png(mask, "P", bits=4),
        cv2.imencode(".png", mask)[1].tobytes(),
        cell[:-12] + chunk(b"tEXt", b"a\0b") + cell[-12:],
        cell + b"more",
    ):
        assert masks.recode(data, CAMVID.palette()) == cell
    assert masks.recode(cell, None) == masks.encode(mask)
    out = io.BytesIO()
    Image.fromarray(mask).save(out, "TIFF")
    assert masks.recode(out.getvalue(), CAMVID.palette()) == cell
    wide = mask.astype(np.uint16) + 300
    assert masks.recode(pil_png(wide), CAMVID.palette()) == masks.encode(wide)


@pytest.mark.parametrize("folder", ["train", "val", "test"])
def test_camvid_masks(shared_data, folder: str) -> None:
    files = sorted((shared_data / f"camvid/segnet/CamVid/{folder}annot").glob("*.png"))[::20]
    assert files
    for path in files:
        data = path.read_bytes()
        with Image.open(path) as image:
            truth = np.array(image)
        found = masks.read_label(data, path.name)
        np.testing.assert_array_equal(found, truth)
        cell = masks.recode(data, CAMVID.palette())
        assert cell == masks.encode(found, CAMVID.palette())
        np.testing.assert_array_equal(masks.decode(cell), truth)
        counted = masks.class_pixels(truth, CAMVID)
        values, pixels = np.unique(truth, return_counts=True)
        assert [(c.id, c.pixels) for c in counted] == list(zip(values, pixels, strict=True))


def test_voc_masks_are_cells_byte_for_byte(shared_data) -> None:
    files = sorted((shared_data / "voc2012/VOCdevkit/VOC2012/SegmentationClass").glob("*.png"))
    assert files
    for path in files:
        data = path.read_bytes()
        with Image.open(path) as image:
            truth = np.array(image)
            assert bytes(image.getpalette() or ()) == VOC.palette()
        np.testing.assert_array_equal(masks.read_label(data, path.name), truth)
        assert masks.recode(data, VOC.palette()) is data
        masks.check_ids(truth, VOC, path.name)


# Counting


@settings(max_examples=100, deadline=None)
@given(data=st.data(), shape=SHAPES, name=st.sampled_from(["camvid-11", "nyu-894", "voc-21"]))
def test_class_pixels(data: st.DataObject, shape: tuple[int, int], name: str) -> None:
    space = label_space(name)
    mask = data.draw(
        arrays.arrays(space.dtype, shape, elements=st.sampled_from(sorted({*space.ids})))
    )
    sure = data.draw(arrays.arrays(np.uint8, shape))
    values, pixels = np.unique(mask, return_counts=True)
    plain = masks.class_pixels(mask, space)
    assert plain == tuple(ClassPixels(int(v), int(n)) for v, n in zip(values, pixels, strict=True))
    for found in masks.class_pixels(mask, space, sure):
        expected = sure[mask == found.id].astype(np.float64).mean() / 255
        assert found.confidence == pytest.approx(expected, abs=1e-9)
    masks.check_ids(mask, space, "x")


def test_counts_of_a_cell_as_it_is_decoded() -> None:
    mask = blobs(50, 60, seed=10)
    sure = masks.decode(masks.encode(blobs(50, 60, seed=11, classes=256)))
    seen = masks.decode(masks.encode(mask))
    assert masks.class_pixels(seen, CAMVID, sure) == masks.class_pixels(mask, CAMVID, sure.copy())


def test_counts_of_masks_beyond_float32() -> None:
    mask = np.zeros((5000, 5000), np.uint8)
    mask[0, 0] = 1
    found = masks.class_pixels(mask, CAMVID)
    assert found == (ClassPixels(0, 24_999_999), ClassPixels(1, 1))


def test_stray_ids_are_named() -> None:
    mask = np.array([[0, 12, 12], [200, 11, 3]], dtype=np.uint8)
    for act in (
        lambda: masks.check_ids(mask, CAMVID, "a.png"),
        lambda: masks.class_pixels(mask, CAMVID, path="a.png"),
        lambda: masks.check_ids(mask.astype(np.uint16), CAMVID, "a.png"),
    ):
        with pytest.raises(
            LabelOutOfRange, match=r"a\.png: 3 pixels hold values 12, 200.*camvid-11"
        ):
            act()
    with pytest.raises(LabelOutOfRange, match=r"19, \.\.\."):
        masks.check_ids(np.arange(300, dtype=np.uint16)[None], LabelSpace("a", (), 255), "x")
    masks.check_ids(np.array([[255]], np.uint8), LabelSpace("a", (), 255), "x")


def test_confidence_has_the_masks_shape() -> None:
    with pytest.raises(ValueError, match="confidence"):
        masks.class_pixels(np.zeros((2, 3), np.uint8), CAMVID, np.zeros((3, 2), np.uint8))


# Colours


@settings(max_examples=60, deadline=None)
@given(data=st.data(), shape=SHAPES)
def test_colours_to_ids_and_back(data: st.DataObject, shape: tuple[int, int]) -> None:
    space = label_space(data.draw(st.sampled_from(["camvid-32", "voc-21", "nyu-894"])))
    mask = data.draw(arrays.arrays(space.dtype, shape, elements=st.sampled_from(space.ids)))
    rgb = np.zeros((*shape, 3), np.uint8)
    for c in space.classes:
        rgb[mask == c.id] = c.colour
    found, stray = masks.colours_to_ids(rgb, space, "x")
    assert found.dtype == mask.dtype
    np.testing.assert_array_equal(found, mask)
    assert stray == {}


def test_unknown_colours_are_counted_and_ignored() -> None:
    space = label_space("camvid-32")
    rgb = np.zeros((4, 5, 3), np.uint8)
    rgb[:2] = space.by_name["Road"].colour
    rgb[0, 3] = (1, 2, 3)
    rgb[1, 1:3] = (192, 0, 65)
    found, stray = masks.colours_to_ids(rgb, space, "x")
    assert stray == {(1, 2, 3): 1, (192, 0, 65): 2}
    assert (found == space.ignore_index).sum() == 13
    assert (found == 17).sum() == 7


def shared_colours() -> LabelSpace:
    return LabelSpace(
        "mine",
        (
            LabelClass(0, "nothing", (9, 9, 9), void=True),
            LabelClass(1, "a", (9, 9, 9)),
            LabelClass(2, "b", (8, 8, 8)),
            LabelClass(3, "c", (8, 8, 8)),
            LabelClass(4, "rest", (7, 7, 7)),
            LabelClass(5, "ignored", (7, 7, 7)),
        ),
        5,
    )


@pytest.mark.parametrize(("value", "expected"), [(9, 1), (7, 4)])
def test_of_equal_colours_the_class_that_is_not_void_wins(value: int, expected: int) -> None:
    found, stray = masks.colours_to_ids(np.full((2, 2, 3), value, np.uint8), shared_colours(), "x")
    assert found.tolist() == [[expected] * 2] * 2
    assert stray == {}


def test_a_colour_of_two_classes_is_no_label() -> None:
    rgb = np.full((2, 2, 3), 9, np.uint8)
    rgb[1, 1] = 8
    with pytest.raises(UnknownColour, match=r"\(8, 8, 8\) .* 'b', 'c'"):
        masks.colours_to_ids(rgb, shared_colours(), "x")


def test_full_camvid_labels(shared_data) -> None:
    space = label_space("camvid-32")
    folder = shared_data / "camvid/full32/LabeledApproved_full"
    for path in sorted(folder.glob("*_L.png"))[::7]:
        rgb = masks.read_colour_label(path.read_bytes(), path.name)
        with Image.open(path) as image:
            np.testing.assert_array_equal(rgb, np.array(image.convert("RGB")))
        found, stray = masks.colours_to_ids(rgb, space, path.name)
        assert sum(stray.values()) <= 1
        back = np.frombuffer(space.palette(), np.uint8).reshape(256, 3)[found]
        assert (back != rgb).any(axis=2).sum() == sum(stray.values())


def test_voc_colour_and_index_agree() -> None:
    assert [voc_colour(i) for i in (0, 1, 15)] == [(0, 0, 0), (128, 0, 0), (192, 128, 128)]


# Threads


def share_of_time_slices(work) -> float:
    """Return in how many slices of 2 ms a Python loop gets to run while `work` runs elsewhere."""
    done = threading.Event()

    def run() -> None:
        for _ in range(3):
            work()
        done.set()

    worker = threading.Thread(target=run)
    start = time.perf_counter()
    worker.start()
    seen = set()
    while not done.is_set():
        seen.add(int((time.perf_counter() - start) / 0.002))
    worker.join()
    return len(seen) / ((time.perf_counter() - start) / 0.002)


@pytest.mark.parametrize(("act", "tiles"), [("encode", 8), ("decode", 28)])
def test_cells_are_coded_without_the_gil(act: str, tiles: int) -> None:
    mask = np.tile(blobs(256, 256, seed=13), (tiles, tiles))
    cell = masks.encode(mask)
    work = {"encode": lambda: masks.encode(mask), "decode": lambda: masks.decode(cell)}[act]
    # Calls that hold the GIL for tens of milliseconds leave the loop a tenth; a busy machine may
    # take its share too, so the best of a few counts.
    assert any(share_of_time_slices(work) > 0.3 for _ in range(5))
