"""What an image file says about itself before any pixel is decoded.

JPEG and PNG, nearly all of every dataset, are parsed here in some microseconds; other formats go
through Pillow. A JPEG is whole when an end marker (EOI) follows the start of its first scan: inside
a scan FF D9 cannot be data, and a thumbnail's own marker lies before the scan. What comes after the
marker (zero padding, a second picture, a camera maker's block) does not matter. A PNG is whole when
its last chunk, IEND, is there.
"""

from __future__ import annotations

import codecs
import io
import struct
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

from pipeline.errors import CorruptImage, ImageTooLarge

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL import Image

PILLOW_FORMATS: Final = (
    "BMP", "GIF", "JPEG2000", "PPM", "TIFF", "WEBP", "AVIF", "JPEG", "PNG",
)  # fmt: skip
"""What Pillow may open: image formats only, none that runs a program (EPS) or reads other files."""

IMAGE_SUFFIXES: Final = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif",
    ".ppm", ".pgm", ".pnm", ".jp2", ".avif", ".heic", ".heif", ".jxl",
)  # fmt: skip
"""What is listed; some kinds have no decoder everywhere, and fail with a word about that."""

PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC: Final = b"\xff\xd8\xff"
_IEND: Final = b"IEND\xaeB`\x82"
_EOI: Final = b"\xff\xd9"
_SOS, _APP1 = 0xDA, 0xE1
_NOT_SOF: Final = frozenset({0xC4, 0xC8, 0xCC})  # Huffman tables, reserved, arithmetic tables
_ORIENTATION: Final = 0x0112
_HEIC: Final = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_BRANDS: Final = {b"avif": "an AVIF image", b"avis": "an AVIF image"}
_KINDS: Final = {
    b"\xff\x0a": "a JPEG XL image",
    b"\0\0\0\x0cJXL ": "a JPEG XL image",
    b"8BPS": "a Photoshop document",
    b"%PDF": "a PDF document",
    b"%!PS": "a PostScript document",
    b"PK\3\4": "a ZIP archive",
    b"\x1f\x8b": "a gzip file",
}
_FETCH: Final = "fetch the file again or leave it out"


@dataclass(frozen=True, slots=True)
class Header:
    """An image's stored size in pixels, its format, and how to turn it upright (EXIF 1..8).

    `components` are a JPEG's: 4 means CMYK or YCCK; 0 for other formats.
    """

    height: int
    width: int
    format: str
    orientation: int = 1
    components: int = 0

    def upright(self) -> tuple[int, int]:
        """Return height and width after the orientation is applied: the shape `decode` gives."""
        if self.orientation >= 5:
            return self.width, self.height
        return self.height, self.width


class _NeedsMoreError(Exception):
    """The bytes at hand end before the header does."""


def header(data: bytes, path: str) -> Header:
    """Return a whole file's header, without decoding a pixel.

    Raises:
        CorruptImage: the file is empty, truncated, or no image.
        ImageTooLarge: Pillow refuses its size.
    """
    return probe(data, data, path, None)


def probe(head: bytes, tail: bytes, path: str, whole: Callable[[], bytes] | None) -> Header:
    """Return the header of a file by its first and last bytes; `whole` fetches the rest at need.

    With `whole` None the bytes are the whole file's.
    """
    try:
        if head[:3] == JPEG_MAGIC:
            return _jpeg(head, tail, path, partial=whole is not None)
        if head[:8] == PNG_MAGIC:
            return _png(head, tail, path)
        if whole is None:
            return _other(head, path)
    except _NeedsMoreError:
        if whole is None:
            raise CorruptImage(path, "the file is truncated inside its header", _FETCH) from None
    return header(whole(), path)


def _jpeg(head: bytes, tail: bytes, path: str, *, partial: bool) -> Header:
    """Read the segments before the first scan, and look for the end marker after it."""
    frame, orientation, scan = _jpeg_segments(head, path)
    if 0 in frame:
        raise CorruptImage(path, "the JPEG header gives no size", _FETCH)
    if tail.rfind(_EOI, scan if tail is head else 0) < 0:
        if partial:
            raise _NeedsMoreError  # padding or a second picture may follow the marker
        raise CorruptImage(path, "the JPEG is truncated: it has no end marker", _FETCH)
    height, width, components = frame
    return Header(height, width, "jpeg", orientation, components)


