"""What can be wrong with a row's image file, and two hashes that find the same image elsewhere."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from pipeline import images
from pipeline.checks.rows import Problem
from pipeline.errors import InputError, MissingFile
from pipeline.files import read_url

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.record import Record

_SIDE: Final = 8
_FLAT: Final = 4.0
"""Grey levels of contrast below which all images look alike."""


class ImageFacts(NamedTuple):
    """What an image file shows: problems, and hashes of 63 bits (0 where there is none)."""

    problems: tuple[Problem, ...]
    content: int = 0
    """Of the file's bytes: equal for equal files only."""
    look: int = 0
    """Of a thumbnail's gradients: equal for images that look alike; 0 for flat ones."""


def check_image(record: Record, *, decode: bool = False) -> ImageFacts:
    """Read a record's image, whole: its header, and its pixels if told to."""
    path = record.image.path or ""
    try:
        data = read_url(path) if record.image.bytes is None else record.image.bytes
        if not data:
            raise MissingFile(path or record.image_id, "the file is empty", "fetch it again")
    except (MissingFile, IsADirectoryError) as error:
        return ImageFacts((Problem("image-missing", _cause(error)),))
    except (InputError, OSError) as error:
        return ImageFacts((Problem("image-corrupt", _cause(error)),))
    content = content_hash(data)
    try:
        head = images.header(data, path)
        upright = _upright(record)
        size = head.upright() if upright else (head.height, head.width)
        pixels = images.decode(data, path, orient=upright) if decode else None
    except InputError as error:
        return ImageFacts((Problem("image-corrupt", error.cause),), content)
    look = 0 if pixels is None else look_hash(pixels)
    if size != (record.height, record.width):
        what = f"the image is {size[1]}x{size[0]}, its row says {record.width}x{record.height}"
        return ImageFacts((Problem("image-size", what),), content, look)
    return ImageFacts((), content, look)


def _cause(error: Exception) -> str:
    return error.cause if isinstance(error, InputError) else " ".join(str(error).split())


def _upright(record: Record) -> bool:
    """Tell whether the mask lies on the image turned by its EXIF orientation."""
    try:
        found: Any = json.loads(record.extra or "{}")
    except ValueError:
        return False
    return isinstance(found, dict) and found.get("orientation", 1) != 1


def content_hash(data: bytes) -> int:
    """Return 63 bits of a digest of the bytes, never 0."""
    digest = hashlib.blake2b(data, digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 1) or 1


def look_hash(pixels: NDArray[np.uint8]) -> int:
    """Return a hash of the signs of a thumbnail's gradients, across and down; 0 for flat images.

    The difference hash: what brightness, size and compression leave as it is.
    """
    import cv2

    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (_SIDE + 1, _SIDE + 1), interpolation=cv2.INTER_AREA).astype(np.int16)
    if small.std() < _FLAT:
        return 0
    bits = np.concatenate(
        [np.diff(small[:_SIDE]).ravel() > 0, np.diff(small.T[:_SIDE]).ravel() > 0]
    )
    return content_hash(np.packbits(bits).tobytes())
