"""Dense masks: the mask cell of the store, label files of datasets, counts and colours.

A mask is an array [H, W] of class ids, uint8 or uint16. Objects, run-length codes and polygons are
in `pipeline.instances`, whose names are importable from here too.
"""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.errors import CorruptMask, ImageTooLarge, LabelOutOfRange, UnknownColour
from pipeline.instances import (
    Drawing,
    object_map_from_instances,
    paint,
    polygons_to_rle,
    rle_area,
    rle_bbox,
    rle_check,
    rle_crop,
    rle_decode,
    rle_encode,
    rle_encode_at,
    rle_from_runs,
    rle_runs,
    rle_unpack_ahead,
)
from pipeline.labels import png
from pipeline.labels.regions import instances_from_maps
from pipeline.record import ClassPixels

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from pipeline.label_space import LabelMap, LabelSpace

__all__ = [
    "Drawing",
    "check_ids",
    "class_pixels",
    "colours_to_ids",
    "decode",
    "encode",
    "instances_from_maps",
    "object_map_from_instances",
    "paint",
    "polygons_to_rle",
    "read_colour_label",
    "read_label",
    "recode",
    "rle_area",
    "rle_bbox",
    "rle_check",
    "rle_crop",
    "rle_decode",
    "rle_encode",
    "rle_encode_at",
    "rle_from_runs",
    "rle_runs",
    "rle_unpack_ahead",
    "wraps_cell",
]

_BLOCK: Final = 1 << 24
"""Pixels that are counted at once: OpenCV counts in float32, exact up to here, and noise has as
many runs as pixels."""
_MOST_NAMED: Final = 20


def encode(mask: LabelMap, palette: bytes | None = None) -> bytes:
    """Return the mask cell of [H, W] uint8 or uint16: the same bytes for the same pixels, always.

    Within `png.quickly`, for files that no store keeps, the same pixels in other bytes.

    `palette` is 256 RGB entries (768 bytes), as `LabelSpace.palette` gives them; without one an
    8-bit cell is grey. A 16-bit cell is always grey.

    Raises:
        ValueError: the mask is of another type or shape, or the palette of another size.
    """
    if mask.dtype not in (np.uint8, np.uint16) or mask.ndim != 2 or not mask.size:
        raise ValueError(
            f"a mask is [H, W] uint8 or uint16 with a pixel or more, not {mask.dtype} of shape "
            f"{mask.shape}"
        )
    if palette is not None and len(palette) != 768:
        raise ValueError(f"a palette has 256 RGB entries (768 bytes), not {len(palette)} bytes")
    return png.write(mask, palette)


def decode(cell: bytes, path: str = "mask cell") -> LabelMap:
    """Return the class ids of a mask cell, or of any grey or palette PNG: [H, W] uint8 or uint16.

    The array of an 8-bit cell is writable, and its rows are one byte apart: a view of the inflated
    bytes. Samples are as stored: palette indices, and 0..1, 0..3 or 0..15 of narrower files.

    Raises:
        CorruptMask: the bytes are not a whole PNG, or it has more than one channel.
    """
    file = _single_channel(png.parse(cell, path), path)
    rows = png.written(cell)
    return png.ids(file, path) if rows is None else png.pixels(file, rows.copy())


def _single_channel(file: png.Png, path: str) -> png.Png:
    if file.colour not in (png.GREY, png.PALETTE):
        raise CorruptMask(
            path,
            f"a PNG of mode {file.mode} holds colours, not class ids",
            "write class ids in one channel, or read it through a colour table",
        )
    return file


def read_label(data: bytes, path: str) -> LabelMap:
    """Return the class ids of a dataset's label file: PNG, or another lossless file that PIL reads.

    Accepts PIL's modes P, L, 1, I;16 and I; samples are as stored.

    Raises:
        CorruptMask: the file is damaged, lossy (JPEG), or of a mode that holds no class ids.
    """
    if data[:8] == png.SIGNATURE:
        return decode(data, path)
    with _open(data, path) as image:
        if image.mode in ("P", "L"):
            return np.array(image)
        if image.mode == "1":
            return np.array(image).astype(np.uint8)
        if image.mode.startswith("I"):
            return _narrow(np.array(image), path)
        raise CorruptMask(
            path,
            f"an image of mode {image.mode} holds no class ids",
            "write class ids in one channel as a PNG, or read it through a colour table",
        )


def _open(data: bytes, path: str) -> Image:
    """Open a file that is not a PNG, and load its pixels."""
    from PIL import Image, UnidentifiedImageError

    if data[:3] == b"\xff\xd8\xff":
        raise CorruptMask(
            path, "a JPEG is lossy and cannot hold class ids", "write the labels as a PNG"
        )
    try:
        image = Image.open(BytesIO(data))
        if image.width * image.height > png.PIXEL_LIMIT:
            raise ImageTooLarge(
                path, f"{image.width}x{image.height} pixels are too many", "cut it into tiles"
            )
        image.load()
    # Pillow's decoders raise whatever a damaged file makes them trip over.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, EOFError) as error:
        if isinstance(error, ImageTooLarge):
            raise
        # Pillow's own words for this one hold an address of memory, another one in each run.
        unknown = isinstance(error, UnidentifiedImageError)
        cause = "no kind of image that is known" if unknown else str(error)
        raise CorruptMask(
            path, f"not an image that can be read ({cause})", "replace the file"
        ) from None
    return image


