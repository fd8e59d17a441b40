from __future__ import annotations

import io
import struct
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import masks
from pipeline.errors import CorruptMask, ImageTooLarge, InputError
from pipeline.label_space import label_space
from pipeline.labels import png
from tests.pipeline.label_files import (
    MASKS,
    SIGNATURE,
    adam7,
    blobs,
    chunk,
    chunks,
    pil_png,
    raw_png,
)

VOC = label_space("voc-21")
CAMVID = label_space("camvid-11")


@pytest.mark.parametrize("mode", ["L", "P"])
@pytest.mark.parametrize("level", [0, 1, 9])
@pytest.mark.parametrize("optimize", [False, True])
def test_pngs_by_pil(mode: str, level: int, optimize: bool) -> None:
    mask = blobs(37, 53, seed=1, classes=21)
    data = pil_png(mask, mode, compress_level=level, optimize=optimize)
    np.testing.assert_array_equal(masks.read_label(data, "x.png"), mask)


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("width", [1, 5, 8, 53])
def test_narrow_palettes_by_pil(depth: int, width: int) -> None:
    mask = np.random.default_rng(depth).integers(0, 1 << depth, (9, width), dtype=np.uint8)
    data = pil_png(mask, "P", bits=depth)
    assert chunks(data)[0][1][8] == depth
    found = masks.read_label(data, "x.png")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, mask)


def test_bilevel_and_wide_pngs_by_pil() -> None:
    mask = blobs(9, 13, seed=2, classes=2)
    found = masks.read_label(pil_png(mask.astype(bool)), "x.png")
    np.testing.assert_array_equal(found, mask)
    wide = np.random.default_rng(0).integers(0, 65536, (9, 13), dtype=np.uint16)
    np.testing.assert_array_equal(masks.read_label(pil_png(wide), "x.png"), wide)


@pytest.mark.parametrize("strategy", range(5))
def test_every_filter_by_opencv(strategy: int) -> None:
    mask = blobs(64, 48, seed=3)
    flags = {0: cv2.IMWRITE_PNG_FILTER_NONE, 1: cv2.IMWRITE_PNG_FILTER_SUB,
             2: cv2.IMWRITE_PNG_FILTER_UP, 3: cv2.IMWRITE_PNG_FILTER_AVG,
             4: cv2.IMWRITE_PNG_FILTER_PAETH}  # fmt: skip
    for image in (mask, mask.astype(np.uint16) * 256 + 7):
        done, data = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_FILTER, flags[strategy]])
        assert done
        np.testing.assert_array_equal(masks.read_label(data.tobytes(), "x.png"), image)


@settings(max_examples=60, deadline=None)
@given(mask=MASKS)
def test_interlaced_pngs(mask: np.ndarray) -> None:
    height, width = mask.shape
    data = raw_png(adam7(mask), width, height, 8 * mask.itemsize, 0, lace=1)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(np.array(image), mask)  # the test's own writer is right
    np.testing.assert_array_equal(masks.read_label(data, "x.png"), mask)


def test_ids_stay_ids_whatever_else_the_file_says() -> None:
    mask = blobs(12, 10, seed=4)
    rows = b"".join(b"\0" + row.tobytes() for row in mask)
    gamma, clear = chunk(b"gAMA", struct.pack(">I", 45455)), chunk(b"tRNS", bytes(12))
    palette = chunk(b"PLTE", bytes(range(36)))
    for data in (
        raw_png(rows, 10, 12, 8, 0, gamma),
        raw_png(rows, 10, 12, 8, 0, chunk(b"tRNS", b"\0\1")),
        raw_png(rows, 10, 12, 8, 3, gamma + palette + clear),
        raw_png(adam7(mask), 10, 12, 8, 3, palette + clear, lace=1),
    ):
        np.testing.assert_array_equal(masks.read_label(data, "x.png"), mask)


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "GIF", "PPM"])
def test_other_lossless_files(kind: str) -> None:
    mask = blobs(12, 10, seed=5)
    out = io.BytesIO()
    Image.fromarray(mask).save(out, kind)
    np.testing.assert_array_equal(masks.read_label(out.getvalue(), "x"), mask)


