"""A bucket of 200 in which each kind of odd or bad image has one: labelled rightly, or explained.

The network's label map is the image's colours, so that a mask tells how its image was decoded.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from pipeline.masks import decode
from pipeline.store import Store
from tests.pipeline.colour_model import colours

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.record import Record

ROOT = Path(__file__).resolve().parents[2]
MODEL = "python:tests.pipeline.colour_model:make?classes=64"
GOOD = 160
_LEVELS = np.array([32, 96, 160, 224], np.uint8)
"""The middles of what the network takes for one colour."""
_EDGE = 5


def blocks(seed: int, rows: int = 3, columns: int = 4) -> Image.Image:
    """Return 16-pixel blocks of random colours, each in the middle of a class."""
    drawn = np.random.default_rng(seed).integers(0, 4, (rows, columns, 3))
    return Image.fromarray(np.repeat(np.repeat(_LEVELS[drawn], 16, 0), 16, 1))


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    if format == "JPEG":
        options = {"quality": 95, "subsampling": 0, **options}
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def turned(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return saved(blocks(100 + orientation), "JPEG", exif=block)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_size(width: int, height: int) -> bytes:
    """Return a small PNG whose header promises so many pixels."""
    size = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + size + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


# --- what Pillow makes of a file, by the rules that pipeline/images.py states ---------------------


def plain(data: bytes) -> NDArray[np.uint8]:
    """The first frame, as RGB, the right way up."""
    image = Image.open(io.BytesIO(data))
    image.seek(0)
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def without_alpha(data: bytes) -> NDArray[np.uint8]:
    """Alpha is dropped, what lies under it is not blended."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))[..., :3]


def high_byte(data: bytes) -> NDArray[np.uint8]:
    """16-bit grey keeps its high byte, three times."""
    grey = np.asarray(Image.open(io.BytesIO(data))).astype(int) >> 8
    return np.repeat(grey[..., None], 3, 2).astype(np.uint8)


SOFT = blocks(1)
ALPHA = SOFT.copy()
ALPHA.putalpha(Image.fromarray(np.arange(48 * 64).astype(np.uint8).reshape(48, 64)))
DEEP = Image.fromarray(np.asarray(SOFT)[..., 0].astype(np.uint16) * 257)
WIDE = blocks(2, 1, 1250).crop((0, 0, 20_000, 1))
PALETTE = SOFT.quantize(64)

ODD: dict[str, tuple[bytes, Callable[[bytes], NDArray[np.uint8]]]] = {
    "a png that is called.jpg": (saved(SOFT, "PNG"), plain),
    "cmyk.jpg": (saved(SOFT.convert("CMYK"), "JPEG"), plain),
    "grey.jpg": (saved(SOFT.convert("L"), "JPEG"), plain),
    "16 bits.png": (saved(DEEP, "PNG"), high_byte),
    "16 bits.tif": (saved(DEEP, "TIFF"), high_byte),
    "one pixel.png": (saved(SOFT.crop((0, 0, 1, 1)), "PNG"), plain),
    "one row of 20000.png": (saved(WIDE, "PNG"), plain),
    "one column.jpg": (saved(SOFT.crop((0, 0, 1, 48)), "JPEG"), plain),
    "animated.gif": (
        saved(PALETTE, "GIF", save_all=True, append_images=[PALETTE.rotate(180)]),
        plain,
    ),
    "palette.png": (saved(PALETTE, "PNG"), plain),
    "palette with a clear colour.png": (saved(PALETTE, "PNG", transparency=3), without_alpha),
    "alpha.png": (saved(ALPHA, "PNG"), without_alpha),
    "progressive.jpg": (saved(SOFT, "JPEG", progressive=True), plain),
    "lossless.webp": (saved(SOFT, "WEBP", lossless=True), plain),
    "with spaces  in it.jpg": (saved(blocks(3), "JPEG"), plain),
    "schön/雪 📷.jpg": (saved(blocks(4), "JPEG"), plain),
    "a\nnew line.jpg": (saved(blocks(5), "JPEG"), plain),
    "a directory.jpg/inside.png": (saved(blocks(6), "PNG"), plain),
    "100%25 [x] {y} #z?.jpg": (saved(blocks(7), "JPEG"), plain),
    **{f"turned {n}.jpg": (turned(n), plain) for n in range(1, 9)},
}
if features.check("avif"):
    ODD["new.avif"] = saved(SOFT, "AVIF", quality=100, subsampling="4:4:4"), plain

