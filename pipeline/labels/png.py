"""PNG files of class ids: their chunks, their raw samples, and the ones written for speed.

A mask cell is a PNG with filter type 0 on every row and one IDAT: inflating it gives the pixels,
each row behind one zero byte. Any other PNG of ids is read by libpng from a copy that says "grey",
so that palette indices stay indices and no colour management, gamma or rotation applies.
"""

from __future__ import annotations

import struct
import zlib
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, cast

import imagecodecs
import numpy as np

from pipeline.errors import CorruptMask, ImageTooLarge, InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from pipeline.label_space import LabelMap

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
PIXEL_LIMIT: Final = 1 << 28
"""Most pixels that a label file may promise; beyond it, memory would be taken for a bomb."""

GREY: Final = 0
RGB: Final = 2
PALETTE: Final = 3
RGBA: Final = 6
MODES: Final = {GREY: "grey", RGB: "RGB", PALETTE: "palette", 4: "grey with alpha", 6: "RGBA"}
_DEPTHS: Final = {
    GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16),
}  # fmt: skip
_CHANNELS: Final = {GREY: 1, RGB: 3, PALETTE: 1, 4: 2, 6: 4}
_HEAD_BYTES: Final = 2048  # more than header and palette of a written cell take
_IEND: Final = b"\x00\x00\x00\x00IEND\xaeB`\x82"
# Adam7: first row, first column, row step, column step of each pass.
_PASSES: Final = (
    (0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)
)  # fmt: skip

# libdeflate, which releases the GIL; its stubs know nothing of arrays and views.
_deflate = cast("Callable[..., bytes]", imagecodecs.deflate_encode)
_inflate = cast("Callable[..., NDArray[np.uint8]]", imagecodecs.deflate_decode)
_crc = cast("Callable[[memoryview], int]", imagecodecs.deflate_crc32)
_deflate_quickly = cast("Callable[..., bytes]", imagecodecs.zlibng_encode)

_QUICK: Final[ContextVar[dict[int, tuple[bytes, NDArray[np.uint8]]] | None]] = ContextVar(
    "quick", default=None
)
"""Within `quickly`: the files written so far, by the address of their bytes, and their rows."""


@contextmanager
def quickly() -> Iterator[None]:
    """Write PNGs in a half to a fifth of the time while the block runs, in this thread.

    They are a quarter to three quarters bigger, as large as Pillow's. For a dataset's own files;
    the cells of a store are written once, kept for long, and the same bytes on every machine.

    What the block writes and reads again (labels on their way through a remap) is not inflated:
    its rows are kept until the block ends. A block is for one sample.
    """
    token = _QUICK.set({})
    try:
        yield
    finally:
        _QUICK.reset(token)


def _pack(rows: NDArray[np.uint8]) -> bytes:
    if _QUICK.get() is not None:
        return _deflate_quickly(rows, level=2)
    # Level 6 of libdeflate: smaller than PIL's and OpenCV's PNG, and 3 times faster to write.
    return _deflate(rows, level=6, raw=False)


def written(data: bytes) -> NDArray[np.uint8] | None:
    """Return the unfiltered rows of a grey or palette file that this block of `quickly` wrote."""
    found = (_QUICK.get() or {}).get(id(data))
    return None if found is None or found[0] is not data else found[1]


