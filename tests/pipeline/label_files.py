"""Label files made byte by byte or by other libraries, for the tests to read."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from pipeline.label_space import label_space

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SHAPES = st.one_of(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.just(1), st.integers(1, 300)),
    st.tuples(st.integers(1, 300), st.just(1)),
)
MASKS = st.one_of(arrays.arrays(np.uint8, SHAPES), arrays.arrays(np.uint16, SHAPES))


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Cut a PNG into its chunks, check sums and all, knowing only the specification."""
    assert data[:8] == SIGNATURE
    at, found = 8, []
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length)[0] == zlib.crc32(kind + body)
        found.append((kind, body))
        at += 12 + length
    return found


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def pil_png(mask: np.ndarray, mode: str | None = None, **options) -> bytes:
    image = Image.fromarray(mask)
    if mode == "P":
        image.putpalette(label_space("voc-21").palette())
    out = io.BytesIO()
    image.save(out, "PNG", **options)
    return out.getvalue()


def blobs(height: int, width: int, seed: int, classes: int = 12) -> np.ndarray:
    """Return a map with regions, as labels have them: noise, blurred and cut into classes."""
    noise = np.random.default_rng(seed).random((height, width), dtype=np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 5)
    spread = (smooth - smooth.min()) / max(np.ptp(smooth), 1e-9)
    return np.minimum(spread * classes, classes - 1).astype(np.uint8)


def raw_png(
    rows: bytes, width: int, height: int, depth: int, colour: int, extra: bytes = b"", lace: int = 0
) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, lace)
    body = zlib.compress(rows)
    half = len(body) // 2
    return (
        SIGNATURE + chunk(b"IHDR", head) + extra
        + chunk(b"IDAT", body[:half]) + chunk(b"IDAT", body[half:]) + chunk(b"IEND", b"")
    )  # fmt: skip


def adam7(mask: np.ndarray) -> bytes:
    """Return the rows of an interlaced PNG, pass by pass, unfiltered, as the specification says."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
              (1, 0, 2, 1)]  # fmt: skip
    wire = mask.astype(mask.dtype.newbyteorder(">"))
    return b"".join(
        b"\0" + row.tobytes()
        for top, left, down, right in passes
        for row in wire[top::down, left::right]
        if row.size
    )
