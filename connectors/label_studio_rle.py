"""Label Studio's run lengths of a brush: bits, packed into a list of bytes (thi.ng's rle-pack).

    32 bits   number of words: 4 for each pixel, row by row: red, green, blue, alpha
     5        bits of a word, less one
    4 x 4     bits of each of four lengths, less one
    then      1, which length (2 bits), length less one, a word to repeat
    or        0, which length (2 bits), length less one, as many words

A pixel is the shape's where alpha is 128 or more: half of it or more is covered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from connectors.tool_shapes import refuse

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHANNELS: Final = 4
_WORD: Final = 8
_SIZES: Final = (3, 4, 8, 16)
_MOST: Final = 1 << _SIZES[-1]
_OPAQUE: Final = 128


def encode(region: NDArray[np.bool_]) -> list[int]:
    """Return the pixels of an image, bool [H, W], as bytes.

    >>> encode(np.array([[True, False]]))
    [0, 0, 0, 8, 57, 27, 252, 127, 241, 128, 0]
    """
    flat = region.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.concatenate(([0], edges))
    lengths = np.diff(np.concatenate((starts, [flat.size]))) * _CHANNELS
    words = np.where(flat[starts], 255, 0)
    pieces = -(-lengths // _MOST)
    last = lengths - (pieces - 1) * _MOST
    words = np.repeat(words, pieces)
    chunks = np.full(len(words), _MOST, dtype=np.int64)
    chunks[np.cumsum(pieces) - 1] = last
    which = np.searchsorted([1 << size for size in _SIZES], chunks)
    sizes = np.array(_SIZES)[which]
    codes = (((4 + which) << sizes) + chunks - 1 << _WORD) + words
    widths = 3 + sizes + _WORD
    head = flat.size * _CHANNELS << 5 | _WORD - 1
    for size in _SIZES:
        head = head << 4 | size - 1
    bits = np.concatenate((_bits([head], [32 + 5 + 16]), _bits(codes, widths)))
    packed: list[int] = np.packbits(bits).tolist()
    return packed


def _bits(codes: Any, widths: Any) -> NDArray[np.uint8]:
    """Return numbers as bits, each as many as its width, from the top."""
    values, counts = np.asarray(codes, dtype=np.int64), np.asarray(widths, dtype=np.int64)
    ends = np.cumsum(counts)
    place = np.repeat(ends, counts) - np.arange(int(ends[-1])) - 1
    return (np.repeat(values, counts) >> place & 1).astype(np.uint8)


class _Bits:
    def __init__(self, data: bytes, where: str) -> None:
        self._data, self._at, self._where = data, 0, where

    def read(self, count: int) -> int:
        """Read a number of up to some dozen bits."""
        start, stop = self._at, self._step(count)
        window = int.from_bytes(self._data[start >> 3 : (stop + 7) >> 3], "big")
        return window >> (-stop % 8) & ((1 << count) - 1)

    def words(self, count: int) -> NDArray[np.uint8]:
        """Read words."""
        start, stop = self._at, self._step(count * _WORD)
        held = np.frombuffer(self._data[start >> 3 : (stop + 7) >> 3], dtype=np.uint8)
        bits = np.unpackbits(held)[start % 8 :][: count * _WORD]
        return np.packbits(bits)

    def _step(self, count: int) -> int:
        self._at += count
        if self._at > 8 * len(self._data):
            raise refuse(self._where, "brush run lengths that are cut off")
        return self._at


def decode(rle: Any, size: tuple[int, int], where: str) -> NDArray[np.bool_]:
    """Return the pixels that a brush covers, bool [H, W].

    Raises:
        BadAnnotation: it is no list of bytes, is cut off, or of another number of pixels.
    """
    try:
        bits = _Bits(bytes(rle) if isinstance(rle, list) else b"", where)
    except (TypeError, ValueError):
        raise refuse(where, "brush run lengths that are no list of bytes") from None
    pixels = size[0] * size[1]
    count, width = bits.read(32), bits.read(5) + 1
    if count != _CHANNELS * pixels:
        raise refuse(
            where,
            f"brush run lengths of {count} values, not of 4 for each of {size[1]}x{size[0]} pixels",
        )
    if width != _WORD:
        raise refuse(where, f"brush run lengths of {width} bits a value, not of 8")
    sizes = [bits.read(4) + 1 for _ in range(4)]
    out, at = np.zeros(count, dtype=np.uint8), 0
    while at < count:
        repeated = bits.read(1)
        length = bits.read(sizes[bits.read(2)]) + 1
        if at + length > count:
            raise refuse(where, f"brush run lengths that go on behind the last of {count} values")
        if repeated:
            word = bits.read(_WORD)
            if word:
                out[at : at + length] = word
        else:
            out[at : at + length] = bits.words(length)
        at += length
    covered: NDArray[np.bool_] = out[_CHANNELS - 1 :: _CHANNELS] >= _OPAQUE
    return covered.reshape(size)