def _jpeg_segments(head: bytes, path: str) -> tuple[tuple[int, int, int], int, int]:
    """Return (height, width, components), the orientation, and where the first scan starts."""
    at, end, orientation = 2, len(head), 1
    frame = (0, 0, 0)
    while at + 4 <= end:
        if head[at] != 0xFF:
            raise CorruptImage(path, f"no JPEG marker at byte {at}", _FETCH)
        marker = head[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == _SOS:
            return frame, orientation, at
        body, after = at + 4, at + 2 + _u16(head, at + 2)
        if 0xC0 <= marker <= 0xCF and marker not in _NOT_SOF:
            if body + 6 > end:
                break
            frame = struct.unpack_from(">xHHB", head, body)
        elif marker == _APP1 and head[body : body + 6] == b"Exif\0\0":
            orientation = exif_orientation(head[body + 6 : after])
        # Markers without a length (restart, TEM) don't occur before the first scan.
        at = after
    raise _NeedsMoreError


def _u16(data: bytes, at: int) -> int:
    return data[at] << 8 | data[at + 1]


def _png(head: bytes, tail: bytes, path: str) -> Header:
    """Read IHDR, and the chunks before the pixels for an EXIF orientation."""
    if len(head) < 33:
        raise _NeedsMoreError
    if head[12:16] != b"IHDR":
        raise CorruptImage(path, "the PNG does not start with its header chunk", _FETCH)
    width, height = struct.unpack_from(">II", head, 16)
    if not width or not height:
        raise CorruptImage(path, "the PNG header gives no size", _FETCH)
    orientation, at = 1, 33
    while True:
        if at + 8 > len(head):
            raise _NeedsMoreError
        length, kind = struct.unpack_from(">I4s", head, at)
        if kind in (b"IDAT", b"IEND"):
            break
        if kind == b"eXIf":
            orientation = exif_orientation(head[at + 8 : at + 8 + length])
        at += 12 + length
    if tail.rfind(_IEND) < 0:
        if tail is head:
            raise CorruptImage(path, "the PNG is truncated: it has no end chunk", _FETCH)
        raise _NeedsMoreError
    return Header(height, width, "png", orientation)


def exif_orientation(exif: bytes) -> int:
    """Return the orientation, 1..8, in an EXIF block (a TIFF file); 1 where there is none."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, at)
            if tag == _ORIENTATION:
                return value if kind == 3 and 1 <= value <= 8 else 1
    except struct.error:  # a damaged block turns nothing
        pass
    return 1


def pillow_open(data: bytes) -> Image.Image:
    """Open an image by Pillow, in those of `PILLOW_FORMATS` that this Pillow can read."""
    from PIL import Image

    return Image.open(io.BytesIO(data), formats=_known_formats())


@cache
def _known_formats() -> tuple[str, ...]:
    from PIL import Image

    # By itself Pillow knows the formats whose plugins somebody happened to import. A thread that
    # comes meanwhile loads them as well: this returns to none before all are there.
    Image.init()
    return tuple(name for name in PILLOW_FORMATS if name in Image.OPEN)


def _other(data: bytes, path: str) -> Header:
    """Read the header of the other formats by Pillow."""
    from PIL import Image
    from PIL.TiffImagePlugin import TiffImageFile

    if not data.strip(b"\0"):
        cause = "the file holds only zeros" if data else "the file is empty (0 bytes)"
        raise CorruptImage(path, cause, _FETCH)
    try:
        with pillow_open(data) as image:
            turn = image.getexif().get(_ORIENTATION, 1)
            turn = turn if turn in range(1, 9) else 1
            width, height = image.size
            if isinstance(image, TiffImageFile):  # newer Pillows give a TIFF's size upright
                width, height = image.tag_v2[256], image.tag_v2[257]
            return Header(height, width, (image.format or "").lower(), turn)
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(path, str(error), "cut it into tiles, or leave it out") from None
    except Exception as error:  # Pillow's plugins raise whatever their parsing hits
        raise CorruptImage(path, *_not_an_image(data, error)) from None


def _text(start: bytes) -> str:
    """Return bytes as text; "" when they are no UTF-8 (the last character may be cut) or binary."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return ""
    return text if all(c.isprintable() or c in "\t\r\n\f\ufeff" for c in text) else ""


def _kind_of(start: bytes) -> str | None:
    """Return what a file is that people take for an image, or that is one of a rarer kind."""
    if start[4:8] == b"ftyp":
        brand = start[8:12]
        return "a HEIC image" if brand in _HEIC else _BRANDS.get(brand, "a video")
    return next((kind for magic, kind in _KINDS.items() if start.startswith(magic)), None)


def _not_an_image(data: bytes, error: Exception) -> tuple[str, str]:
    """Return the cause and the mend for bytes that no decoder knows."""
    start = data[:200]
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the image", "run git lfs pull"
    kind = _kind_of(start)
    if kind:
        return f"{kind}, for which no decoder is installed", "save it as JPEG or PNG"
    if start.lstrip()[:1] == b"<":
        return "a web or XML page, not an image", "fetch the file again; the server sent a page"
    text = _text(start)
    if text:
        line = text[:30].split("\n")[0].strip()
        return f"text, not an image (it starts {line!r})", "replace it or leave it out"
    if type(error).__name__ == "UnidentifiedImageError":
        return f"no image format that is known (it starts {start[:8].hex(' ')})", _FETCH
    return f"the header is damaged ({error})", _FETCH