@dataclass(frozen=True, slots=True)
class Png:
    """The parts of a PNG file that say what its pixels are; `data` is the zlib stream."""

    height: int
    width: int
    depth: int
    colour: int
    interlaced: bool
    palette: bytes | None
    data: bytes | memoryview
    plain: bool  # nothing but IHDR, PLTE, one IDAT and IEND, and nothing behind them

    @property
    def mode(self) -> str:
        """Return the mode in words, as messages name it."""
        return f"{self.depth}-bit {MODES[self.colour]}"

    def row_bytes(self, width: int) -> int:
        """Return the bytes of a row of this many pixels, without its filter byte."""
        return (width * self.depth * _CHANNELS[self.colour] + 7) // 8

    @property
    def inflated(self) -> int:
        """Return the bytes that the zlib stream must hold."""
        if not self.interlaced:
            return self.height * (1 + self.row_bytes(self.width))
        total = 0
        for top, left, down, right in _PASSES:
            rows, columns = -((top - self.height) // down), -((left - self.width) // right)
            if rows > 0 and columns > 0:
                total += rows * (1 + self.row_bytes(columns))
        return total


def _corrupt(path: str, cause: str) -> CorruptMask:
    return CorruptMask(path, cause, "replace the file or write it again")


def _chunks(data: bytes, path: str) -> list[tuple[bytes, memoryview]]:
    """Cut the file into (type, body) up to IEND; the check sums of critical chunks must hold."""
    view, at, chunks = memoryview(data), len(SIGNATURE), []
    while True:
        if at + 12 > len(data):
            raise _corrupt(path, "the PNG is cut off")
        length, kind = struct.unpack_from(">I4s", data, at)
        body = view[at + 8 : at + 8 + length]
        if len(body) != length or at + 12 + length > len(data):
            raise _corrupt(path, "the PNG is cut off")
        if kind[0] & 0x20 == 0:  # upper case: critical
            (check,) = struct.unpack_from(">I", data, at + 8 + length)
            if _crc(view[at + 4 : at + 8 + length]) != check:
                raise _corrupt(path, f"check sum of the {kind.decode('latin-1')!r} chunk fails")
        chunks.append((kind, body))
        at += 12 + length
        if kind == b"IEND":
            chunks.append((b"", view[at:]))
            return chunks


def check_sums(data: bytes, path: str) -> None:
    """Make sure that a PNG file's critical chunks are whole.

    Raises:
        CorruptMask: one is cut off, or its check sum fails.
    """
    _chunks(data, path)


def parse(data: bytes, path: str) -> Png:
    """Read the header and find the pixels of a whole PNG file.

    Raises:
        CorruptMask: not a PNG, cut off, or damaged.
        ImageTooLarge: the header promises more than `PIXEL_LIMIT` pixels.
    """
    written = _as_written(data)
    return _parsed(data, path) if written is None else written


def _as_written(data: bytes) -> Png | None:
    """Read a file that is laid out as `write` does it; None for any other, and for a damaged one.

    Cells of one size and palette begin alike: their headers are read once.
    """
    at = data.find(b"IDAT", 8, _HEAD_BYTES) - 4
    if at < 0 or len(data) < at + 12:
        return None
    (length,) = struct.unpack_from(">I", data, at)
    end = at + 12 + length
    if data[end:] != _IEND:
        return None
    body = memoryview(data)[at + 4 : end - 4]
    if _crc(body) != struct.unpack_from(">I", data, end - 4)[0]:
        return None
    head = _head(data[:at])
    if head is None:
        return None
    return Png(
        head.height,
        head.width,
        head.depth,
        head.colour,
        head.interlaced,
        head.palette,
        body[4:],
        plain=True,
    )


@lru_cache(maxsize=256)
def _head(before: bytes) -> Png | None:
    """Return what a file's bytes before its pixels say; None where they are not a plain header."""
    try:
        found = _parsed(before + _chunk(b"IDAT", b"") + _IEND, "")
    except InputError:
        return None
    return found if found.plain else None


def _parsed(data: bytes, path: str) -> Png:
    if data[:8] != SIGNATURE:
        raise _corrupt(path, "not a PNG file")
    chunks = _chunks(data, path)
    kind, head = chunks[0]
    if kind != b"IHDR" or len(head) != 13:
        raise _corrupt(path, "the PNG has no header")
    width, height, depth, colour, method, filtering, interlace = struct.unpack(">IIBBBBB", head)
    if depth not in _DEPTHS.get(colour, ()) or method or filtering or interlace > 1:
        raise _corrupt(path, "the PNG's header is not a valid one")
    if not width or not height:
        raise _corrupt(path, "the PNG has no pixels")
    if width * height > PIXEL_LIMIT:
        raise ImageTooLarge(
            path, f"{width}x{height} pixels are more than {PIXEL_LIMIT}", "cut it into tiles"
        )
    bodies = [body for name, body in chunks if name == b"IDAT"]
    if not bodies:
        raise _corrupt(path, "the PNG has no pixels")
    palette = next((bytes(body) for name, body in chunks if name == b"PLTE"), None)
    names = [name for name, _ in chunks if name != b"PLTE"]
    return Png(
        height=height,
        width=width,
        depth=depth,
        colour=colour,
        interlaced=bool(interlace),
        palette=palette,
        data=bodies[0] if len(bodies) == 1 else b"".join(bodies),
        plain=names == [b"IHDR", b"IDAT", b"IEND", b""] and not chunks[-1][1],
    )


def inflate(png: Png, path: str) -> NDArray[np.uint8]:
    """Return the filtered rows as flat, writable bytes.

    Raises:
        CorruptMask: the stream is damaged, or holds more or less than the header says.
    """
    size = png.inflated
    if size > 1100 * len(png.data) + 1024:  # deflate cannot expand more than 1,032 times
        raise _corrupt(path, "the PNG holds fewer pixels than its header says")
    try:
        rows = _inflate(png.data, raw=False, out=np.empty(size, dtype=np.uint8))
    except (imagecodecs.DeflateError, ValueError) as error:
        raise _corrupt(path, f"the PNG's pixels do not inflate ({error})") from None
    if len(rows) != size:
        raise _corrupt(path, "the PNG holds fewer pixels than its header says")
    return rows


def unfiltered(png: Png, rows: NDArray[np.uint8]) -> bool:
    """Return whether inflated rows are pixels as they are: filter type 0 throughout."""
    if png.interlaced:
        return False
    # Counting takes a sixth of the time of `any`, which turns the bytes into booleans.
    return not np.count_nonzero(rows[:: len(rows) // png.height])


def ids(png: Png, path: str) -> LabelMap:
    """Return the samples of a grey or palette PNG as they are stored: [H, W] uint8 or uint16.

    Unfiltered 8-bit rows come back as a view of the inflated bytes, without a copy.
    """
    rows = inflate(png, path)
    if png.depth >= 8 and unfiltered(png, rows):
        return pixels(png, rows)
    samples = _by_libpng(assemble(png, GREY, None), path)
    if png.depth < 8:  # libpng stretches 1, 2 and 4 bits to 0..255
        samples //= 255 // ((1 << png.depth) - 1)
    return samples


def pixels(png: Png, rows: NDArray[np.uint8]) -> LabelMap:
    """Return the pixels of unfiltered rows of 8 bits, a view, or of 16."""
    if png.depth == 8:
        return rows.reshape(png.height, 1 + png.width)[:, 1:]
    return _wide(rows, png.height, png.width).astype(np.uint16)


def _wide(rows: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint16]:
    """View filtered rows as their big-endian 16-bit pixels, each row behind its filter byte."""
    return np.ndarray((height, width), ">u2", rows, offset=1, strides=(1 + 2 * width, 2))


def colours(png: Png, path: str) -> NDArray[np.uint8]:
    """Return the colours of an 8-bit RGB or RGBA PNG as they are stored: RGB [H, W, 3]."""
    inflate(png, path)
    return np.ascontiguousarray(_by_libpng(assemble(png, png.colour, None), path)[:, :, :3])


def _by_libpng(data: bytes, path: str) -> NDArray[Any]:
    """Decode a PNG that `inflate` found whole: libpng takes some that are cut off for whole."""
    try:
        return imagecodecs.png_decode(data)
    except imagecodecs.PngError as error:
        raise _corrupt(path, f"libpng cannot decode the PNG ({error})") from None


def assemble(png: Png, colour: int, palette: bytes | None) -> bytes:
    """Return the same pixels in a PNG file with this colour type and no ancillary chunks."""
    head = struct.pack(
        ">IIBBBBB", png.width, png.height, png.depth, colour, 0, 0, int(png.interlaced)
    )
    plte = _chunk(b"PLTE", palette) if palette is not None else b""
    return b"".join(
        (SIGNATURE, _chunk(b"IHDR", head), plte, _chunk(b"IDAT", bytes(png.data)), _IEND)
    )


def _chunk(kind: bytes, body: bytes) -> bytes:
    return (
        struct.pack(">I4s", len(body), kind)
        + body
        + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))
    )


def with_chunk(data: bytes, kind: bytes, body: bytes) -> bytes:
    """Return a PNG file that `write` made with one more chunk, before the end."""
    return data[: -len(_IEND)] + _chunk(kind, body) + _IEND


def chunk(data: bytes, kind: bytes, path: str) -> bytes | None:
    """Return the body of a PNG's first chunk of a kind; None where it has none.

    Raises:
        CorruptMask: not a PNG, or cut off.
    """
    if data[:8] != SIGNATURE:
        raise _corrupt(path, "not a PNG file")
    return next((bytes(body) for name, body in _chunks(data, path) if name == kind), None)


def write(mask: LabelMap, palette: bytes | None) -> bytes:
    """Return [H, W] pixels as an unfiltered PNG with one IDAT; the palette is for 8 bits only."""
    height, width = mask.shape
    wide = mask.dtype != np.uint8
    rows = np.empty(height * (1 + mask.itemsize * width), dtype=np.uint8)
    grid = rows.reshape(height, -1)
    grid[:, 0] = 0
    if wide:
        _wide(rows, height, width)[...] = mask
    else:
        grid[:, 1:] = mask
    data = _pack(rows)
    held = _QUICK.get()
    colour = PALETTE if palette is not None and not wide else GREY
    png = Png(height, width, 16 if wide else 8, colour, False, None, data, True)
    file = assemble(png, colour, palette if colour == PALETTE else None)
    if held is not None:
        held[id(file)] = file, rows
    return file


def write_colours(pixels: NDArray[np.uint8]) -> bytes:
    """Return RGB [H, W, 3] or RGBA [H, W, 4] as an unfiltered PNG with one IDAT.

    For flat colours, such as those of labels, that is smaller than what filters make of them.
    """
    height, width, channels = pixels.shape
    rows = np.empty((height, 1 + channels * width), dtype=np.uint8)
    rows[:, 0] = 0
    rows[:, 1:] = pixels.reshape(height, -1)
    data = _pack(rows)
    colour = RGB if channels == 3 else RGBA
    return assemble(Png(height, width, 8, colour, False, None, data, True), colour, None)
