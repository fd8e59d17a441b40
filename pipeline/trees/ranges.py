"""A range of a file's bytes as a file of its own, read by position: threads share the file."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Read = Callable[[int, int], bytes]
    """Returns up to so many bytes (second) at an offset (first), fewer only at the end."""

__all__ = ["of_file", "opened", "parts"]

_BUFFER: Final = 1 << 16
_FAR_BUFFER: Final = 1 << 20
_PART: Final = 4 << 20


class _Range(io.RawIOBase):
    """The bytes from `start`, `size` of them."""

    def __init__(self, read: Read, start: int, size: int) -> None:
        self._read, self._start, self._size, self._at = read, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative seek position {base + offset}")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        room = memoryview(buffer).cast("B")
        length = max(0, min(len(room), self._size - self._at))
        data = self._read(self._start + self._at, length) if length else b""
        room[: len(data)] = data
        self._at += len(data)
        return len(data)


def opened(read: Read, start: int, size: int, *, far: bool) -> BinaryIO:
    """Return a range as a file for reading and seeking; far ones are fetched by the megabyte."""
    raw = _Range(read, start, size)
    return cast("BinaryIO", io.BufferedReader(raw, _FAR_BUFFER if far else _BUFFER))


def parts(read: Read, start: int, size: int) -> Iterator[bytes]:
    """Yield a range in parts of some megabytes."""
    for at in range(0, size, _PART):
        yield read(start + at, min(_PART, size - at))


def of_file(file: BinaryIO) -> Read:
    """Return what reads an open local file by position; it keeps the file open."""

    def read(offset: int, length: int) -> bytes:
        data = os.pread(file.fileno(), length, offset)
        while len(data) < length:  # Linux reads at most 2 GiB at once
            more = os.pread(file.fileno(), length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    return read
