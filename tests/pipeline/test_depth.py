"""Depth cells keep every bit; Pillow and OpenCV read them as well as we do."""

from __future__ import annotations

import struct
from contextlib import suppress
from unittest.mock import patch

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pipeline import depth
from pipeline.errors import CorruptMask
from pipeline.record import Depth

SHAPES = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=20)
CELL = depth.encode(np.arange(12, dtype=np.uint16).reshape(3, 4))
MAPS = st.sampled_from([np.uint16, np.float32]).flatmap(lambda kind: arrays(kind, SHAPES))


@given(MAPS, st.booleans())
def test_cells_come_back(values: depth.DepthMap, both: bool) -> None:
    raw = values[::-1].copy() if both else None
    first, second = depth.decode(depth.encode(values, raw))
    assert first.dtype == values.dtype
    assert first.tobytes() == values.tobytes()  # NaNs of floats included
    assert (second is None) == (raw is None)
    if raw is not None and second is not None:
        assert second.tobytes() == raw.tobytes()


def test_opencv_reads_a_cell() -> None:
    values = np.linspace(0, 9, 12, dtype=np.float32).reshape(3, 4)
    read = cv2.imdecode(np.frombuffer(depth.encode(values), np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(read, values)


def test_metres() -> None:
    millimetres = np.array([[0, 1500], [65535, 1]], np.uint16)
    held = depth.metres(Depth(None, depth.encode(millimetres), 0.001))
    assert held is not None
    np.testing.assert_array_equal(held, (millimetres * 0.001).astype(np.float32))
    assert depth.metres(Depth("depth.png")) is None


@pytest.mark.parametrize("cell", [b"", b"no TIFF", depth.encode(np.ones((9, 9), np.uint16))[:40]])
def test_damage(cell: bytes) -> None:
    with pytest.raises(CorruptMask, match=r"room\.mat"):
        depth.decode(cell, "room.mat")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of tags
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_anywhere(data: st.DataObject) -> None:
    """Whatever a byte of a cell becomes, it decodes or is told as damage."""
    cell = bytearray(CELL)
    for _ in range(data.draw(st.integers(1, 3))):
        cell[data.draw(st.integers(0, len(cell) - 1))] = data.draw(st.integers(0, 255))
    with suppress(CorruptMask):
        depth.decode(bytes(cell), "room.tif")


@pytest.mark.parametrize("error", [TypeError, KeyError, struct.error, EOFError, ZeroDivisionError])
def test_errors_of_the_decoder_are_damage(error: type[Exception]) -> None:
    with (
        patch("PIL.TiffImagePlugin.TiffImageFile.load", side_effect=error("odd")),
        pytest.raises(CorruptMask, match=r"room\.tif"),
    ):
        depth.decode(CELL, "room.tif")