WHOLE = saved(SOFT, "JPEG")
BAD: dict[str, tuple[bytes | None, str, str]] = {
    "truncated.jpg": (WHOLE[:-60], "CorruptImage", "the JPEG is truncated: it has no "
                      "end marker; fetch the file again or leave it out"),
    "truncated.png": (saved(SOFT, "PNG")[:-20], "CorruptImage", "the PNG is truncated: it has no "
                      "end chunk; fetch the file again or leave it out"),
    "empty.jpg": (b"", "CorruptImage", "the file is empty (0 bytes); fetch the file again or leave "
                  "it out"),
    "zeros.jpg": (bytes(4096), "CorruptImage", "the file holds only zeros; fetch the file again or "
                  "leave it out"),
    "notes.jpg": (b"Remember the milk", "CorruptImage", "text, not an image (it starts 'Remember "
                  "the milk'); replace it or leave it out"),
    "page.jpg": (b"<html>404</html>", "CorruptImage", "a web or XML page, not an image; fetch the "
                 "file again; the server sent a page"),
    "bomb.png": (png_of_size(50_000, 50_000), "ImageTooLarge", "50000 x 50000 pixels, the limit is "
                 "178956970; cut it into tiles, scale it down, or raise the limit"),
    "phone.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(range(200)), "CorruptImage",
                   "a HEIC image, for which no decoder is installed; save it as JPEG or PNG"),
    "new.jxl": (b"\xff\x0a" + bytes(range(200)), "CorruptImage", "a JPEG XL image, for which no "
                "decoder is installed; save it as JPEG or PNG"),
    "video.jpg": (b"\0\0\0\x18ftypisom" + bytes(range(200)), "CorruptImage", "a video, for which "
                  "no decoder is installed; save it as JPEG or PNG"),
    "locked.jpg": (WHOLE, "MissingFile", "permission denied; make it a readable file or take it "
                   "off the list"),
    "dangling.jpg": (None, "MissingFile", "a link to a file that is gone; restore it or remove "
                     "the link"),
    "latin \udce9.jpg": (WHOLE, "MissingFile", "the file's name is not UTF-8; rename it (convmv "
                         "does)"),
}  # fmt: skip
COUNT = GOOD + len(ODD) + len(BAD)


def obey_permissions() -> None:
    """Give up root's power over permissions, in the process that is about to start."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        for power in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            libc.prctl(24, power, 0, 0, 0)  # PR_CAPBSET_DROP


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Store, Path]:
    """Label the bucket once; give the summary, the store and the bucket."""
    bucket, store = tmp_path_factory.mktemp("bucket"), tmp_path_factory.mktemp("out") / "store"
    files = {f"good/{n:04}.jpg": saved(blocks(1000 + n), "JPEG") for n in range(GOOD)}
    files |= {name: data for name, (data, _) in ODD.items()}
    files |= {name: data for name, (data, _, _) in BAD.items() if data is not None}
    for name, data in files.items():
        (bucket / name).parent.mkdir(parents=True, exist_ok=True)
        (bucket / name).write_bytes(data)
    (bucket / "locked.jpg").chmod(0)
    (bucket / "dangling.jpg").symlink_to(bucket / "gone.jpg")
    (bucket / "an empty directory.jpg").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "jobs", "label", str(bucket), str(store), "--model", MODEL,
         "--runner", "local", "--batch-size", "2", "--max-errors", "100%", "--json"],
        cwd=ROOT, capture_output=True, text=True, preexec_fn=obey_permissions, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), Store.open(store), bucket


@pytest.fixture(scope="module")
def rows(night) -> dict[str, Record]:
    _, store, bucket = night
    return {os.path.relpath(r.image.path, bucket): r for r in store.records()}


@pytest.fixture(scope="module")
def failures(night) -> dict[str, dict[str, Any]]:
    _, store, bucket = night
    return {os.path.relpath(f["path"], bucket): f for f in store.failures().to_pylist()}


def judge(mask: NDArray[Any], expected: NDArray[np.uint8]) -> None:
    """Compare a mask with the pixels it should come from, but for those at a class's edge."""
    assert mask.shape == expected.shape[:2]
    inside = expected.astype(int) & 63
    clear = ((inside >= _EDGE) & (inside <= 63 - _EDGE)).all(-1)
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(mask[clear], colours(expected)[clear])


def test_the_sum_holds(night, rows, failures):
    summary, _, _ = night
    assert summary["inputs"] == summary["done"] + summary["skipped"] + summary["failed"] == COUNT
    assert (summary["done"], summary["failed"]) == (len(rows), len(failures))
    assert summary["failed"] == len(BAD)
    assert COUNT >= 200


def test_good_images_are_not_harmed_by_bad_ones(rows):
    for n in range(GOOD):
        row = rows[f"good/{n:04}.jpg"]
        judge(decode(row.mask.bytes), np.asarray(blocks(1000 + n)))


@pytest.mark.parametrize("name", ODD)
def test_odd_images_are_labelled_as_pillow_sees_them(name, rows):
    data, seen = ODD[name]
    row, expected = rows[name], seen(data)
    judge(decode(row.mask.bytes), expected)
    assert (row.height, row.width) == expected.shape[:2]
    assert name.startswith(row.image_id)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_mask_of_a_turned_image_lies_on_what_people_see(orientation, rows):
    row = rows[f"turned {orientation}.jpg"]
    assert (row.height, row.width) == ((64, 48) if orientation >= 5 else (48, 64))
    assert json.loads(row.extra or "{}").get("orientation", 1) == orientation


@pytest.mark.parametrize("name", BAD)
def test_bad_images_are_explained(name, failures, night):
    _, _, bucket = night
    _, error, words = BAD[name]
    printed = name.encode("utf-8", "backslashreplace").decode()
    failure = failures[printed]
    assert failure["error"] == error
    assert failure["message"] == f"{bucket}/{printed}: {words}"