def _narrow(values: NDArray[np.integer], path: str) -> LabelMap:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise CorruptMask(
            path, f"values {low}..{high} do not fit 16 bits", "write class ids in 0..65535"
        )
    return values.astype(np.uint16)


def read_colour_label(data: bytes, path: str) -> NDArray[np.uint8]:
    """Return the colours of a colour-coded label file: RGB [H, W, 3]; alpha is dropped.

    Raises:
        CorruptMask: the file is damaged or lossy, or has 16 bits a channel.
    """
    if data[:8] != png.SIGNATURE:
        with _open(data, path) as image:
            return np.array(image.convert("RGB"))
    file = png.parse(data, path)
    if file.colour == png.PALETTE:
        return _through_palette(file, path)
    if file.depth == 16:
        raise CorruptMask(
            path, f"a PNG of mode {file.mode} is no colour label", "write it with 8 bits a channel"
        )
    if file.colour == png.GREY:
        levels = (1 << file.depth) - 1
        grey = png.ids(file, path).astype(np.uint8) * np.uint8(255 // levels)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return png.colours(file, path)


def _through_palette(file: png.Png, path: str) -> NDArray[np.uint8]:
    indices = png.ids(file, path)
    entries = np.frombuffer(file.palette or b"", dtype=np.uint8)
    entries = entries[: len(entries) // 3 * 3].reshape(-1, 3)
    if int(indices.max()) >= len(entries):
        raise CorruptMask(
            path,
            f"pixels point to entry {int(indices.max())} of a palette of {len(entries)}",
            "replace the file or write it again",
        )
    return np.take(entries, indices, axis=0)


def wraps_cell(data: bytes, palette: bytes | None, path: str) -> bool:
    """Tell whether a PNG is a mask cell with that palette, provided that its rows are unfiltered.

    Raises:
        CorruptMask: the bytes are not a whole PNG.
    """
    return _wraps_cell(png.parse(data, path), palette)


def recode(data: bytes, palette: bytes | None = None, path: str = "label file") -> bytes:
    """Return a label PNG's bytes as a mask cell: unchanged when it is one with that palette.

    With a palette, 16-bit ids that fit 8 bits become 8-bit ones.

    Raises:
        CorruptMask: see `read_label`.
    """
    if data[:8] != png.SIGNATURE:
        return encode(_fit(read_label(data, path), palette), palette)
    file = _single_channel(png.parse(data, path), path)
    if _wraps_cell(file, palette) and _plain(file, data, path):
        return data
    return encode(_fit(decode(data, path), palette), palette)


def _plain(file: png.Png, data: bytes, path: str) -> bool:
    return png.written(data) is not None or png.unfiltered(file, png.inflate(file, path))


def _wraps_cell(file: png.Png, palette: bytes | None) -> bool:
    colours = (png.GREY, None) if palette is None else (png.PALETTE, palette)
    return file.plain and file.depth >= 8 and (file.colour, file.palette) == colours


def _fit(mask: LabelMap, palette: bytes | None) -> LabelMap:
    if mask.dtype == np.uint16 and palette is not None and int(mask.max()) <= 255:
        return mask.astype(np.uint8)
    return mask


def _counts(mask: LabelMap) -> NDArray[np.int64]:
    """Count the pixels of each value: int64 [256] or [65536]."""
    values = 256 if mask.dtype == np.uint8 else 65536
    total = np.zeros(values, dtype=np.int64)
    for part in _blocks(mask):
        # Neighbours mostly agree: counting runs takes a third of the time of counting pixels.
        flat = part.ravel()
        starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
        lengths = np.diff(starts, append=flat.size)
        total += np.bincount(flat[starts], lengths, values).astype(np.int64)
    return total


def _blocks(mask: LabelMap) -> list[LabelMap]:
    rows = max(1, _BLOCK // mask.shape[1])
    return [mask[at : at + rows] for at in range(0, mask.shape[0], rows)]


def class_pixels(
    mask: LabelMap,
    space: LabelSpace,
    confidence: NDArray[np.uint8] | None = None,
    path: str = "mask",
) -> tuple[ClassPixels, ...]:
    """Count the pixels of every id in the mask, ascending, the ignore index included.

    `confidence` is uint8 [H, W], round(255 p); the mean of each class is in 0..1.

    Raises:
        LabelOutOfRange: the mask holds ids that the space does not define.
    """
    counts = _counts(mask)
    _check_counts(counts, space, path)
    present = np.flatnonzero(counts)
    if confidence is None:
        return tuple(ClassPixels(int(i), int(counts[i])) for i in present)
    sums = _sums(mask, confidence)
    return tuple(
        ClassPixels(int(i), int(counts[i]), float(sums[i] / counts[i] / 255)) for i in present
    )


def _sums(mask: LabelMap, confidence: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Add up the confidence of each id's pixels, 0..255 each."""
    if confidence.shape != mask.shape or confidence.dtype != np.uint8:
        raise ValueError(
            f"confidence is uint8 of the mask's shape {mask.shape}, not {confidence.dtype} of "
            f"{confidence.shape}"
        )
    if mask.dtype != np.uint8:
        weights = confidence.ravel().astype(np.float64)
        return np.bincount(mask.ravel(), weights, minlength=65536).astype(np.float64)
    import cv2

    total = np.zeros(256, dtype=np.float64)
    levels = np.arange(256, dtype=np.float64)
    for part, sure in zip(_blocks(mask), _blocks(confidence), strict=True):
        both = cv2.calcHist([part, sure], [0, 1], None, [256, 256], [0, 256, 0, 256])
        total += both.astype(np.float64) @ levels
    return total


def check_ids(mask: LabelMap, space: LabelSpace, path: str) -> None:
    """Make sure that the mask holds only ids of the space, or its ignore index.

    Raises:
        LabelOutOfRange: it does not; the message lists the values.
    """
    _check_counts(_counts(mask), space, path)


def _check_counts(counts: NDArray[np.int64], space: LabelSpace, path: str) -> None:
    allowed = space.allowed()
    stray = [i for i in np.flatnonzero(counts).tolist() if i >= len(allowed) or not allowed[i]]
    if stray:
        named = ", ".join(map(str, stray[:_MOST_NAMED])) + (", ..." * (len(stray) > _MOST_NAMED))
        raise LabelOutOfRange(
            path,
            f"{sum(int(counts[i]) for i in stray)} pixels hold values {named}, which label space "
            f"{space.name!r} does not define",
            "fix the mask, or read it with the label space that it was made for",
        )


@lru_cache(maxsize=32)
def _colour_table(space: LabelSpace) -> tuple[NDArray[np.uint32], LabelMap, NDArray[np.bool_]]:
    """Return the 24-bit colours, ascending, their ids, and which are of more than one class.

    Void classes may share a colour, with each other and with one class that is not void, which then
    wins: in Cityscapes several void classes are black.
    """
    table: dict[int, int] = {}
    shared = set()
    void = {c.id for c in space.classes if c.void or c.id == space.ignore_index}
    for c in sorted(space.classes, key=lambda c: c.id in void):
        red, green, blue = c.colour
        code = red | green << 8 | blue << 16
        if table.setdefault(code, c.id) != c.id and c.id not in void:
            shared.add(code)
    colours = sorted(table)
    ids: LabelMap = np.array([table[code] for code in colours], dtype=space.dtype)
    several = np.array([code in shared for code in colours], dtype=np.bool_)
    return np.array(colours, dtype=np.uint32), ids, several


def colours_to_ids(
    rgb: NDArray[np.uint8], space: LabelSpace, path: str
) -> tuple[LabelMap, dict[tuple[int, int, int], int]]:
    """Return the ids of RGB [H, W, 3], and how many pixels each unknown colour has.

    Unknown colours become the ignore index.

    Raises:
        CorruptMask: not an array of RGB colours.
        UnknownColour: a colour is of several classes that are not void.
    """
    import cv2

    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or not rgb.size:
        raise CorruptMask(path, f"{rgb.dtype} of shape {rgb.shape}", "give RGB [H, W, 3] uint8")
    codes = cv2.cvtColor(rgb, cv2.COLOR_RGB2RGBA).view("<u4").ravel()
    # Neighbours mostly agree: looking up runs of one colour is six times faster than pixels.
    starts = np.concatenate(([0], np.flatnonzero(codes[1:] != codes[:-1]) + 1))
    lengths = np.diff(starts, append=len(codes))
    colours, ids, shared = _colour_table(space)
    found = codes[starts] & np.uint32(0xFFFFFF)
    place = np.minimum(np.searchsorted(colours, found), len(colours) - 1)
    known = colours[place] == found
    unclear = np.unique(place[known & shared[place]])
    if len(unclear):
        _refuse_shared(int(colours[unclear[0]]), space, path)
    values: LabelMap = np.where(known, ids[place], space.dtype(space.ignore_index))
    stray: dict[tuple[int, int, int], int] = {}
    for code, pixels in zip(found[~known].tolist(), lengths[~known].tolist(), strict=True):
        colour = _rgb(code)
        stray[colour] = stray.get(colour, 0) + pixels
    return np.repeat(values, lengths).reshape(rgb.shape[:2]), dict(sorted(stray.items()))


def _rgb(code: int) -> tuple[int, int, int]:
    return code & 255, code >> 8 & 255, code >> 16


def _refuse_shared(code: int, space: LabelSpace, path: str) -> None:
    colour = _rgb(code)
    names = ", ".join(repr(c.name) for c in space.classes if c.colour == colour)
    raise UnknownColour(
        path,
        f"colour {colour} is of several classes of label space {space.name!r}: {names}",
        "give each class its own colour, or write class ids in one channel",
    )