def test_wide_tiffs() -> None:
    values = np.array([[0, 894], [26010, 65535]], dtype=np.int32)
    for image in (Image.fromarray(values), Image.fromarray(values.astype(np.uint16))):
        out = io.BytesIO()
        image.save(out, "TIFF")
        found = masks.read_label(out.getvalue(), "x.tif")
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found, values)
    out = io.BytesIO()
    Image.fromarray(values - 1).save(out, "TIFF")
    with pytest.raises(CorruptMask, match=r"-1\.\.65534"):
        masks.read_label(out.getvalue(), "x.tif")


@pytest.mark.parametrize(
    ("mode", "kind", "says"),
    [
        ("RGB", "PNG", "8-bit RGB"),
        ("RGBA", "PNG", "RGBA"),
        ("LA", "PNG", "grey with alpha"),
        ("RGB", "BMP", "mode RGB"),
        ("F", "TIFF", "mode F"),
        ("L", "JPEG", "lossy"),
        ("RGB", "JPEG", "lossy"),
    ],
)
def test_files_that_hold_no_ids_are_refused_by_name(mode: str, kind: str, says: str) -> None:
    out = io.BytesIO()
    Image.new(mode, (4, 3)).save(out, kind)
    with pytest.raises(CorruptMask, match=says) as caught:
        masks.read_label(out.getvalue(), "a/b.png")
    assert str(caught.value).startswith("a/b.png: ")
    assert caught.value.mend


WHOLE = masks.encode(blobs(40, 50, seed=6), VOC.palette())


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=200))
def test_garbage_is_corrupt(data: bytes) -> None:
    for candidate in (data, SIGNATURE + data):
        for read in (masks.decode, masks.read_label, masks.read_colour_label):
            with pytest.raises(CorruptMask):
                read(candidate, "x")


@settings(max_examples=100, deadline=None)
@given(end=st.integers(0, len(WHOLE) - 1))
def test_a_cell_cut_off_is_corrupt(end: int) -> None:
    for read in (masks.decode, masks.read_label, masks.read_colour_label):
        with pytest.raises(CorruptMask):
            read(WHOLE[:end], "x")


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, len(WHOLE) - 1), flip=st.integers(1, 255))
def test_a_damaged_cell_is_never_read_wrongly(at: int, flip: int) -> None:
    data = bytearray(WHOLE)
    data[at] ^= flip
    try:
        found = masks.decode(bytes(data))
    except InputError:
        return
    np.testing.assert_array_equal(found, masks.decode(WHOLE))


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "GIF", "PPM"])
@pytest.mark.parametrize("share", [0.2, 0.6])
def test_other_files_cut_off_are_corrupt(kind: str, share: float) -> None:
    out = io.BytesIO()
    Image.fromarray(blobs(40, 50, seed=7)).save(out, kind)
    with pytest.raises(CorruptMask):
        masks.read_label(out.getvalue()[: int(len(out.getvalue()) * share)], "x")


def test_a_stream_of_the_wrong_length_is_corrupt() -> None:
    for rows in (b"\0\1\2" * 3, b"\0\1\2" * 5, b""):
        with pytest.raises(CorruptMask):
            masks.decode(raw_png(rows, 2, 4, 8, 0))


def test_a_filter_that_does_not_exist_is_corrupt() -> None:
    with pytest.raises(CorruptMask):
        masks.decode(raw_png(b"\7\1\2" * 4, 2, 4, 8, 0))


@pytest.mark.parametrize(("width", "height"), [(0, 4), (4, 0)])
def test_no_pixels_are_corrupt(width: int, height: int) -> None:
    with pytest.raises(CorruptMask, match="no pixels"):
        masks.decode(raw_png(b"", width, height, 8, 0))


