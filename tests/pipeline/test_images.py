from __future__ import annotations

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipeline.errors import CorruptImage, ImageTooLarge, InputError, MissingFile
from pipeline.files import open_tree
from pipeline.images import Header, decode, header, read_header, read_url_header

HEIGHT, WIDTH = 40, 60
_Y, _X = np.mgrid[:HEIGHT, :WIDTH]
RGB = np.stack([_X * 4, _Y * 6, (_X + _Y) * 2], axis=-1).astype(np.uint8)
GREY16 = (_X * 1000 + _Y).astype(np.uint16)
SOFT = Image.fromarray(RGB)


def saved(image: Image.Image, format: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, axis=2)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(samples: np.ndarray, depth: int, colour: int, *, extra: bytes = b"") -> bytes:
    """Write a PNG by hand: Pillow writes no 16-bit colour."""
    height, width = samples.shape[:2]
    rows = samples.astype(">u2" if depth == 16 else np.uint8).reshape(height, -1)
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    size = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size)
        + extra
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )


def exif(orientation: int, order: str = "<") -> bytes:
    """Return an EXIF block whose second tag is the orientation."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    tags = struct.pack(order + "HHIHH", 0x0100, 3, 1, 60, 0)
    tags += struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    return mark + struct.pack(order + "IH", 8, 2) + tags + bytes(4)


PALETTE = SOFT.quantize(200)
CMYK = Image.merge("CMYK", [*SOFT.split(), Image.fromarray((_X // 2).astype(np.uint8))])
ALPHA = np.dstack([RGB, 255 - RGB[..., 0]])

LOSSLESS = {
    "rgb png": (saved(SOFT, "PNG"), RGB),
    "rgba png drops alpha": (saved(Image.fromarray(ALPHA), "PNG"), RGB),
    "grey png": (saved(Image.fromarray(RGB[..., 0]), "PNG"), three(RGB[..., 0])),
    "grey alpha png": (saved(Image.fromarray(ALPHA[..., [0, 3]]), "PNG"), three(RGB[..., 0])),
    "palette png": (saved(PALETTE, "PNG"), np.asarray(PALETTE.convert("RGB"))),
    "palette png with transparency": (
        saved(PALETTE, "PNG", transparency=bytes(range(200))),
        np.asarray(PALETTE.convert("RGB")),
    ),
    "rgb png with a transparent colour": (saved(SOFT, "PNG", transparency=(0, 0, 0)), RGB),
    "bilevel png": (
        saved(Image.fromarray(RGB[..., 0] > 100), "PNG"),
        three(np.where(RGB[..., 0] > 100, 255, 0).astype(np.uint8)),
    ),
    "16-bit grey png": (raw_png(GREY16, 16, 0), three((GREY16 >> 8).astype(np.uint8))),
    "16-bit rgb png": (raw_png(RGB.astype(np.uint16) * 257, 16, 2), RGB),
    "16-bit rgba png": (raw_png(ALPHA.astype(np.uint16) * 257, 16, 6), RGB),
    "png with a gamma": (raw_png(RGB, 8, 2, extra=chunk(b"gAMA", struct.pack(">I", 9999))), RGB),
    "16-bit grey tiff": (
        saved(Image.fromarray(GREY16), "TIFF"),
        three((GREY16 >> 8).astype(np.uint8)),
    ),
    "rgb tiff": (saved(SOFT, "TIFF", compression="tiff_lzw"), RGB),
    "bmp": (saved(SOFT, "BMP"), RGB),
    "ppm": (saved(SOFT, "PPM"), RGB),
    "lossless webp": (saved(SOFT, "WEBP", lossless=True), RGB),
    "animated webp's first frame": (
        saved(SOFT, "WEBP", lossless=True, save_all=True, append_images=[ImageOps.invert(SOFT)]),
        RGB,
    ),
    "animated gif's first frame": (
        saved(PALETTE, "GIF", save_all=True, append_images=[PALETTE.rotate(180)]),
        np.asarray(PALETTE.convert("RGB")),
    ),
    "animated png's first frame": (
        saved(SOFT, "PNG", save_all=True, append_images=[ImageOps.invert(SOFT)]),
        RGB,
    ),
}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_pixels_are_exact(kind):
    data, expected = LOSSLESS[kind]
    pixels = decode(data, kind)
    assert (pixels.dtype, pixels.flags.c_contiguous) == (np.uint8, True)
    np.testing.assert_array_equal(pixels, expected)
    found = header(data, kind)
    assert (found.height, found.width) == (HEIGHT, WIDTH)
    assert found.format == Image.open(io.BytesIO(data)).format.lower()


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_pixels_are_pillow_s(mode, progressive, subsampling):
    data = saved(SOFT.convert(mode), "JPEG", subsampling=subsampling, progressive=progressive)
    theirs = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    # Two builds of libjpeg-turbo may round one step apart.
    assert np.abs(decode(data, "x") - theirs).max() <= 1


def test_cmyk_jpeg_is_not_inverted():
    data = saved(CMYK, "JPEG", quality=95)
    assert header(data, "x").components == 4
    expected = np.asarray(CMYK.convert("RGB")).astype(int)
    assert np.abs(decode(data, "x") - expected).mean() < 3


def test_cmyk_jpeg_without_adobe_s_marker():
    """Such a file stores ink, not its inverse."""
    data = saved(ImageOps.invert(CMYK.convert("RGB")).convert("CMYK"), "JPEG", quality=95)
    at = data.index(b"\xff\xee")
    plain = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
    theirs = np.asarray(Image.open(io.BytesIO(plain)).convert("RGB"))
    np.testing.assert_array_equal(decode(plain, "x"), theirs)


def test_the_bytes_decide_not_the_name(tmp_path):
    (tmp_path / "x.png").write_bytes(saved(SOFT, "JPEG"))
    assert read_url_header(str(tmp_path / "x.png")).format == "jpeg"


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.randoms(use_true_random=False))
def test_png_of_any_size_survives(height, width, random):
    pixels = np.frombuffer(random.randbytes(height * width * 3), np.uint8)
    pixels = pixels.reshape(height, width, 3)
    data = saved(Image.fromarray(pixels), "PNG")
    np.testing.assert_array_equal(decode(data, "x"), pixels)
    assert header(data, "x") == Header(height, width, "png")


class TestOrientation:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
    def test_it_is_applied_once_as_pillow_does(self, format, orientation):
        block = Image.Exif()
        block[0x0112] = orientation
        data = saved(SOFT, format, exif=block)
        # Pillow turns a TIFF itself when it loads it; its transposition then does nothing more.
        image = Image.open(io.BytesIO(data))
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        plain = np.asarray(Image.open(io.BytesIO(saved(SOFT, format))).convert("RGB"))
        found = header(data, "x")
        assert found.orientation == orientation
        assert (found.height, found.width) == (HEIGHT, WIDTH)
        assert found.upright() == upright.shape[:2]
        turned, stored = decode(data, "x"), decode(data, "x", orient=False)
        assert turned.flags.c_contiguous
        assert np.abs(turned.astype(int) - upright).max() <= 1
        assert np.abs(stored.astype(int) - plain).max() <= 1

    @pytest.mark.parametrize("order", ["<", ">"])
    def test_both_byte_orders(self, order):
        data = saved(SOFT, "JPEG", exif=b"Exif\0\0" + exif(6, order))
        assert header(data, "x").orientation == 6
        png = raw_png(RGB, 8, 2, extra=chunk(b"eXIf", exif(3, order)))
        assert header(png, "x").orientation == 3

    @pytest.mark.parametrize("block", [b"", b"II*\0", exif(0), exif(9), exif(6)[:20], b"junk" * 9])
    def test_a_damaged_block_turns_nothing(self, block):
        data = saved(SOFT, "JPEG", exif=b"Exif\0\0" + block)
        assert header(data, "x").orientation == 1

    @given(st.binary(max_size=60))
    def test_any_block_is_survived(self, block):
        png = raw_png(RGB[:2, :2], 8, 2, extra=chunk(b"eXIf", b"II*\0" + block))
        assert header(png, "x").orientation in range(1, 9)


JPEG = saved(SOFT.resize((200, 150)), "JPEG")
PNG = saved(Image.effect_noise((200, 150), 50), "PNG")

BAD = {
    "zero bytes": (b"", "empty"),
    "zeros": (bytes(5000), "only zeros"),
    "text": (b"not an image\nat all", "text, not an image"),
    "web page": (b"<!DOCTYPE html><html>404</html>", "web or XML page"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
    "noise": (bytes(range(128, 256)) * 9, "no image format"),
    "jpeg magic only": (b"\xff\xd8\xff", "truncated"),
    "jpeg without a frame": (b"\xff\xd8\xff\xda\0\x02\xff\xd9", "no size"),
    "jpeg with a torn segment": (JPEG[:20] + b"x" * 200, "marker"),
    "half a jpeg": (JPEG[: len(JPEG) // 2], "truncated"),
    "a jpeg without its last two bytes": (JPEG[:-2], "truncated"),
    "half a jpeg padded with zeros": (JPEG[: len(JPEG) // 2] + bytes(9000), "truncated"),
    "half a png": (PNG[: len(PNG) // 2], "truncated"),
    "png signature": (PNG[:8], "truncated"),
    "png without its last byte": (PNG[:-1], "truncated"),
    "png without width": (PNG[:16] + bytes(4) + PNG[20:], "no size"),
    "half a gif": (saved(PALETTE, "GIF")[:900], "damaged"),
    "half a webp": (saved(Image.effect_noise((90, 90), 50), "WEBP")[:800], "damaged"),
    "half a tiff": (saved(SOFT, "TIFF")[:3000], "damaged"),
    "half a bmp": (saved(SOFT, "BMP")[:3000], "damaged"),
    "png with a missing middle": (PNG[: len(PNG) // 2] + PNG[-12:], "damaged"),
    "float tiff": (saved(Image.fromarray(np.float32(RGB[..., 0])), "TIFF"), "floats"),
    "32-bit tiff": (saved(Image.fromarray(RGB[..., 0].astype(np.int32) << 20), "TIFF"), "32 bits"),
}


class TestBadFiles:
    @pytest.mark.parametrize("kind", BAD)
    def test_each_is_refused_in_plain_words(self, kind):
        data, cause = BAD[kind]
        with pytest.raises(CorruptImage) as caught:
            decode(data, "dir/x.jpg")
        assert caught.value.path == "dir/x.jpg"
        assert cause in caught.value.cause
        assert caught.value.mend

    @pytest.mark.parametrize("kind", [k for k, (_, cause) in BAD.items() if cause == "truncated"])
    def test_the_header_already_tells_a_truncated_file(self, kind, tmp_path):
        (tmp_path / "x.jpg").write_bytes(BAD[kind][0])
        with pytest.raises(CorruptImage, match="truncated"):
            read_header(open_tree(str(tmp_path)), "x.jpg")

    def test_a_thumbnail_s_end_marker_does_not_hide_the_cut(self):
        thumbnail = saved(SOFT.resize((16, 12)), "JPEG")
        data = saved(SOFT, "JPEG", exif=b"Exif\0\0" + exif(1) + thumbnail)
        assert decode(data, "x").shape == (HEIGHT, WIDTH, 3)
        with pytest.raises(CorruptImage, match="truncated"):
            decode(data[:-300], "x")

    @pytest.mark.parametrize("tail", [bytes(100), bytes(100_000), b"\r\n", JPEG, JPEG[:900]])
    def test_what_follows_the_end_does_not_matter(self, tail, tmp_path):
        for name, whole in (("x.jpg", JPEG), ("x.png", PNG)):
            (tmp_path / name).write_bytes(whole + tail)
            np.testing.assert_array_equal(decode(whole + tail, "x"), decode(whole, "x"))
            assert read_header(open_tree(str(tmp_path)), name) == header(whole, "x")

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, len(JPEG) - 1))
    def test_a_jpeg_cut_anywhere_raises(self, at):
        with pytest.raises(InputError):
            decode(JPEG[:at], "x")

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, len(PNG) - 1), st.integers(1, 255))
    def test_a_png_with_any_wrong_byte_raises_or_gives_its_size(self, at, flip):
        data = bytearray(PNG)
        data[at] ^= flip
        assume(not 8 <= at < 33)  # the header: another size, and perhaps a huge one
        with contextlib.suppress(InputError):
            assert decode(bytes(data), "x").shape == (150, 200, 3)

    @settings(max_examples=100, deadline=None)
    @given(st.binary(max_size=300), st.sampled_from([b"", JPEG[:3], PNG[:8], PNG[:33], b"GIF89a"]))
    def test_any_bytes_raise_input_errors_only(self, data, magic):
        with contextlib.suppress(InputError):
            decode(magic + data, "x", pixel_limit=10_000)

    def test_a_missing_file_and_a_directory(self, tmp_path):
        (tmp_path / "x.jpg").mkdir()
        for name in ("x.jpg", "gone.jpg"):
            with pytest.raises(MissingFile):
                read_header(open_tree(str(tmp_path)), name)


class TestPixelLimit:
    def test_a_bomb_is_refused_by_its_header(self):
        size = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
        body = chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
        bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + body
        with pytest.raises(ImageTooLarge, match="50000 x 50000"):
            decode(bomb, "x")

    def test_a_jpeg_bomb_too(self):
        at = JPEG.index(b"\xff\xc0") + 5
        bomb = JPEG[:at] + struct.pack(">HH", 65_000, 65_000) + JPEG[at + 4 :]
        with pytest.raises(ImageTooLarge):
            decode(bomb, "x")

    def test_other_formats_obey_pillow_s_limit(self):
        data = bytearray(saved(SOFT, "BMP"))
        data[18:26] = struct.pack("<ii", 50_000, 50_000)
        with pytest.raises(ImageTooLarge):
            decode(bytes(data), "x")

    @pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP"])
    def test_the_limit_can_be_set(self, format):
        data = saved(SOFT, format)
        assert decode(data, "x", pixel_limit=HEIGHT * WIDTH).shape == (HEIGHT, WIDTH, 3)
        with pytest.raises(ImageTooLarge, match="60 x 40"):
            decode(data, "x", pixel_limit=HEIGHT * WIDTH - 1)


class TestReadHeader:
    def test_a_big_file_is_not_read_whole(self, tmp_path):
        big = saved(Image.effect_noise((600, 600), 90), "PNG")
        assert len(big) > 200_000
        torn = bytearray(big)
        torn[70_000:-100] = bytes(len(big) - 70_100)
        (tmp_path / "x.png").write_bytes(torn)
        assert read_header(open_tree(str(tmp_path)), "x.png") == Header(600, 600, "png")

    def test_long_metadata_before_the_size_is_read_through(self, tmp_path):
        data = JPEG[:2] + (b"\xff\xe2\xff\xff" + bytes(65_533)) * 3 + JPEG[2:]
        (tmp_path / "x.jpg").write_bytes(data)
        found = read_header(open_tree(str(tmp_path)), "x.jpg")
        assert (found.height, found.width) == (150, 200)

    def test_fill_bytes_between_segments(self):
        assert header(JPEG[:2] + b"\xff\xff" + JPEG[2:], "x") == header(JPEG, "x")

    def test_real_files_agree_with_pillow(self, shared_data):
        images = [*shared_data.glob("voc2012/VOCdevkit/VOC2012/JPEGImages/*.jpg")][:10]
        images += [*shared_data.glob("camvid/segnet/**/train/*.png")][:5]
        assert images
        for path in images:
            with Image.open(path) as theirs:
                found = read_url_header(str(path))
                assert (found.width, found.height) == theirs.size
                expected = np.asarray(theirs.convert("RGB")).astype(int)
            assert np.abs(decode(path.read_bytes(), str(path)) - expected).max() <= 1
