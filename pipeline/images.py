"""Images as pixels: headers without decoding, and 8-bit RGB whatever the file holds.

What becomes of each kind: grey is repeated in three channels, alpha is dropped (not composited), a
palette is looked up, CMYK is converted as Pillow does it (Adobe's inverted kind included), 16-bit
samples keep their high byte, an animation gives its first frame. EXIF orientation is applied once,
here, and no colour profile is: networks are trained on such pixels.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.errors import CorruptImage, ImageTooLarge
from pipeline.files import Tree, locate
from pipeline.image_header import IMAGE_SUFFIXES, Header, header, pillow_open, probe

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "IMAGE_SUFFIXES",
    "PIXEL_LIMIT",
    "Header",
    "decode",
    "header",
    "read_header",
    "read_url_header",
]

PIXEL_LIMIT: Final = 178_956_970
"""Half a gigabyte of RGB; above it Pillow, too, calls an image a decompression bomb."""

_BACK: Final = {6: 8, 8: 6}
"""The orientations that do not undo themselves."""
_PLAIN_RGB: Final = bytes((8, 2, 0, 0, 0))
"""The end of a PNG's header: 8 bits, RGB, not interlaced."""
_FETCH: Final = "fetch the file again or leave it out"


def read_header(tree: Tree, name: str) -> Header:
    """Return the header of a tree's image; of a big file only both ends are read.

    Raises:
        InputError: the file is missing, truncated, too large or no image.
    """
    first, last = tree.header_bytes(name)
    path = tree.url_of(name)
    head = probe(first, last, path, lambda: tree.read(name)) if last else header(first, path)
    _check_size(head, path, PIXEL_LIMIT)
    return head


def read_url_header(url: str, **storage_options: Any) -> Header:
    """Return the header of the image behind a path or URL; of a big file only both ends are read.

    Raises:
        InputError: the file is missing, truncated or no image.
    """
    return read_header(*locate(url, **storage_options))


def _check_size(head: Header, path: str, pixel_limit: int) -> None:
    if head.height * head.width > pixel_limit:
        raise ImageTooLarge(
            path,
            f"{head.width} x {head.height} pixels, the limit is {pixel_limit}",
            "cut it into tiles, scale it down, or raise the limit",
        )


def decode(
    data: bytes,
    path: str,
    *,
    orient: bool = True,
    pixel_limit: int = PIXEL_LIMIT,
    at_least: tuple[int, int] | None = None,
) -> NDArray[np.uint8]:
    """Return an image file's pixels, uint8 [H, W, 3] RGB, upright unless `orient` is off.

    With `at_least`, a height and width as returned, a JPEG is decoded at the smallest of 1/8, 1/4,
    1/2 and 1 of its size, rounded up, that leaves that many pixels on both sides.

    Raises:
        CorruptImage: the file is empty, truncated, or no image.
        ImageTooLarge: its header promises more than `pixel_limit` pixels; nothing was decoded.
    """
    head = header(data, path)
    _check_size(head, path, pixel_limit)
    scale = 1
    if head.format == "png":
        pixels = _decode_png(data, path)
    elif head.format == "jpeg" and head.components != 4:
        scale = _scale(head, at_least, turned=orient and head.orientation > 4)
        pixels = _decode_jpeg(data, path) if scale == 1 else _decode_pillow(data, path, scale)
    else:
        pixels = _decode_pillow(data, path)
        if head.format == "tiff":  # Pillow turns these, and these only, upright itself
            pixels = turn(pixels, _BACK.get(head.orientation, head.orientation))
    if pixels.shape != (-(-head.height // scale), -(-head.width // scale), 3):
        raise CorruptImage(
            path,
            f"{pixels.shape[1]} x {pixels.shape[0]} pixels, "
            f"but the header says {head.width} x {head.height}",
            _FETCH,
        )
    return turn(pixels, head.orientation) if orient else pixels


def _scale(head: Header, at_least: tuple[int, int] | None, *, turned: bool) -> int:
    """Return by what a JPEG's sides may be divided while it is decoded: 1, 2, 4 or 8."""
    if at_least is None:
        return 1
    height, width = at_least[::-1] if turned else at_least
    most = min(head.height // height, head.width // width)
    return next(scale for scale in (8, 4, 2, 1) if most >= scale or scale == 1)


def _decode_jpeg(data: bytes, path: str) -> NDArray[np.uint8]:
    import imagecodecs

    try:
        pixels: NDArray[np.uint8] = imagecodecs.jpeg8_decode(data, outcolorspace="RGB")
    except Exception as error:  # Jpeg8Error; others come from what it hands to NumPy
        raise _damaged(path, error) from None
    return pixels


def _decode_png(data: bytes, path: str) -> NDArray[np.uint8]:
    import imagecodecs

    from pipeline.labels.png import check_sums

    pixels = None
    if data[24:29] == _PLAIN_RGB:  # libspng takes four fifths of libpng's time
        with suppress(Exception):  # what is damaged is libpng's to judge and to word
            check_sums(data, path)  # which libspng does not look at
            pixels = imagecodecs.spng_decode(data)
    try:
        pixels = imagecodecs.png_decode(data) if pixels is None else pixels
    except Exception as error:  # PngError; others come from what it hands to NumPy
        raise _damaged(path, error) from None
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.ndim == 2 or pixels.shape[2] <= 2:
        grey = pixels if pixels.ndim == 2 else pixels[:, :, 0]
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.ascontiguousarray(pixels[:, :, :3])


def _damaged(path: str, error: Exception) -> CorruptImage:
    return CorruptImage(path, f"the pixel data is damaged ({error})", _FETCH)


def _decode_pillow(data: bytes, path: str, scale: int = 1) -> NDArray[np.uint8]:
    """Decode by Pillow; a JPEG at 1/2, 1/4 or 1/8 of its size leaves most of its work undone."""
    from PIL import Image

    try:
        with pillow_open(data) as image:
            if scale > 1:
                image.draft("RGB", (image.width // scale, image.height // scale))
            if image.mode.startswith("I"):
                return _high_byte(np.asarray(image), path)
            if image.mode == "F":
                raise CorruptImage(path, "the samples are floats", "save it with 8 or 16 bits")
            return np.array(image.convert("RGB"))
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(path, str(error), "cut it into tiles, or leave it out") from None
    except CorruptImage:
        raise
    except Exception as error:  # Pillow's plugins raise whatever their parsing hits
        raise _damaged(path, error) from None


def _high_byte(samples: NDArray[Any], path: str) -> NDArray[np.uint8]:
    """Return 16-bit grey samples as 8-bit RGB."""
    if samples.min(initial=0) < 0 or samples.max(initial=0) > 0xFFFF:
        raise CorruptImage(path, "the samples have 32 bits", "save it with 8 or 16 bits")
    grey = (samples >> 8).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def turn(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Return [H, W, C] pixels upright, given their EXIF orientation 1..8."""
    if orientation == 1:
        return pixels
    import cv2

    turned: NDArray[np.uint8]
    if orientation in (2, 3, 4):
        turned = cv2.flip(pixels, {2: 1, 3: -1, 4: 0}[orientation])
    elif orientation in (6, 8):
        clockwise = orientation == 6
        turned = cv2.rotate(
            pixels, cv2.ROTATE_90_CLOCKWISE if clockwise else cv2.ROTATE_90_COUNTERCLOCKWISE
        )
    else:
        turned = cv2.transpose(pixels if orientation == 5 else cv2.flip(pixels, -1))
    return turned