def test_bombs_are_refused_before_memory_is_taken() -> None:
    with pytest.raises(ImageTooLarge):
        masks.decode(raw_png(b"", 1 << 20, 1 << 20, 8, 0))
    with pytest.raises(CorruptMask, match="fewer pixels"):
        masks.decode(raw_png(bytes(1000), 1 << 13, 1 << 14, 8, 0))
    head = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 1078, 0, 0, 1078, 40, 1 << 16, 1 << 16, 1, 8,
                               0, 0, 0, 0, 0, 0)  # fmt: skip
    with pytest.raises(InputError):
        masks.read_label(head + bytes(1024), "x.bmp")


def test_every_real_label_is_read_as_pil_reads_it(shared_data) -> None:
    patterns = (
        "ade20k/sceneparsing/**/annotations/**/*.png",
        "cityscapes/gtFine/*/*/*Ids.png",
        "coco/stuff_pixelmaps/**/*.png",
        "nyudv2/label*/*.png",
        "sunrgbd/label37_mseg/**/*.png",
    )
    for pattern in patterns:
        files = sorted(shared_data.glob(pattern))[:4]
        assert files, pattern
        for path in files:
            with Image.open(path) as image:
                truth = np.array(image)
            np.testing.assert_array_equal(masks.read_label(path.read_bytes(), path.name), truth)


# Colours


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L"])
def test_colour_labels_as_pil_sees_them(mode: str) -> None:
    mask = blobs(21, 34, seed=12)
    rgb = np.frombuffer(VOC.palette(), np.uint8).reshape(256, 3)[mask]
    image = Image.fromarray(rgb).convert(mode, palette=Image.Palette.ADAPTIVE)
    for kind in ("PNG", "BMP" if mode != "RGBA" else "TIFF"):
        out = io.BytesIO()
        image.save(out, kind)
        expected = np.array(image.convert("RGB"))
        found = masks.read_colour_label(out.getvalue(), "x")
        np.testing.assert_array_equal(found, expected)
        assert found.flags.c_contiguous


def test_narrow_grey_as_colours() -> None:
    found = masks.read_colour_label(pil_png(np.eye(4, dtype=bool)), "x")
    np.testing.assert_array_equal(found[:, :, 1], np.eye(4, dtype=np.uint8) * 255)


def test_colour_labels_that_are_none() -> None:
    wide = raw_png(b"\0" + bytes(6), 1, 1, 16, 2)
    with pytest.raises(CorruptMask, match="16-bit RGB"):
        masks.read_colour_label(wide, "x")
    short = raw_png(b"\0\5", 1, 1, 8, 3, chunk(b"PLTE", bytes(6)))
    with pytest.raises(CorruptMask, match="palette of 2"):
        masks.read_colour_label(short, "x")
    out = io.BytesIO()
    Image.new("RGB", (4, 3)).save(out, "JPEG")
    with pytest.raises(CorruptMask, match="lossy"):
        masks.read_colour_label(out.getvalue(), "x")
    with pytest.raises(CorruptMask):
        masks.colours_to_ids(np.zeros((2, 2), np.uint8), CAMVID, "x")


def test_rgba_is_written_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 4), np.uint8)
    with Image.open(io.BytesIO(png.write_colours(pixels))) as image:
        assert image.mode == "RGBA"
        np.testing.assert_array_equal(np.array(image), pixels)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_quick_files_have_the_same_pixels(kind: type) -> None:
    """Only in the block and the thread that asked for them: a store's cells stay as they are."""
    mask = blobs(90, 120, seed=3).astype(kind)
    cell = masks.encode(mask)
    with png.quickly(), ThreadPoolExecutor(1) as pool:
        quick = masks.encode(mask)
        assert pool.submit(masks.encode, mask).result() == cell
    assert masks.encode(mask) == cell != quick
    with Image.open(io.BytesIO(quick)) as image:
        np.testing.assert_array_equal(np.array(image), mask)
    assert masks.recode(quick) == quick  # a mask cell, too
