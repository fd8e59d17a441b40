"""A record's image put into a dataset: its own bytes where the format takes them."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from connectors.list_files import not_hidden
from pipeline.errors import CorruptImage, MissingFile, SizeMismatch, UnsafePath
from pipeline.files import read_url
from pipeline.images import decode, header

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.record import Record
    from pipeline.trees.sinks import Sink

JPEG_QUALITY: Final = 95

SUFFIXES: Final[Mapping[str, str]] = {
    "png": ".png",
    "jpeg": ".jpg",
    "mpo": ".jpg",
    "bmp": ".bmp",
    "tiff": ".tif",
    "webp": ".webp",
    "jpeg2000": ".jp2",
    "gif": ".gif",
    "ppm": ".ppm",
    "avif": ".avif",
}
"""The suffix of each format that `pipeline.images.header` names."""


def put_image(
    sink: Sink, stem: str, record: Record, formats: Sequence[str]
) -> tuple[str, dict[str, int]]:
    """Write a record's image under `stem` and a suffix; return its name and what that cost.

    The bytes stay as they are if they are of one of the formats, which the bytes and not the name
    decide. Otherwise the pixels are written as PNG where that is among the formats, which loses
    nothing, and as JPEG of quality 95 where it is not (counted as "images_reencoded").

    Raises:
        InputError: the image is gone, damaged or of another size than its labels, or it lies where
            it would be written, or its name is hidden.
    """
    path = record.image.path or record.image_id
    data = record.image.bytes
    if data is None:
        data = _fetch(record)
    head = header(data, path)
    if (record.height, record.width) not in ((head.height, head.width), head.upright()):
        raise SizeMismatch(
            path,
            f"the image has {head.width}x{head.height} pixels, its labels are for "
            f"{record.width}x{record.height}: it was replaced after they were read",
            "restore it, or ingest the dataset again",
        )
    # Labels made on the upright image would not fit the stored pixel grid; other readers of the
    # format do not all turn it.
    upright = record.extras().get("orientation", 1) != 1 if record.extra else False
    if head.format in formats and not upright:
        name = not_hidden(stem + SUFFIXES[head.format])
        _spare(sink, name, path)
        sink.write(name, data)
        return name, {}
    lossless = "png" in formats
    name = not_hidden(stem + (".png" if lossless else ".jpg"))
    _spare(sink, name, path)
    sink.write(name, _encode(data, path, lossless=lossless, upright=upright))
    return name, {} if lossless else {"images_reencoded": 1}


def put_as_shown(
    sink: Sink, stem: str, record: Record, formats: Sequence[str]
) -> tuple[str, dict[str, int]]:
    """Do the same for a tool that turns images by their EXIF orientation before it shows them.

    An image that is turned so, and whose labels lie on the stored pixels, is written as a PNG of
    these, which nobody turns.

    Raises:
        InputError: see `put_image`.
    """
    path = record.image.path or record.image_id
    data = record.image.bytes if record.image.bytes is not None else _fetch(record)
    upright = record.extras().get("orientation", 1) != 1 if record.extra else False
    if header(data, path).orientation != 1 and not upright:
        data = rgb_png(decode(data, path, orient=False))
    held = replace(record, image=replace(record.image, bytes=data))
    return put_image(sink, stem, held, formats)


def _spare(sink: Sink, name: str, source: str) -> None:
    """Make sure that a record's own image is not written over, nor its labels with it.

    Raises:
        UnsafePath: it would be.
    """
    target = sink.url_of(name)
    if target != source:
        if sink.far or source[:1] != "/" or not os.path.exists(target):
            return
        folder, _, last = target.rpartition("/")
        if f"{os.path.realpath(folder)}/{last}" != os.path.realpath(source):
            return
    raise UnsafePath(
        target, "the dataset would be written over this image of its source", "write it elsewhere"
    )


def pixels_of(record: Record) -> NDArray[np.uint8]:
    """Return a record's image as RGB [H, W, 3] on the grid of its labels.

    Raises:
        InputError: the image is gone or damaged.
    """
    data = record.image.bytes if record.image.bytes is not None else _fetch(record)
    upright = record.extras().get("orientation", 1) != 1 if record.extra else False
    return decode(data, record.image.path or record.image_id, orient=upright)


def rgb_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return RGB [H, W, 3] as a PNG, which loses nothing; the same bytes for the same pixels."""
    import cv2

    mirrored = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    done, encoded = cv2.imencode(".png", mirrored, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert done, f"OpenCV cannot write {pixels.dtype} of shape {pixels.shape}"
    return bytes(encoded)


def _fetch(record: Record) -> bytes:
    if record.image.path is None:
        raise MissingFile(
            record.image_id,
            "the record holds neither its image nor where it lies",
            "ingest the dataset again, with --embed-images if the images will move",
        )
    return read_url(record.image.path)


def _encode(data: bytes, path: str, *, lossless: bool, upright: bool) -> bytes:
    import cv2

    pixels = cv2.cvtColor(decode(data, path, orient=upright), cv2.COLOR_RGB2BGR)
    if lossless:
        done, encoded = cv2.imencode(".png", pixels)
    else:
        done, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise CorruptImage(path, "OpenCV cannot write its pixels", "leave it out")
    return bytes(encoded)


def not_expressed(record: Record, *columns: str) -> dict[str, int]:
    """Count what a record holds in columns that a format has no place for."""
    lost = {}
    for column in columns:
        value = getattr(record, column)
        count = len(value) if isinstance(value, tuple) else int(value is not None)
        if count:
            lost[column] = count
    return lost
